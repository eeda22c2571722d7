"""Import torchvision beside a PyTorch build that its compiled operators were not made for.

The torchvision wheel of the package registry is built against CUDA PyTorch. Beside a CPU build its operators do not
load, and the import fails with "operator torchvision::nms does not exist", though the networks and transforms need none
of them. Declaring the missing operators, without an implementation, is enough for the import; calling one still raises.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType

import torch

_MISSING = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width, "
    "int sampling_ratio, bool aligned) -> Tensor",
)
_declared: list[torch.library.Library] = []  # a declaration lives as long as its Library object


def import_torchvision() -> ModuleType:
    """The torchvision package, with its operators declared where they do not load.

    Returns:
        The imported package.

    Raises:
        ImportError: torchvision is not installed.
    """
    if importlib.util.find_spec("torchvision") is None:
        raise ImportError("torchvision is not installed; install it with pip install 'rankwise[vision]'")
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    for name in [name for name in sys.modules if name == "torchvision" or name.startswith("torchvision.")]:
        del sys.modules[name]  # what the failed import left behind
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _MISSING:
        if not hasattr(torch.ops.torchvision, schema.partition("(")[0]):
            library.define(schema)
    _declared.append(library)
    return importlib.import_module("torchvision")
