"""Import torchvision beside a PyTorch build that its compiled operators were not made for.

The torchvision wheel of the package registry is built against CUDA PyTorch. Beside a CPU build its operators do not
load, and the import fails with "operator torchvision::nms does not exist", though the networks and transforms need none
of them. Declaring the missing operators, without an implementation, is enough for the import; calling one still raises.

torchvision first tries to load its operators and then imports the module that describes them: that is the moment at
which a finder of modules knows what is missing, whoever imports torchvision.
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
    """Finds nothing; declares the operators that are missing before the module that describes them is imported."""

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
    """From now on `import torchvision` works where it is installed, whoever does it; imports nothing itself."""
    if _declarer not in sys.meta_path:
        sys.meta_path.insert(0, _declarer)


def import_torchvision() -> ModuleType:
    """The torchvision package, with its operators declared where they do not load.

    Returns:
        The imported package.

    Raises:
        ImportError: torchvision is not installed.
    """
    if importlib.util.find_spec("torchvision") is None:
        raise ImportError("torchvision is not installed; install it with pip install 'rankwise[vision]'")
    allow_torchvision()
    return importlib.import_module("torchvision")
