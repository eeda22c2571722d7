"""Import torchvision beside a PyTorch build that its compiled operators were not made for.

The torchvision wheel on PyPI is built against CUDA PyTorch. Beside a CPU build its operators do not load, and the
import fails with "operator torchvision::nms does not exist", though networks and transforms need none of them.
Declaring the missing operators, without an implementation, is enough for the import; calling one still raises.

torchvision tries to load its operators, then imports the module that describes them. A finder of modules sees that
import, whoever asked for torchvision, and knows by then what is missing.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

import torch

_DESCRIBED_IN = "torchvision._meta_registrations"
_MISSING = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width, "
    "int sampling_ratio, bool aligned) -> Tensor",
)
_declared: list[torch.library.Library] = []  # a declaration lives as long as its Library object


class _Declarer(MetaPathFinder):
    """Finds nothing; declares missing operators just before the module that describes them is imported."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == _DESCRIBED_IN:
            library = torch.library.Library("torchvision", "FRAGMENT")
            for schema in _MISSING:
                if not hasattr(torch.ops.torchvision, schema.partition("(")[0]):
                    library.define(schema)
            _declared.append(library)
        return None


_declarer = _Declarer()


def allow_torchvision() -> None:
    """From now on `import torchvision` works, whoever does it, if it is installed; imports nothing itself."""
    if _declarer not in sys.meta_path:
        sys.meta_path.insert(0, _declarer)


def import_torchvision() -> ModuleType:
    """The torchvision package, whose operators are declared if they do not load.

    Raises:
        ImportError: if torchvision is not installed.
    """
    if importlib.util.find_spec("torchvision") is None:
        raise ImportError("torchvision is not installed; install it with pip install 'rankwise[vision]'")
    allow_torchvision()
    return importlib.import_module("torchvision")
