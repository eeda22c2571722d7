"""Write a chain of plain layers as ONNX, node by node: in milliseconds, where an exporter takes seconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..formats import LowRank
from ..formats.convolution import PLAIN, TRANSPOSED
from ..layers.kinds import is_transposed, site_kind
from ..layers.modules import Arrange, Bias, TransposedLinear

# The oldest operator set with these operators in this form.
OPSET = 17
_CHAINS = (nn.Sequential.forward, LowRank.forward)


def chain_file(module: nn.Module, x: Tensor) -> bytes | None:
    """The ONNX file of a layer or of plain layers in a row, for inputs like x; None if it takes an exporter.

    Example:
        >>> chain_file(nn.Linear(4, 2), torch.zeros(1, 4)) is None, chain_file(nn.LSTM(4, 2), torch.zeros(1, 4)) is None
        (False, True)
    """
    parents = [each for each in module.modules() if list(each.children())]
    layers = [each for each in module.modules() if not list(each.children())]
    if any(type(each).forward not in _CHAINS for each in parents) or any(_writer(each) is None for each in layers):
        return None
    if x.dtype not in _types():
        return None
    graph = _Graph()
    value, first = "x", x
    with torch.no_grad():
        for layer in layers:
            write = _writer(layer)
            assert write is not None
            y = layer(x)
            value, x = write(graph, layer, value, x, y), y
    return graph.file(value, first, x)


def _types() -> dict[torch.dtype, int]:
    from onnx import TensorProto

    return {
        torch.float32: TensorProto.FLOAT,
        torch.float64: TensorProto.DOUBLE,
        torch.float16: TensorProto.FLOAT16,
        torch.int64: TensorProto.INT64,
        torch.int32: TensorProto.INT32,
    }


class _Graph:
    """Nodes and constants of a growing file."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, values: Tensor) -> str:
        """Add a constant; its name."""
        from onnx import numpy_helper

        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(values.detach().cpu().contiguous().numpy(), name))
        return name

    def node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add a node; the name of its output."""
        from onnx import helper

        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], **attributes))
        return name

    def file(self, value: str, x: Tensor, y: Tensor) -> bytes:
        """The file with a value as its output, for an input x and an output y."""
        from onnx import helper

        ends = [
            helper.make_tensor_value_info(name, _types()[tensor.dtype], list(tensor.shape))
            for name, tensor in (("x", x), (value, y))
        ]
        graph = helper.make_graph(self.nodes, "chain", ends[:1], ends[1:], self.constants)
        opset = [helper.make_opsetid("", OPSET)]
        return bytes(helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString())


Writer = Callable[[_Graph, Any, str, Tensor, Tensor], str]


def _writer(layer: nn.Module) -> Writer | None:
    """The writer of a layer, None if there is none."""
    if site_kind(layer) == "conv1d_hf":
        return _matmul
    if type(layer) in (*PLAIN, *TRANSPOSED) and getattr(layer, "padding_mode", "zeros") == "zeros":
        return _convolution
    return _WRITERS.get(type(layer))


def _linear(graph: _Graph, layer: Any, value: str, x: Tensor, y: Tensor) -> str:
    if x.dim() == 2:
        bias = [] if layer.bias is None else [graph.constant(layer.bias)]
        return graph.node("Gemm", value, graph.constant(layer.weight), *bias, transB=1)
    return _product(graph, value, layer.weight.mT, layer.bias)


def _matmul(graph: _Graph, layer: Any, value: str, x: Tensor, y: Tensor) -> str:
    return _product(graph, value, layer.weight, getattr(layer, "bias", None))


def _product(graph: _Graph, value: str, weight: Tensor, bias: Tensor | None) -> str:
    value = graph.node("MatMul", value, graph.constant(weight))
    return value if bias is None else graph.node("Add", value, graph.constant(bias))


def _convolution(graph: _Graph, layer: Any, value: str, x: Tensor, y: Tensor) -> str:
    constants = [graph.constant(tensor) for tensor in (layer.weight, layer.bias) if tensor is not None]
    attributes = {"strides": layer.stride, "dilations": layer.dilation, "group": layer.groups, "pads": _pads(layer)}
    operator = "Conv"
    if is_transposed(site_kind(layer)):
        attributes["output_padding"], operator = layer.output_padding, "ConvTranspose"
    return graph.node(operator, value, *constants, kernel_shape=layer.kernel_size, **attributes)


def _pads(layer: Any) -> list[int]:
    """Zeros before and after each spatial dimension, as ONNX lists them."""
    if layer.padding == "valid":
        return [0, 0] * len(layer.kernel_size)
    if layer.padding == "same":
        total = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        return [each // 2 for each in total] + [each - each // 2 for each in total]
    return [*layer.padding, *layer.padding]


def _embedding(graph: _Graph, layer: Any, value: str, x: Tensor, y: Tensor) -> str:
    return graph.node("Gather", graph.constant(layer.weight), value)


def _bias(graph: _Graph, layer: Any, value: str, x: Tensor, y: Tensor) -> str:
    return graph.node("Add", value, graph.constant(layer.bias.view(-1, *[1] * layer.spatial)))


def _arrange(graph: _Graph, layer: Any, value: str, x: Tensor, y: Tensor) -> str:
    # As `Arrange.forward`, in one reshape: dimensions before the modes, the modes, dimensions after them.
    lead = 1 if layer.spatial else x.dim() - (2 if layer.rows[0] else 1)
    size = list(x.shape[x.dim() - layer.spatial :]) if layer.spatial else []
    before = [-1, *layer.sizes, *size] if layer.spatial else [*x.shape[:lead], *layer.sizes]
    order = [*range(lead), *(lead + mode for mode in layer.order), *range(lead + len(layer.sizes), len(before))]
    value = graph.node("Reshape", value, graph.constant(torch.tensor(before)))
    value = graph.node("Transpose", value, perm=order)
    return graph.node("Reshape", value, graph.constant(torch.tensor(y.shape)))


def _same(graph: _Graph, layer: Any, value: str, x: Tensor, y: Tensor) -> str:
    return graph.node("Identity", value)


_WRITERS: dict[type, Writer] = {
    nn.Identity: _same,
    nn.Linear: _linear,
    TransposedLinear: _matmul,
    nn.Embedding: _embedding,
    Bias: _bias,
    Arrange: _arrange,
}
