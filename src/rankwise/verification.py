"""Check that a file of Rankwise is whole, without its network, and without running anything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from .artifact import MANIFEST, WEIGHTS
from .artifact.opening import opened
from .artifact.restore import decoded, outlined
from .files import cut, is_temporary
from .files.tensors import tensors_of
from .plan import Plan
from .statistics import Statistics
from .training.checkpoint import read_checkpoint
from .work import MANIFEST as WORK
from .work import Work


@dataclass(frozen=True, kw_only=True)
class Verified:
    """A whole file or folder.

    Attributes:
        kind: such as "artifact".
        facts: what was found, a line each.
        notes: what a user should know besides.
    """

    kind: str
    facts: tuple[str, ...]
    notes: tuple[str, ...] = ()


def verify(path: str | Path) -> Verified:
    """Check an artifact, statistics, a plan or a checkpoint against its own checksums and fields.

    For an artifact: the checksum of its manifest, the sha256 of its tensors, every field, its structure against the
    fingerprint, and that each coded tensor can be decoded. Its network is not needed; `load` compares that.

    Raises:
        ValueError: naming what is missing, damaged, or not written by Rankwise.

    Example:
        >>> verify("out/").kind  # doctest: +SKIP
        'artifact'
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"there is no {path}; name an artifact, statistics, a plan or a checkpoint")
    if path.is_dir():
        return _work(path) if (path / WORK).is_file() else _artifact(path)
    kinds: dict[str, Callable[[Path], Verified]] = {".yaml": _plan, ".yml": _plan, ".safetensors": _statistics}
    if path.name in (MANIFEST, WEIGHTS):
        return _artifact(path.parent)
    return kinds.get(path.suffix, _any)(path)


def _artifact(path: Path) -> Verified:
    artifact = opened(path)
    manifest = artifact.manifest
    try:
        stored = tensors_of(artifact.tensors)
        outlined(manifest, stored)
        tensors = decoded(manifest, stored)
    except ValueError as error:
        raise ValueError(cut(f"{path / WEIGHTS}: {error}")) from error
    numbers = sum(tensor.numel() for tensor in tensors.values())
    sealed = "its checksum is right" if manifest.format_version >= 4 else "it has no checksum, as before version 4"
    facts = (
        f"{artifact.file}: version {manifest.format_version}, {sealed}",
        f"{WEIGHTS}: {len(artifact.tensors):,} bytes, their sha256 is right; {len(tensors):,} tensors, {numbers:,} "
        f"numbers, stored {manifest.storage}",
        f"{len(manifest.structure):,} factorised layers of {manifest.provenance.get('model', 'a network')}, written "
        f"{manifest.provenance.get('created', 'some time')}",
    )
    notes = []
    odd = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not torch.isfinite(tensor).all()]
    if odd:
        notes.append(f"{len(odd)} tensors hold numbers that are not finite, first {odd[0]!r}")
    if artifact.file != MANIFEST:
        notes.append(
            f"a run was killed while it replaced the artifact; it is whole, and the next save makes {MANIFEST}"
        )
    if left := [entry.name for entry in path.iterdir() if is_temporary(entry.name)]:
        notes.append(f"{left[0]} belongs to a run that is writing or was killed; the next save removes leftovers")
    return Verified(kind="artifact", facts=facts, notes=tuple(notes))


def _work(path: Path) -> Verified:
    parts = len(Work(path, resume=True).files)
    return Verified(kind="checkpoint of a compression", facts=(f"{parts:,} parts, the sha256 of each is right",))


def _plan(path: Path) -> Verified:
    plan = Plan.load(path)
    fact = f"{len(plan):,} sites, {len(plan.factorised):,} of them factorised; metric {plan.metric}, rule {plan.rule}"
    return Verified(kind="plan", facts=(fact,))


def _statistics(path: Path) -> Verified:
    stats = Statistics.load(path)
    return Verified(kind="statistics", facts=(f"{len(stats):,} sites, {stats.samples:,} samples, the sha256 is right",))


def _any(path: Path) -> Verified:
    """A file whose name does not show its kind."""
    problems = []
    for kind, check in (("statistics", _statistics), ("a training's checkpoint", _checkpoint)):
        try:
            return check(path)
        except ValueError as problem:
            problems.append(f"as {kind}: {problem}")
    raise ValueError(cut(f"{path} was not written by Rankwise, or is damaged. {'. '.join(problems)}"))


def _checkpoint(path: Path) -> Verified:
    state = read_checkpoint(path)
    step = f", step {state['step']:,}" if isinstance(state.get("step"), int) else ""
    return Verified(kind="checkpoint of a training", facts=(f"its sha256 is right{step}",))
