"""Layers in words, and example layers to show formats for."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..network.site import Call, Site

# The example layers, unless the user names one: outputs, inputs, kernel.
CONV = (64, 64, 3, 3)
LINEAR = (512, 512)


def layer_site(weight_shape: tuple[int, ...]) -> Site:
    """The site of an example layer without bias, called once, at one output position if it is a convolution."""
    size = (1, 1) if len(weight_shape) == 4 else ()
    return Site(
        name="layer",
        kind="conv2d" if size else "linear",
        weight_shape=weight_shape,
        has_bias=False,
        calls=(Call(rows=1, in_positions=1, in_size=size, out_size=size),),
    )


def kind_of(site: Site) -> str:
    """ "conv" or "linear"."""
    return "conv" if site.kind == "conv2d" else "linear"


def layer_name(site: Site) -> str:
    """Such as "3 x 3 convolution of 64 channels to 64"."""
    outputs, inputs, *kernel = site.weight_shape
    if kernel:
        return f"{kernel[0]} x {kernel[1]} convolution of {inputs} channels to {outputs}"
    return f"linear layer of {inputs} inputs to {outputs} outputs"


def dense_layer(site: Site) -> nn.Module:
    """A layer in the shape of an example site, without memory for its weight."""
    outputs, inputs, *kernel = site.weight_shape
    if kernel:
        return nn.Conv2d(inputs, outputs, (kernel[0], kernel[1]), bias=False, device="meta")
    return nn.Linear(inputs, outputs, bias=False, device="meta")


def layer_row(module: Any, factor: str, slices: int = 1) -> dict[str, Any]:
    """A layer of a chain; `slices` counts the parts of the channels that it treats alike, as it does samples."""
    (outputs, inputs, *_), groups = module.weight.shape, getattr(module, "groups", 1)
    sizes = {"inputs": inputs * groups, "outputs": outputs, "groups": groups, "slices": slices}
    return {"layer": layer_text(module), "factor": factor, **sizes, "params": module.weight.numel()}


def layer_text(module: Any) -> str:
    """Such as "1 x 1", "depthwise 3 x 1", "grouped Linear"."""
    kernel = getattr(module, "kernel_size", None)
    text = "Linear" if kernel is None else " x ".join(map(str, kernel))
    groups = getattr(module, "groups", 1)
    if groups == 1:
        return text
    depthwise = kernel is not None and groups == module.in_channels
    return ("depthwise " if depthwise else "grouped ") + text
