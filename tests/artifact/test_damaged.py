"""What was edited, cut off or swapped is refused, with what is wrong."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.artifact_nets import Net, edit

from rankwise.artifact import load


def first(**values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda content: content["structure"][0].update(values)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c.update(format_version=7), "format_version is 7, this rankwise reads up to 6; install"),
        (lambda c: c.update(unfused={"conv": []}), "'conv' of the stored network has layers in place of fused weights"),
        (lambda c: c.pop("aliases"), "the field 'aliases' is missing"),
        (lambda c: c.update(code="import os"), "unknown field 'code'"),
        (lambda c: c.update(tensors_bytes=True), "tensors_bytes must be a positive integer, not True"),
        (lambda c: c.update(structure={}), "structure must be a list of objects"),
        (lambda c: c.update(storage="pickle"), "storage must be one of plain, entropy, int8.entropy, not 'pickle'"),
        (lambda c: c.update(storage="entropy"), "coded: it must name exactly the stored tensors"),
        (lambda c: c.update(folds={"norm": "conv"}), "dense_fingerprint|fresh model lacks"),
        (lambda c: c.update(folds={"conv": "norm"}), "'conv' was folded into 'norm', the fresh model has no such pair"),
        (lambda c: c.update(plan=[]), "plan must be an object or null"),
        (lambda c: c.update(plan={"rows": 3}), "plan: rows must be a list"),
        (lambda c: c.update(aliases={"a": 3}), "aliases must be a map of strings"),
        (lambda c: c.update(aliases={"a": "b"}), "'a' must stand for a stored tensor"),
        (lambda c: c.update(channels_last=["norm.weight"]), "'norm.weight' is not a stored tensor of 4 or 5"),
        (lambda c: c.update(unsaved_buffers={"scale": "int8"}), "unsaved_buffers must be a map of dtypes"),
        (lambda c: c.update(dense_fingerprint="0"), "does not have the dense_fingerprint"),
        (first(format="__import__"), "unknown format '__import__'; the formats are"),
        (first(format="stt:slices=0"), "format 'stt:slices=0': slices is '0'; write for example slices=4"),
        (first(format="stt:slices=9999999"), "'conv' cannot have format 'stt:slices=9999999': .* divided by 9999999"),
        (first(format="tt:outputs=1000000x1000000"), "reads 1,000,000,000,000 outputs as 1000000 x 1000000, and here"),
        (first(format=["svd"]), r"structure\[0\] \(site 'conv'\): format must be a string"),
        (first(kind="lambda"), r"kind must be one of linear, .*, conv1d_hf, not 'lambda'"),
        (first(kind=[]), "kind must be one of"),
        (first(dtype="object"), "dtype must be one of float64, float32, float16, bfloat16"),
        (first(dtype="float16"), "'conv.0.weight' is torch.float32, the structure says float16"),
        (first(ranks=[10**12, 10**12]), r"tucker2 cannot have ranks \(1000000000000, 1000000000000\)"),
        (first(ranks=[5]), "tucker2 cannot have ranks"),
        (first(ranks=[]), "ranks must be a list of integers from 0"),
        (first(ranks=[5, -2]), "ranks must be a list of integers from 0"),
        (first(ranks=[5.0, 2]), "ranks must be a list of integers from 0"),
        (first(ranks=[6, 2]), r"tensor 'conv.1.weight' has shape \(5, 2, 3, 3\), its format and ranks need \(6, 2"),
        (first(format="svd", ranks=[5]), r"tensor 'conv.0.weight' has shape \(2, 3, 1, 1\)"),
        (first(bias=False), r"tensor 'conv.2.bias' has shape \(8,\), its format and ranks need None"),
        (first(bias="yes"), "bias must be true or false"),
        (first(names=[]), "names must be a list of module names"),
        (first(names=["../../etc/passwd"]), "does not have the dense_fingerprint"),
        (first(names=["conv", "conv"]), "site 'conv' is more than once"),
        (first(weight_shape=[8, 3, 10**9, 10**9]), "does not have the dense_fingerprint"),
        (lambda c: c["structure"][0].pop("kind"), r"structure\[0\] \(site 'conv'\): the field 'kind' is missing"),
    ],
)
def test_an_edited_manifest(change: Callable[[dict[str, Any]], Any], message: str, artifact: Path) -> None:
    edit(artifact, change)
    with pytest.raises(ValueError, match=message):
        load(Net(), artifact)


@pytest.mark.parametrize("keep", [0, 1, 100, -2])
def test_a_manifest_that_is_cut_off(keep: int, artifact: Path) -> None:
    content = (artifact / "rankwise.json").read_bytes()
    (artifact / "rankwise.json").write_bytes(content[:keep])
    with pytest.raises(ValueError, match=r"rankwise\.json: not valid JSON .* copy or save the artifact again"):
        load(Net(), artifact)


@pytest.mark.parametrize("content", [b"[]", b"3", b"[" * 100_000, b"\xff\xfe", b"null"])
def test_a_manifest_of_something_else(content: bytes, artifact: Path) -> None:
    (artifact / "rankwise.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"rankwise\.json: "):
        load(Net(), artifact)


@pytest.mark.parametrize("keep", [0, 7, 300, -1])
def test_tensors_that_are_cut_off(keep: int, artifact: Path) -> None:
    path = artifact / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model\.safetensors has .* bytes, rankwise\.json says .*: copy it again"):
        load(Net(), artifact)


@pytest.mark.parametrize("place", [0, 9, 2000, -1])
def test_a_flipped_byte(place: int, artifact: Path) -> None:
    path = artifact / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"the sha256 of .*model\.safetensors is not the one in rankwise\.json"):
        load(Net(), artifact)


def test_tensors_that_are_no_safetensors(artifact: Path) -> None:
    junk = b"\x80\x04 a pickle, perhaps"
    (artifact / "model.safetensors").write_bytes(junk)
    edit(artifact, lambda c: c.update(tensors_bytes=len(junk), tensors_sha256=hashlib.sha256(junk).hexdigest()))
    with pytest.raises(ValueError, match="is not a safetensors file"):
        load(Net(), artifact)


def test_missing_files(artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not an artifact: there is no"):
        load(Net(), tmp_path / "nowhere")
    (artifact / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"there is no .*model\.safetensors.*copy the whole directory"):
        load(Net(), artifact)
