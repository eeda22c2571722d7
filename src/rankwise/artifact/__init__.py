"""Save a compressed network as a directory of `rankwise.json` and `model.safetensors`; load it onto a fresh model."""

from __future__ import annotations

import logging
import platform
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..factorisation.check import check_loaded
from ..files import cut, sha256_of
from ..files.tensors import tensors_of, write_tensors
from ..names import STORAGES
from ..plan import Plan
from ..running.copying import copied
from ..running.exclusive import exclusive
from ..running.guards import unwrap
from ..running.seen import Seen
from ..running.state import state_of
from ..running.verbs import verb
from ..surgery.folding import folds_of
from ..surgery.unfusing import unfused_in
from .coding import decode, encode
from .directory import replacing
from .manifest import Manifest, StoredChain, fingerprint, outline
from .opening import MANIFEST, NEXT, WEIGHTS, manifest_of, opened
from .restore import restored
from .structure import chains_of, channels_last_of, unsaved_buffers_of, weights_of

logger = logging.getLogger("rankwise")


@exclusive
def save(
    model: nn.Module,
    directory: str | Path,
    *,
    plan: Plan | None = None,
    figures: Mapping[str, Any] | None = None,
    storage: str = "plain",
    seen: Mapping[str, Seen] | None = None,
) -> Path:
    """Write a compressed network to a directory, all of it or nothing.

    An existing artifact is replaced as a whole; other files in the directory stay.

    Args:
        model: the compressed network. Its whole state dict is stored, tied tensors once.
        directory: a new or empty directory, or an artifact.
        plan: the plan it was made by, to be stored.
        figures: measured figures to be stored: anything that JSON can hold.
        seen: samples that it was made from, by use, such as {"calibration": Seen.of(batches)}. Short digests are
            stored, by which `rankwise evaluate` recognises them.
        storage: "plain"; "entropy", smaller files that load with the same bits; "int8+entropy", weights rounded to 8
            bits first, one scale for each entry of their first dimension. The rounding error is logged and stored.
            Biases, norms, buffers and indices keep their bits.

    Raises:
        ValueError: if the model or the figures cannot be stored, the directory holds something else, or the storage is
            unknown.
        OSError: naming the directory, if it cannot be written; an old artifact is unchanged.

    Example:
        >>> save(small, "out/", plan=plan, figures={"top1": 91.2})  # doctest: +SKIP
        PosixPath('out')
    """
    _check_storage(storage)
    model, directory = unwrap(model), Path(directory)
    state, structure = state_of(model), chains_of(model)
    dense = {name: chain.dense for chain in structure for name in chain.names}
    with replacing(directory) as (weights, text):
        write_tensors(state.tensors, weights)
        coding = {} if storage == "plain" else _code_tensors(model, state.tensors, weights, storage)
        manifest = Manifest(
            structure=structure,
            dense_fingerprint=fingerprint(outline(state.shapes(), dense)),
            tensors_bytes=weights.stat().st_size,
            tensors_sha256=sha256_of(weights),
            aliases=state.aliases,
            channels_last=channels_last_of(state.tensors),
            unsaved_buffers=unsaved_buffers_of(model),
            plan=plan,
            figures=dict(figures or {}),
            provenance=_provenance(model),
            folds=folds_of(model),
            unfused=unfused_in(model),
            seen=dict(seen or {}),
            **coding,
        )
        text.write_text(manifest.to_json(), encoding="utf-8")
    return directory


@verb
def load(fresh_model: nn.Module, directory: str | Path, *, example: Any = None) -> nn.Module:
    """Load the compressed network that `save` wrote.

    Nothing in the directory is executed or unpickled. Everything but tensors (strides, activations, the forward itself)
    comes from `fresh_model`.

    Args:
        fresh_model: the dense architecture, with any values; it is not changed.
        example: an input, as for `find`. With it the result is run once, and refused if the architecture treats its
            factorised layers differently from the saved one.

    Returns:
        A copy of `fresh_model` with the stored layers, tensors and dtypes, on the device of `fresh_model` and with its
        training flags.

    Raises:
        ValueError: if the artifact is missing, damaged, of another version, or made from another network; the message
            says what differs.

    Example:
        >>> small = load(resnet18(), "out/")  # doctest: +SKIP
    """
    artifact = opened(Path(directory))
    try:
        fresh_model = unwrap(fresh_model)
        made = restored(fresh_model, artifact.manifest, tensors_of(artifact.tensors))
        if example is not None:
            check_loaded(fresh_model, made, example)
        return made
    except ValueError as error:
        raise ValueError(cut(f"cannot load {directory}: {error}")) from error


@exclusive
def as_stored(model: nn.Module, storage: str) -> nn.Module:
    """The network that `load` returns after `save(model, ..., storage=storage)`.

    Args:
        model: a compressed network; it is not changed.
        storage: as for `save`.

    Returns:
        The model itself if no number changes, else a copy with rounded weights.

    Raises:
        ValueError: if the storage is unknown, or the model cannot be stored in it.

    Example:
        >>> layer = as_stored(nn.Linear(8, 8), "int8+entropy")
        >>> len(layer.weight[0].unique()) <= 255
        True
    """
    _check_storage(storage)
    if storage != "int8+entropy":
        return model
    made = copied(unwrap(model))
    rounds = weights_of(made)
    tensors = {name: tensor for name, tensor in state_of(made).tensors.items() if name in rounds}
    stored, coded, _ = encode(tensors, rounds)
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(decode(name, stored[name], coded[name]))
    return made


def read(directory: str | Path) -> Manifest:
    """The manifest of an artifact: structure, plan, figures, provenance. No tensor is read.

    Raises:
        ValueError: naming the file and the field that is missing or wrong.

    Example:
        >>> read("out/").figures  # doctest: +SKIP
        {'top1': 91.2}
    """
    return manifest_of(Path(directory))


def stored_bytes(directory: str | Path) -> int:
    """Bytes of the files of an artifact: `rankwise.json` and `model.safetensors`.

    Example:
        >>> stored_bytes("out/")  # doctest: +SKIP
        167225
    """
    where = Path(directory)
    manifest = MANIFEST if (where / MANIFEST).is_file() else NEXT
    return sum((where / name).stat().st_size for name in (manifest, WEIGHTS))


def _check_storage(storage: str) -> None:
    if storage not in STORAGES:
        raise ValueError(f"storage is {storage!r}; it must be one of {', '.join(STORAGES)}")


def _code_tensors(model: nn.Module, tensors: Mapping[str, Tensor], path: Path, storage: str) -> dict[str, Any]:
    """Replace the tensors' file by a coded one; the manifest's fields about it."""
    plain_bytes = path.stat().st_size
    stored, coded, errors = encode(tensors, weights_of(model) if storage == "int8+entropy" else ())
    write_tensors(stored, path)
    now = path.stat().st_size
    text = f"{plain_bytes:,} bytes of tensors became {now:,} ({now / plain_bytes:.1%}) by storage {storage!r}"
    if errors:
        worst = max(errors, key=errors.__getitem__)
        text += f"; weights were rounded to 8 bits, the largest relative error is {errors[worst]:.2%} in {worst}"
    logger.info(text)
    largest = max(errors.values()) if errors else None
    return {"storage": storage, "coded": coded, "plain_bytes": plain_bytes, "largest_error": largest}


def _provenance(model: nn.Module) -> dict[str, str]:
    return {
        "rankwise": version("rankwise"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "model": f"{type(model).__module__}.{type(model).__qualname__}",
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


__all__ = ["MANIFEST", "WEIGHTS", "Manifest", "StoredChain", "as_stored", "load", "read", "save", "stored_bytes"]
