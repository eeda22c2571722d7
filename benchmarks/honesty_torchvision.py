"""Every torchvision family for the honesty benchmark: the smallest member, small pictures, random weights.

Layers whose fits would take minutes are left out: `include` names a part of the network that has all its kinds of
layers.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.honesty_case import Batch, Case, images
from rankwise.inputs.torchvision_shim import import_torchvision


def made(name: str, module: str = "torchvision.models", **settings: Any) -> Any:
    def build() -> nn.Module:
        import_torchvision()
        importlib.import_module("torchvision.extension")._has_ops = lambda: True
        _implement_nms()
        return getattr(importlib.import_module(module), name)(weights=None, **settings)

    return build


def _implement_nms() -> None:
    """Implement `nms` if the compiled one does not load."""
    if torch._C._dispatch_has_kernel_for_dispatch_key("torchvision::nms", "CPU"):
        return
    library = torch.library.Library("torchvision", "IMPL")
    library.impl("nms", _nms, "CPU")
    _kept.append(library)


def _nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    order, kept = scores.argsort(descending=True).tolist(), []
    x, y, right, below = boxes.unbind(1)
    areas = (right - x) * (below - y)
    while order:
        best, order = order[0], order[1:]
        kept.append(best)
        rest = torch.tensor(order, dtype=torch.long)
        wide = (torch.minimum(right[best], right[rest]) - torch.maximum(x[best], x[rest])).clamp_min(0)
        high = (torch.minimum(below[best], below[rest]) - torch.maximum(y[best], y[rest])).clamp_min(0)
        shared = wide * high
        order = rest[shared <= threshold * (areas[best] + areas[rest] - shared)].tolist()
    return torch.tensor(kept, dtype=torch.long)


_kept: list[torch.library.Library] = []


def _one(size: int, samples: int = 8) -> Batch:
    return images(samples, 3, size, size)


def _listed(size: int) -> Batch:
    """Batches for detectors: a list of pictures, as the only argument."""
    return lambda generator: ([images(1, 3, size, size)(generator)[0]],)


def _case(name: str, size: int, include: Any, keep: tuple[float, float] = (0.97, 0.94), **options: Any) -> Case:
    settings = options.pop("settings", {"num_classes": 10})
    module = options.pop("module", "torchvision.models")
    batch = options.pop("batch", None) or _one(size)
    return Case(
        name=options.pop("label", name),
        kind="torchvision",
        build=made(name, module, **settings),
        batch=batch,
        batches=options.pop("batches", 4),
        budgets=tuple({"macs": share} for share in keep),
        options={"include": include, "formats": ("svd", "spatial_svd")},
        quick=False,
        **options,
    )


AUX = {"num_classes": 10, "aux_logits": False, "init_weights": False}
SEGMENT = {"weights_backbone": None, "num_classes": 5}
CASES = (
    _case("alexnet", 128, ["features.3", "features.6"], batches=16),
    _case("vgg11", 32, ["features.3", "features.6", "features.8"], (0.95, 0.9), batches=16),
    _case("resnet18", 32, ["layer1.*", "layer2.*"], (0.9, 0.8), batches=16),
    _case("resnext50_32x4d", 32, ["layer1.*", "layer2.0.*"]),
    _case("wide_resnet50_2", 32, ["layer1.*"], batches=16),
    _case("densenet121", 32, ["features.denseblock1.*", "features.transition1.*"]),
    _case("squeezenet1_1", 48, ["features.[34567].*", "classifier.*"], (0.9, 0.85)),
    _case("inception_v3", 96, ["Mixed_5b.*", "Mixed_5c.*"], settings=AUX),
    _case("googlenet", 48, ["inception3a.*", "inception3b.*"], settings=AUX, batches=16),
    _case("mobilenet_v2", 32, ["features.?.*", "features.1?.*"], (0.95, 0.9)),
    _case("mobilenet_v3_small", 32, ["features.*"], (0.95, 0.9)),
    _case("mnasnet0_5", 32, ["layers.*"], (0.95, 0.9)),
    _case("shufflenet_v2_x0_5", 64, ["stage2.*", "stage3.*"], (0.95, 0.9), batches=16),
    _case("efficientnet_b0", 32, ["features.[1234].*"], (0.97, 0.95)),
    _case("efficientnet_v2_s", 32, ["features.[12].*"], (0.97, 0.95)),
    _case("regnet_y_400mf", 32, ["trunk_output.block[12].*"]),
    _case("regnet_x_400mf", 32, ["trunk_output.block[12].*"]),
    _case("convnext_tiny", 32, ["features.1.*", "features.3.0.*"], (0.98, 0.96)),
    _case(
        "vit_b_16",
        32,
        ["encoder.layers.encoder_layer_0.*"],
        (0.99, 0.98),
        settings={"num_classes": 10, "image_size": 32},
    ),
    _case("swin_t", 64, ["features.1.*"], (0.99, 0.98)),
    _case("swin_v2_t", 64, ["features.1.*"], (0.99, 0.98)),
    _case("maxvit_t", 224, ["blocks.0.layers.0.*"], (0.99, 0.985), batch=_one(224, 2), batches=6),
    _case(
        "lraspp_mobilenet_v3_large",
        64,
        ["backbone.*"],
        (0.97, 0.95),
        module="torchvision.models.segmentation",
        settings=SEGMENT,
    ),
    _case(
        "deeplabv3_mobilenet_v3_large",
        64,
        ["backbone.*"],
        (0.99, 0.98),
        module="torchvision.models.segmentation",
        settings=SEGMENT,
    ),
    _case(
        "fcn_resnet50",
        32,
        ["backbone.layer1.*"],
        (0.99, 0.98),
        module="torchvision.models.segmentation",
        settings=SEGMENT,
    ),
    _case(
        "ssdlite320_mobilenet_v3_large",
        64,
        ["backbone.features.*"],
        (0.97, 0.95),
        module="torchvision.models.detection",
        settings=SEGMENT,
        batch=_listed(64),
        batches=64,
    ),
    _case(
        "fcos_resnet50_fpn",
        64,
        ["backbone.body.layer1.*"],
        (0.995, 0.99),
        module="torchvision.models.detection",
        settings={**SEGMENT, "min_size": 64, "max_size": 64},
        batch=_listed(64),
        batches=16,
    ),
    _case("r3d_18", 16, ["layer1.*"], (0.97, 0.9), module="torchvision.models.video", batch=images(4, 3, 4, 16, 16)),
    _case(
        "s3d", 64, ["features.5.*", "features.6.*"], module="torchvision.models.video", batch=images(1, 3, 16, 224, 224)
    ),
)
