"""The parameters of a network at several moments of its training, read one parameter at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..running.guards import unwrap
from .space import moving

SUFFIX = ".safetensors"
Source = str | Path | Sequence[str | Path | Mapping[str, Tensor]]


class Checkpoints:
    """Checkpoints of one training, in their order.

    Files stay on disk: `rows` reads one parameter of all of them, so that the most memory is that of the largest
    parameter, as often as there are checkpoints.

    Args:
        model: the network that they are of; names and shapes are compared with its own.
        source: a folder that `Recorder` wrote, or files and state dicts in their order. What they hold beside the
            network's floating-point parameters, such as buffers, is left out.

    Raises:
        ValueError: for fewer than two checkpoints, or one that lacks a parameter, has another shape, or numbers that
            are not finite; the message names file and parameter.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> len(Checkpoints(model, [model.state_dict(), model.state_dict()]))
        2
    """

    def __init__(self, model: nn.Module, source: Source) -> None:
        self.shapes = {name: parameter.shape for name, parameter in moving(unwrap(model)).items()}
        if isinstance(source, (str, Path)):
            folder = Path(source)
            self.sources: Sequence[str | Path | Mapping[str, Tensor]] = paths_in(folder)
            where = f"{folder} holds"
        else:
            self.sources, where = list(source), "there are"
        if len(self.sources) < 2:
            raise ValueError(f"{where} {len(self.sources)} checkpoints; directions need at least two")
        for number, one in enumerate(self.sources):
            self._check(number, one)

    def __len__(self) -> int:
        return len(self.sources)

    def rows(self, name: str) -> Tensor:
        """One parameter of all checkpoints as rows, T x numbers, float64.

        Raises:
            ValueError: for numbers that are not finite.
        """
        rows_TN = torch.stack([self._tensor(one, name).double().flatten() for one in self.sources])
        finite = torch.isfinite(rows_TN).all(1)
        if not bool(finite.all()):
            number = int((~finite).nonzero()[0])
            raise ValueError(f"{self._told(number)} has numbers in {name!r} that are not finite; leave it out")
        return rows_TN

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Each checkpoint as a dict of tensors."""
        for one in self.sources:
            yield {name: self._tensor(one, name) for name in self.shapes}

    def _check(self, number: int, one: str | Path | Mapping[str, Tensor]) -> None:
        if isinstance(one, Mapping):
            shapes = {name: one[name].shape for name in self.shapes if name in one}
        else:
            try:
                with safe_open(one, framework="pt") as file:
                    held = set(file.keys())
                    shapes = {
                        name: torch.Size(file.get_slice(name).get_shape()) for name in self.shapes if name in held
                    }
            except (OSError, SafetensorError) as error:
                raise ValueError(f"{one} cannot be read as a checkpoint: {error}") from None
        for name, shape in self.shapes.items():
            if name not in shapes:
                raise ValueError(f"{self._told(number)} has no {name!r}; it is of another network than this one")
            if shapes[name] != shape:
                raise ValueError(
                    f"{self._told(number)} has {name!r} as {list(shapes[name])}, this network as {list(shape)}; "
                    "parameters must keep their shapes"
                )

    def _tensor(self, one: str | Path | Mapping[str, Tensor], name: str) -> Tensor:
        if isinstance(one, Mapping):
            return one[name].detach().cpu()
        with safe_open(one, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor

    def _told(self, number: int) -> str:
        one = self.sources[number]
        return f"checkpoint {number}" if isinstance(one, Mapping) else f"checkpoint {one}"


def paths_in(folder: Path) -> list[Path]:
    """Files that `Recorder` wrote, in their order.

    Raises:
        ValueError: if there is no such folder.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; record checkpoints with Recorder first")
    return sorted(path for path in folder.glob(f"*{SUFFIX}") if path.stem.isdecimal())
