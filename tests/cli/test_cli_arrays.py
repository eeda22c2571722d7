"""Files of arrays as DATA: what is read, and what is refused with file, array, value and fix."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from rankwise.inputs import arrays
from rankwise.inputs.data import DataOptions
from rankwise.inputs.loading import load_data

X = np.random.default_rng(0).random((6, 3, 7, 5), dtype=np.float32)
Array = np.ndarray[Any, Any]


def read(file: Path, **options: Any) -> tuple[torch.Tensor, list[int] | None]:
    pairs = list(load_data(str(file), DataOptions(**options)).pairs)
    labels = None if pairs[0][1] is None else torch.cat([labels for _, labels in pairs]).tolist()
    return torch.cat([inputs for inputs, _ in pairs]), labels


def stored(folder: Path, suffix: str, x: Array) -> Path:
    file = folder / f"data{'.npy' if suffix == '.npy' else '.npz'}"
    if suffix == ".npy":
        np.save(file, x)
    else:
        (np.savez if suffix == ".npz" else np.savez_compressed)(file, x=x)
    return file


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize("change", [lambda x: x, lambda x: x.astype(">f4"), np.asfortranarray])
def test_any_order_of_bytes_and_dimensions(change: Callable[[Array], Array], suffix: str, tmp_path: Path) -> None:
    inputs, _ = read(stored(tmp_path, suffix, change(X)))
    assert torch.equal(inputs, torch.from_numpy(X))


def test_sixteen_bits_are_a_picture_and_whole_numbers_else(tmp_path: Path) -> None:
    deep = (X * 65535).astype(np.uint16)
    inputs, _ = read(stored(tmp_path, ".npy", deep.transpose(0, 2, 3, 1)))
    torch.testing.assert_close(inputs, torch.from_numpy(deep.astype(np.float32)) / 65535)
    for kind in ("<u2", ">i4", "<u8"):
        tokens, _ = read(stored(tmp_path, ".npy", np.arange(12, dtype=kind).reshape(3, 4)))
        assert torch.equal(tokens, torch.arange(12).reshape(3, 4))


ODD: dict[str, tuple[Array, str]] = {
    "text": (np.array(["a", "b"]), "holds text, not numbers; number the words"),
    "objects": (np.array([[1], [1, 2]], dtype=object), r"holds Python objects, .*np\.stack"),
    "dates": (np.zeros((3, 2), "M8[s]"), r"holds dates, not numbers; .*astype\('int64'\)"),
    "durations": (np.zeros((3, 2), "m8[s]"), "holds durations"),
    "records": (np.zeros((3, 2), [("a", "f4"), ("b", "f4")]), "holds records of several fields, .*each field"),
    "truth values": (X > 0.5, r"holds booleans.*astype\('float32'\)"),
    "complex": (X.astype(np.complex64), r"holds complex numbers.*FILE\.py:FUNCTION"),
    "no dimension": (np.array(3.0), r"has shape \(\); inputs need samples"),
    "one dimension": (np.arange(3.0), r"has shape \(3,\); inputs need samples"),
    "no samples": (X[:0], r"has shape \(0, 3, 7, 5\)"),
    "no numbers": (X[..., :0], r"has shape \(6, 3, 7, 0\)"),
    "too large": (np.full((3, 4), 2**63, np.uint64), "holds 9223372036854775808, .*larger than any int64"),
}


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".compressed"])
@pytest.mark.parametrize("kind", ODD)
def test_arrays_that_are_no_inputs(kind: str, suffix: str, tmp_path: Path) -> None:
    array, message = ODD[kind]
    file = stored(tmp_path, suffix, array)
    name = "" if suffix == ".npy" else ": 'x'"
    with pytest.raises(ValueError, match=f"{file.name}{name} {message}"):
        read(file)


LABELS: dict[str, tuple[Array, str]] = {
    "negative": (np.array([0, 1, -1, 0, 0, 0]), "number 2 is -1; classes are numbered from 0"),
    "parts": (np.array([0, 0.5, 1, 1, 1, 1]), r"type torch\.float64, number 1 is 0\.5; .*astype\('int64'\)"),
    "too few": (np.arange(5), r"has shape \(5,\), but 'x' holds 6 samples; labels are 6 class numbers"),
    "too many": (np.arange(7), r"has shape \(7,\), but 'x' holds 6 samples"),
    "several": (np.zeros((6, 2), np.int64), r"has shape \(6, 2\), but 'x' holds 6"),
    "one": (np.array(3), r"has shape \(\), but 'x' holds 6"),
    "words": (np.array(list("abcdef")), r"holds text.*return_inverse=True"),
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_that_are_no_classes(kind: str, tmp_path: Path) -> None:
    labels, message = LABELS[kind]
    np.savez(tmp_path / "data.npz", x=X, y=labels)
    with pytest.raises(ValueError, match=rf"data\.npz: 'y'.* {message}"):
        read(tmp_path / "data.npz")


@pytest.mark.parametrize(
    "labels", [np.array([True, False] * 3), np.array([-100, 1, 2, 3, 0, 1]), np.arange(6)[:, None]]
)
def test_labels_that_are(labels: Array, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=X, y=labels)
    assert read(tmp_path / "data.npz")[1] == labels.flatten().astype(int).tolist()


def header(*shape: int) -> bytes:
    written = io.BytesIO()
    np.lib.format.write_array_header_1_0(written, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return written.getvalue()


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".compressed"])
@pytest.mark.parametrize(
    "shape, message",
    [
        ((10**9, 800), r"of shape \(1000000000, 800\) needs 3,200,000,000,000 bytes, this machine has [\d,]+; save"),
        ((100, 8), r"should hold 3,200 bytes by its header .* but 400 are there: the file is cut short or damaged"),
        ((10, 8), r"should hold 320 bytes by its header .* but 400 are there"),
    ],
)
def test_a_header_that_claims_another_size(shape: tuple[int, int], message: str, suffix: str, tmp_path: Path) -> None:
    content = header(*shape) + bytes(400)
    file = tmp_path / f"data{'.npy' if suffix == '.npy' else '.npz'}"
    if suffix == ".npy":
        file.write_bytes(content)
    else:
        kind = zipfile.ZIP_DEFLATED if suffix == ".compressed" else zipfile.ZIP_STORED
        with zipfile.ZipFile(file, "w", kind) as archive:
            archive.writestr("x.npy", content)
    with pytest.raises(ValueError, match=f"{file.name}.* {message}"):
        read(file)


def test_more_than_the_memory_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "memory", lambda: 100_000)
    np.savez_compressed(tmp_path / "data.npz", x=np.zeros((6, 10_000), np.float32))  # small on disk
    torch.save(torch.zeros(1).expand(10**6, 3), tmp_path / "data.pt")
    for file, name in (("data.npz", "x"), ("data.pt", "data")):
        with pytest.raises(ValueError, match=rf"{file}: '{name}' of shape .* this machine has 100,000; save fewer"):
            read(tmp_path / file)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors", ".pt"])
def test_damaged_files(suffix: str, tmp_path: Path) -> None:
    for content in (b"", b"nonsense that is no file at all", b"PK\x03\x04" + bytes(30)):
        file = tmp_path / f"data{suffix}"
        file.write_bytes(content)
        with pytest.raises(ValueError, match=rf"data\{suffix} "):
            read(file)


def test_what_torch_saves(tmp_path: Path) -> None:
    x, y = torch.from_numpy(X), torch.arange(6)
    for content, labels in ((x, None), ((x, y), y.tolist()), ({"images": x, "labels": y, "note": "text"}, y.tolist())):
        torch.save(content, tmp_path / "data.pt")
        inputs, found = read(tmp_path / "data.pt")
        assert torch.equal(inputs, x)
        assert found == labels
    for content, message in (
        ("text", "holds a str; as DATA"),
        ({"a": 1}, "holds no arrays"),
        (x.to_sparse(), r"'data' is a sparse .*to_dense\(\)"),
        (x > 0, "'data' holds booleans"),
        (x.to(torch.complex64), "'data' holds complex numbers"),
    ):
        torch.save(content, tmp_path / "data.pt")
        with pytest.raises(ValueError, match=rf"data\.pt.* {message}|data\.pt: {message}"):
            read(tmp_path / "data.pt")


def test_types_of_safetensors(tmp_path: Path) -> None:
    file = tmp_path / "data.safetensors"
    save_file({"x": torch.ones(3, 4, dtype=torch.bfloat16)}, file)
    assert read(file)[0].dtype == torch.bfloat16
    for tensor, message in (
        (torch.ones(3, 4) > 0, "booleans"),
        (torch.ones(3, 4, dtype=torch.complex64), "complex"),
    ):
        save_file({"x": tensor}, file)
        with pytest.raises(ValueError, match=rf"data\.safetensors: 'x' holds {message}"):
            read(file)
    head = b'{"x":{"dtype":"F32","shape":[1000000000,800],"data_offsets":[0,3200000000000]}}'
    file.write_bytes(struct.pack("<Q", len(head)) + head)
    with pytest.raises(ValueError, match=r"data\.safetensors cannot be read"):
        read(file)


def test_labels_out_of_the_range_of_the_network(project: Path, cli: Callable[..., Any]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    np.savez("many.npz", images=images, labels=np.arange(40) % 7)
    trained = cli("train", "nets.py:build", "many.npz", "--epochs", 1, "-o", "out")
    assert trained.exit_code == 2
    assert "many.npz: 'labels': number 5 of 40 is 5, but the network has the classes 0 to 4" in trained.stderr
    evaluated = cli("evaluate", "nets.py:build", "many.npz", "--weights", "net.pt", "--engines", "none")
    assert "accuracy was not measured (many.npz: 'labels'): batch 0: labels run from 0 to 6" in evaluated.stderr
