"""What commands load: networks, samples to learn from, and the folder to write to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .options.data import LearnedFrom, Network
from .output import Output

if TYPE_CHECKING:
    from torch import nn

    from ..inputs.data import Data


def load_network(out: Output, named: Network, seed: int, folder: Path | None = None, fold: bool = False) -> nn.Module:
    """The dense network, its missing weights drawn by the seed; what cannot be saved is refused before the work."""
    import torch

    from ..running.state import state_of
    from ..surgery.folding import folded

    torch.manual_seed(seed)
    if folder is not None:
        check_folder(folder)
    with out.step("loading the network"):
        network = folded(named.load()) if fold else named.load()
        if folder is not None:
            state_of(network)  # raises for state that cannot be saved
    named.warn(out)
    return network


def with_layers(out: Output, network: nn.Module, example: Any) -> nn.Module:
    """The network with its fused projections as layers, which is said."""
    from ..surgery.unfusing import unfused, unfused_in

    with out.step("looking for fused projections"):
        made = unfused(network, example)
    if made is not network:
        names = list(unfused_in(made))
        more = f" and {len(names) - 2} more" if len(names) > 2 else ""
        out.say(f"fused projections are layers now: {', '.join(names[:2])}{more}")
    return made


def load_networks(
    out: Output,
    named: Network,
    artifact: Path | None,
    seed: int,
    *,
    folds: bool = False,
    folder: Path | None = None,
) -> dict[str, nn.Module]:
    """{"dense": ..., "compressed": ...}, the latter only with an artifact; another one will be written to `folder`.

    With `folds`, the dense network's batch norms are folded as the artifact's are, so that folding is not a gain.
    """
    import torch

    from ..artifact import read
    from ..inputs.models import load_artifact
    from ..surgery.folding import folded

    torch.manual_seed(seed)
    if folder is not None:
        check_folder(folder)
    with out.step("loading"):
        networks = {"dense": named.load()}
        if artifact is not None:
            networks["compressed"] = load_artifact(named.model, artifact)
            if folds and read(artifact).folds:
                networks["dense"] = folded(networks["dense"])
    return networks


def check_folder(folder: Path) -> None:
    """Refuse a folder that an artifact cannot be written to, before any long work begins."""
    from ..artifact import MANIFEST

    if folder.is_file():
        raise ValueError(f"-o {folder} is a file; name a folder for the artifact")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST).is_file():
        raise ValueError(f"-o {folder} is not empty and holds no {MANIFEST}; name a new or an empty folder")


def load_samples(out: Output, data: LearnedFrom, network: nn.Module, model: str, seed: int) -> tuple[Data, Data]:
    """The samples to learn from, and those to measure on: the same without `--test`."""
    with out.step("reading the data"):
        source = data.load(data.data, network, model, seed=seed, samples=data.samples)
        if data.test is None:
            return source, source
        return source, data.load(data.test, network, model, seed=seed, split="test")
