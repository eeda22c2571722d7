"""Record the parameters of a network while it trains, one safetensors file each time."""

from __future__ import annotations

import shutil
from pathlib import Path

from torch import nn

from ..files import make_folder, replacing
from ..files.tensors import write_tensors
from ..running.guards import unwrap
from .checkpoints import SUFFIX, paths_in
from .space import moving


class Recorder:
    """Each call writes the network's floating-point parameters to the next file of a folder.

    Buffers, such as the statistics of batch norms, are not written: a subspace holds parameters alone. Calls go on
    after the files that are there, so that a training that is resumed adds to its own record. In a training of several
    processes let the first one record.

    Args:
        model: the network.
        folder: made if it is not there.
        most: number of files after which a call raises an error: a loop that records each step fills a disk.

    Attributes:
        bytes: size of one checkpoint.

    Raises:
        ValueError: if the network has no floating-point parameters.

    Example:
        >>> import tempfile
        >>> model = nn.Linear(2, 1)
        >>> recorder = Recorder(model, tempfile.mkdtemp())
        >>> [recorder().name for _ in range(2)]
        ['00000.safetensors', '00001.safetensors']
    """

    def __init__(self, model: nn.Module, folder: str | Path, *, most: int = 1000) -> None:
        self.model, self.folder, self.most = unwrap(model), Path(folder), most
        self.bytes = sum(parameter.nbytes for parameter in moving(self.model).values())
        make_folder(self.folder)
        self.count = len(paths_in(self.folder))

    def __call__(self) -> Path:
        """Write a checkpoint, as a whole.

        Raises:
            ValueError: for one checkpoint more than `most`.
            OSError: if it cannot be written, or the disk has no room for it.
        """
        if self.count >= self.most:
            raise ValueError(
                f"{self.folder} holds {self.count} checkpoints, the most that were asked for; record less often"
            )
        free = shutil.disk_usage(self.folder).free
        if free < self.bytes:
            raise OSError(
                f"a checkpoint takes {self.bytes / 1e6:.0f} MB, {self.folder} has room for {free / 1e6:.0f} MB"
            )
        path = self.folder / f"{self.count:05d}{SUFFIX}"
        with replacing(path) as new:
            write_tensors(moving(self.model), new)
        self.count += 1
        return path
