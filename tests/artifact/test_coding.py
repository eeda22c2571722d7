"""Coded storage: exact bits back, known rounding, and nothing that a file can make large."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from support.artifact_nets import Net, Tied, assert_same, images
from torch import nn

from rankwise.artifact import as_stored, load, read, save
from rankwise.artifact.coding import _LZMA, CODERS, Coded, coded_from, coded_text, decode, encode, is_coded
from rankwise.running.state import DTYPES


@pytest.mark.parametrize("dtype", DTYPES.values())
@pytest.mark.parametrize("shape", [(), (0, 3), (7,), (5, 4, 3)])
def test_every_bit_comes_back(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    count = torch.empty(shape, dtype=dtype).nbytes
    bits = torch.randint(
        0, 2 if dtype == torch.bool else 256, (count,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    tensor = bits.view(dtype).reshape(shape) if count else torch.empty(shape, dtype=dtype)
    stored, coded, errors = encode({"it": tensor}, ())
    back = decode("it", stored["it"], coded["it"])
    assert (back.dtype, back.shape, errors) == (dtype, tensor.shape, {})
    assert bytes(back.reshape(-1).view(torch.uint8).numpy()) == bytes(bits.numpy())


@given(st.binary(min_size=4, max_size=400).map(lambda data: data[: len(data) // 4 * 4]))
def test_any_bytes(data: bytes) -> None:
    tensor = torch.frombuffer(bytearray(data), dtype=torch.float32)
    stored, coded, _ = encode({"it": tensor}, ())
    assert decode("it", stored["it"], coded["it"]).numpy().tobytes() == data


def test_weights_of_one_scale_get_smaller() -> None:
    weight = torch.randn(200, 200, generator=torch.Generator().manual_seed(0))
    bytes_of = {}
    for storage, rounds in (("entropy", ()), ("int8+entropy", ("weight",))):
        stored, coded, errors = encode({"weight": weight}, rounds)
        bytes_of[storage] = len(stored["weight"])
        assert {coder for coder, _ in coded["weight"].planes} <= set(CODERS)
    # the byte of sign and exponent has about 3 of 8 bits of entropy; rows in steps of 2.8 sigma / 127 have 7.5
    assert bytes_of["entropy"] < 0.9 * weight.nbytes
    assert bytes_of["int8+entropy"] < 0.245 * weight.nbytes
    assert 0.002 < errors["weight"] < 0.01


def test_eight_bits_round_to_half_a_step() -> None:
    weight = torch.tensor([[127.0, 1.4, -1.6], [0.0, 0.0, 0.0], [-2.54, 0.02, 0.0]])
    stored, coded, errors = encode({"weight": weight, "bias": weight[0]}, ["weight"])
    expected = torch.tensor([[127.0, 1.0, -2.0], [0.0, 0.0, 0.0], [-2.54, 0.02, 0.0]])
    torch.testing.assert_close(decode("weight", stored["weight"], coded["weight"]), expected)
    assert torch.equal(decode("bias", stored["bias"], coded["bias"]), weight[0])
    assert errors.keys() == {"weight"}
    with pytest.raises(ValueError, match=r"'weight' is not finite in float32, .* take storage='entropy'"):
        encode({"weight": weight / 0}, ["weight"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_artifact_with_the_same_bits(
    dtype: torch.dtype, small: nn.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    small = small.to(dtype)
    with caplog.at_level(logging.INFO, "rankwise"):
        save(small, tmp_path / "out", storage="entropy")
    assert "bytes of tensors became" in caplog.text
    assert_same(load(Net().eval(), tmp_path / "out"), small, images(dtype))
    manifest = read(tmp_path / "out")
    assert (manifest.storage, manifest.largest_error) == ("entropy", None)
    assert manifest.tensors_bytes == (tmp_path / "out" / "model.safetensors").stat().st_size


def test_an_artifact_in_eight_bits(small: nn.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "rankwise"):
        save(small, tmp_path / "out", storage="int8+entropy")
    assert "weights were rounded to 8 bits, the largest relative error is 0." in caplog.text
    loaded = load(Net().eval(), tmp_path / "out")
    error = read(tmp_path / "out").largest_error
    assert error is not None
    assert 0 < error < 0.01
    for name, value in small.state_dict().items():
        gap = (loaded.state_dict()[name] - value).float().norm()
        assert gap <= (error * value.float().norm() * 1.0001 if value.dim() > 1 else 0)


class Several(nn.Module):
    """A weight, and all that has as many dimensions and is none."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.norm = nn.Linear(6, 4), nn.LayerNorm((3, 4))
        self.bias = nn.Parameter(torch.empty(3, 4))
        self.register_buffer("mean", torch.empty(3, 4))
        self.register_buffer("places", torch.arange(12, dtype=torch.int32).reshape(3, 4))
        self.whole = nn.Parameter(torch.tensor(0.5))
        self.none = nn.Parameter(torch.empty(0, 3))


def test_only_weights_are_rounded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Several()
    for tensor in model.state_dict().values():
        if tensor.is_floating_point() and tensor.dim():
            tensor.normal_()
    save(model, tmp_path / "out", storage="int8+entropy")
    loaded = load(Several(), tmp_path / "out").state_dict()
    changed = [name for name, value in model.state_dict().items() if not torch.equal(loaded[name], value)]
    assert changed == ["mix.weight"]
    rounded = as_stored(model, "int8+entropy").state_dict()
    assert all(torch.equal(rounded[name], value) for name, value in loaded.items())


def test_tied_tensors_are_stored_once(tmp_path: Path) -> None:
    model = Tied()
    save(model, tmp_path / "out", storage="entropy")
    tokens = torch.arange(11)[None]
    assert_same(load(Tied(), tmp_path / "out"), model, tokens)


def test_an_unknown_storage(small: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="storage is 'zip'; it must be one of plain, entropy"):
        save(small, tmp_path / "out", storage="zip")
    with pytest.raises(ValueError, match="storage is 'zip'"):
        as_stored(small, "zip")
    assert list(tmp_path.iterdir()) == []


def test_artifacts_of_version_1_are_read(small: nn.Module, artifact: Path) -> None:
    content = json.loads((artifact / "rankwise.json").read_text())
    for name in ("checksum", "seen", "storage", "coded", "folds", "unfused", "plain_bytes", "largest_error"):
        del content[name]
    (artifact / "rankwise.json").write_text(json.dumps(content | {"format_version": 1}))
    assert_same(load(Net().eval(), artifact), small, images())


def test_artifacts_of_version_2_are_read(small: nn.Module, coded: Path) -> None:
    craft(coded, {}, lambda _: None)
    assert read(coded).format_version == 2
    assert_same(load(Net().eval(), coded), small, images())


@pytest.mark.parametrize(
    "shape, planes, int8, line",
    [
        ((16, 3, 3, 3), [("raw", 432), *[("raw", 16)] * 4], True, "float32 16x3x3x3 int8"),
        ((16, 3, 3, 3), [("lzma", 40), ("raw", 16), *[("zlib", 9)] * 3], True,
         "float32 16x3x3x3 int8 lzma:40 raw zlib:9 zlib:9 zlib:9"),
        ((), [("raw", 1)] * 4, False, "float32 scalar"),
        ((0, 3), [("raw", 0)] * 4, False, "float32 0x3"),
        ((1,), [("zlib", 1), *[("raw", 1)] * 3], False, "float32 1 zlib:1 raw raw raw"),
    ],
)  # fmt: skip
def test_a_coded_tensor_is_one_line(
    shape: tuple[int, ...], planes: list[tuple[str, int]], int8: bool, line: str
) -> None:
    it = Coded(dtype="float32", shape=shape, planes=tuple(planes), int8=int8)
    assert str(it) == line
    assert is_coded(coded_text(line))
    assert coded_from(coded_text(line)) == it


@pytest.mark.parametrize(
    "line",
    [
        *("", "float32", "object 3", "float32 3 raw", "float32 3 raw raw raw zlib:x", "float32 -3", "float32 3x"),
        *(7, None, [], "float32 scalar int8", "float32 1" + "0" * 5000, "float32 " + "x".join(["1048576"] * 100_000)),
        *("float32 3 raw raw raw pickle:3", "float32 3 raw raw raw zlib:-3", "float32 4 int8"),
    ],
)
def test_what_is_no_such_line(line: Any) -> None:
    assert not is_coded(coded_text(line))


# --- crafted files: the hash is right, the content is not


@pytest.fixture
def coded(small: nn.Module, tmp_path: Path) -> Path:
    return save(small, tmp_path / "out", storage="entropy")


def craft(artifact: Path, bytes_of: dict[str, bytes], change: Callable[[dict[str, Any]], Any]) -> None:
    tensors = load_file(artifact / "model.safetensors")
    tensors |= {name: torch.frombuffer(bytearray(data), dtype=torch.uint8) for name, data in bytes_of.items()}
    save_file(tensors, artifact / "model.safetensors")
    data = (artifact / "model.safetensors").read_bytes()
    content = json.loads((artifact / "rankwise.json").read_text())
    content |= {"tensors_bytes": len(data), "tensors_sha256": hashlib.sha256(data).hexdigest()}
    # as version 2 wrote them: every field of a coded tensor can be wrong by itself
    content["coded"] = {name: coded_text(text) for name, text in content["coded"].items()}
    change(content["coded"])
    del content["checksum"]
    (artifact / "rankwise.json").write_text(json.dumps(content | {"format_version": 2}))


def planes(name: str, *pairs: tuple[str, int]) -> Callable[[dict[str, Any]], Any]:
    return lambda coded: coded[name].update(planes=[list(pair) for pair in pairs])


BOMBS = {"zlib": zlib.compress(bytes(50_000_000)), "lzma": lzma.compress(bytes(50_000_000), **_LZMA)}


@pytest.mark.parametrize("coder", ["zlib", "lzma"])
@pytest.mark.parametrize("what", ["bomb", "truncated", "short", "appended", "junk"])
def test_streams_that_are_not_what_the_shape_needs(coder: str, what: str, coded: Path) -> None:
    """`norm.weight` has 8 numbers, so each of its planes has 8 bytes."""
    compress = zlib.compress if coder == "zlib" else lambda plane: lzma.compress(plane, **_LZMA)
    data = {
        "bomb": BOMBS[coder],
        "truncated": compress(bytes(range(8)))[:-1],
        "short": compress(bytes(7)),
        "appended": compress(bytes(8)) + b"more",
        "junk": b"\xff\xfe junk",
    }[what]
    craft(coded, {"norm.weight": data + bytes(24)}, planes("norm.weight", (coder, len(data)), *[("raw", 8)] * 3))
    with pytest.raises(
        ValueError, match=rf"tensor 'norm.weight': its {coder} stream (does not hold the 8 b|is damaged)"
    ):
        load(Net(), coded)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c["norm.weight"].update(shape=[10**12]), "does not have the dense_fingerprint"),
        (lambda c: c["norm.weight"].update(shape=[10**9, 10**9]), "coded must be a map of dtype, shape"),
        # strides overflow although there are no numbers
        (lambda c: c["norm.weight"].update(shape=[0, 2**47, 2**47]), "coded must be a map of dtype, shape"),
        # the product of all sides would take minutes
        (lambda c: c["norm.weight"].update(shape=[2**40] * 300_000), "coded must be a map of dtype, shape"),
        (lambda c: c["norm.num_batches_tracked"].update(int8=True, shape=[1, 1]), "coded must be a map of dtype"),
        (lambda c: c["norm.weight"].update(shape=[9]), "does not have the dense_fingerprint"),
        (lambda c: c["conv.0.weight"].update(shape=[10**6, 3, 1, 1]), "tensor 'conv.0.weight' has shape"),
        (lambda c: c["norm.weight"].update(dtype="object"), "coded must be a map of dtype"),
        (lambda c: c["norm.weight"].update(dtype="float64"), "its stored bytes do not match the manifest"),
        (lambda c: c["norm.weight"].update(int8=True), "coded must be a map of dtype"),
        (lambda c: c["norm.weight"].update(code="x"), "coded must be a map of dtype"),
        (planes("norm.weight", ("pickle", 8)), "coded must be a map of dtype"),
        (planes("norm.weight", ("raw", -8)), "coded must be a map of dtype"),
        (planes("norm.weight", *[("raw", 10**9)] * 4), "its stored bytes do not match the manifest"),
        (planes("norm.weight", *[("raw", 7)] * 4), "its stored bytes do not match the manifest"),
        (planes("norm.weight", *[("raw", side) for side in (7, 9, 8, 8)]), "its raw stream does not hold the 8 bytes"),
        (lambda c: c.pop("norm.weight"), "coded: it must name exactly the stored tensors"),
        (lambda c: c.update(more=c["norm.weight"]), "coded: it must name exactly the stored tensors"),
    ],
)
def test_a_crafted_manifest(change: Callable[[dict[str, Any]], Any], message: str, coded: Path) -> None:
    craft(coded, {}, change)
    with pytest.raises(ValueError, match=message):
        load(Net(), coded)


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_scales_that_are_not_finite(scale: float) -> None:
    weight = torch.ones(2, 3)
    _, coded, _ = encode({"weight": weight}, ["weight"])
    numbers, planes = torch.ones(6, dtype=torch.uint8), torch.tensor([1.0, scale]).view(torch.uint8).reshape(2, 4).T
    crafted = dataclasses.replace(coded["weight"], planes=(("raw", 6), *[("raw", 2)] * 4))
    with pytest.raises(ValueError, match="'weight': a scale of its 8-bit numbers is not finite"):
        decode("weight", torch.cat([numbers, planes.reshape(-1)]), crafted)


@pytest.mark.parametrize("keep", [0, 7, 300, -1])
def test_coded_tensors_that_are_cut_off(keep: int, coded: Path) -> None:
    path = coded / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model\.safetensors has .* bytes, rankwise\.json says .*: copy it again"):
        load(Net(), coded)
