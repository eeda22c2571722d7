"""A site: what is decided, fitted and put in place together, and its kind.

A slot is a linear map inside a module: its weight, and how it reads its inputs. Most sites have one slot, a dense
layer. An embedding and the head that shares its weight have two. Layers that read the same input may be one site, with
a slot for each.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

from torch import nn

from ..layers.kinds import Role, is_convolution, is_transposed
from ..metrics import FitMetric, get_metric
from ..running.guards import unwrap
from .counting import Call


class Kind:
    """A kind of site, described in `network.kinds`; plans, statistics and artifacts hold its name."""

    name: str
    role: Role


# By name; `network.kinds.register` adds to it.
KINDS: dict[str, Kind] = {}


@dataclass(frozen=True, kw_only=True)
class Feeder:
    """A layer that computes what a site reads: hidden units, or values of attention heads.

    Attributes:
        rows: of its weight, for each unit that the site reads.
        inputs: of the layer.
        bias: whether it has one.
        shared: units that the same rows compute.
        others: further rows, which stay.
    """

    rows: int
    inputs: int
    bias: bool
    shared: int = 1
    others: int = 0

    def left(self, units: int) -> int:
        """Rows of the weight that compute so many units, and the further ones."""
        return self.rows * units // self.shared + self.others


@dataclass(frozen=True, kw_only=True)
class Heads:
    """Where the heads of attention find their values among the rows of a feeder.

    Query head `j` reads the rows `first + stride * (j // shared)` to `... + size - 1`.

    Attributes:
        size: values of a head.
        shared: query heads that read the same values.
        first, stride: row of the first head's first value, and rows from one head's to the next one's.
    """

    size: int
    shared: int
    first: int
    stride: int


@dataclass(frozen=True, kw_only=True)
class Site:
    """What is decided, fitted and put in place together: most often one layer.

    Attributes:
        name: first qualified name.
        aliases: all further names of its modules: of the same one, of those tied to its weight, of its other slots.
        slots: names of the modules of each slot; () for a single slot.
        kind: name of its kind, one of `KINDS`: "linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d" and so on,
            "conv1d_hf" (transformers' Conv1D, a linear layer), "embedding" (a linear layer of one-hot inputs), or
            "tied_embedding" (an embedding and the linear head that shares its weight, described as the head).
        weight_shape: (O, I) or (O, I/groups, *kernel), output first, however the layer stores it.
        stride, padding, dilation, padding_mode, groups, output_padding: of the convolution; `padding` may be "same" or
            "valid".
        dtype: of the weight, such as "float32".
        calls: every call in one forward of the example input; of a tied embedding those of its head.
        lookups: rows that a tied embedding looks up in one forward of the example input.
        dense_because: why it must stay dense, None where it may be factorised.
        unless_named: why it stays dense unless a pattern other than "*" includes it (`vocabulary`), None for most.
        unpaired: which operator picks its input rows by computed values, so that rows of two networks cannot be
            paired; None for most.
        feeders: the layers that compute what the last slot reads, hidden units or values of heads; () for most.
        heads: of attention, whose outputs the last slot reads; None for most.
        extra_params: parameters that a parametrisation holds beyond the weight and bias that it yields.
    """

    name: str
    kind: str
    weight_shape: tuple[int, ...]
    aliases: tuple[str, ...] = ()
    slots: tuple[tuple[str, ...], ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] | str = ()
    dilation: tuple[int, ...] = ()
    output_padding: tuple[int, ...] = ()
    padding_mode: str = "zeros"
    groups: int = 1
    has_bias: bool = True
    dtype: str = "float32"
    calls: tuple[Call, ...] = ()
    lookups: int = 0
    dense_because: str | None = None
    unless_named: str | None = None
    unpaired: str | None = None
    feeders: tuple[Feeder, ...] = ()
    heads: Heads | None = None
    extra_params: int = 0

    @property
    def stays_dense(self) -> str | None:
        """Why it stays dense by default, None where it may be factorised."""
        return self.dense_because or self.unless_named

    @property
    def out_features(self) -> int:
        """O: output features or channels."""
        return self.weight_shape[0]

    @property
    def in_features(self) -> int:
        """D: numbers that one output is computed from: I, or I/groups * taps."""
        return prod(self.weight_shape[1:])

    @property
    def kernel_size(self) -> tuple[int, ...]:
        """Of a convolution, () for a linear layer."""
        return self.weight_shape[2:]

    @property
    def taps(self) -> int:
        """Q: positions of the kernel."""
        return prod(self.kernel_size)

    @property
    def by_kind(self) -> Kind:
        """Its kind; a ValueError if no kind of that name is registered."""
        if self.kind not in KINDS:
            raise ValueError(
                f"unknown kind of site {self.kind!r}; import the module that registers it, known are {', '.join(KINDS)}"
            )
        return KINDS[self.kind]

    @property
    def role(self) -> Role:
        """How its slots use the weight."""
        return self.by_kind.role

    @property
    def multiplies(self) -> bool:
        """Whether its weight multiplies rows of inputs; a lone table is only looked up."""
        return self.role is not Role.TABLE

    @property
    def looks_up(self) -> bool:
        """Whether rows of its weight are looked up."""
        return self.role in (Role.TABLE, Role.TIED)

    @property
    def is_convolution(self) -> bool:
        """Whether it has a kernel, of one tap or more."""
        return is_convolution(self.kind)

    @property
    def is_transposed(self) -> bool:
        """Whether it is a transposed convolution, whose kernel runs over the input positions."""
        return is_transposed(self.kind)

    @property
    def names(self) -> tuple[str, ...]:
        """Qualified names of all its modules."""
        return (self.name, *self.aliases)

    @cached_property
    def params(self) -> int:
        """Parameters of the layers, biases included."""
        own = prod(self.weight_shape) + self.has_bias * self.out_features + self.extra_params
        return own + sum(self.fed(self.in_features))

    def fed(self, units: int) -> tuple[int, int]:
        """Numbers in the weights, and in the biases, of the layers that compute so many of the units it reads."""
        weights = sum(feeder.left(units) * feeder.inputs for feeder in self.feeders)
        return weights, sum(feeder.left(units) for feeder in self.feeders if feeder.bias)

    @cached_property
    def rows(self) -> int:
        """Products with the weight, summed over the calls."""
        return sum(call.rows for call in self.calls)

    def positions(self, done: Collection[int], spans: Mapping[int, int] | None = None) -> int:
        """Positions of all calls where the spatial dimensions `done` have their output size, the others their input's.

        A 1 x 1 convolution before the kernel runs at `positions(())`, one after it at `out_positions`.

        Args:
            done: dimensions.
            spans: of dimensions in between, where layers before hold a part of the kernel: the taps it reaches over.
        """
        key = tuple(done), tuple((spans or {}).items())
        if key not in self._positions:
            self._positions[key] = sum(
                call.positions(done, {d: self._between(d, call.in_size[d], span) for d, span in (spans or {}).items()})
                for call in self.calls
            )
        return self._positions[key]

    def _between(self, d: int, size: int, span: int) -> int:
        """Size of a dimension after a part of its kernel: padded, not strided; transposed strided, not cropped."""
        if not self.dilation:  # described by the shape of its weight alone: no borders
            return size
        reach = self.dilation[d] * (span - 1)
        if self.is_transposed:
            return (size - 1) * self.stride[d] + reach + 1 + self.output_padding[d]
        if isinstance(self.padding, str):
            return size + (self.padding == "same") * self.dilation[d] * (self.kernel_size[d] - 1) - reach
        return size + 2 * self.padding[d] - reach

    @cached_property
    def _positions(self) -> dict[tuple[tuple[int, ...], tuple[tuple[int, int], ...]], int]:
        """What `positions` has counted: a profile asks tens of thousands of times."""
        return {}

    @cached_property
    def out_positions(self) -> int:
        """Output positions of all calls."""
        return self.positions(range(len(self.kernel_size)))

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates of all calls of the dense layers; looking up rows costs none."""
        weights = prod(self.weight_shape) + self.fed(self.in_features)[0]
        return self.rows * weights if self.multiplies else 0

    def factor_macs(self, first: int, last: int) -> int:
        """Multiply-accumulates of two factors in a row.

        Args:
            first: numbers in the factor that reads the inputs (of a table: that is looked up).
            last: numbers in the factor that gives the outputs.
        """
        # The chains of joint slots run one by one: each of them multiplies the shared first factor again.
        before = {Role.TABLE: 0, Role.JOINT: len(self.slots) * self.rows}.get(self.role, self.rows)
        return before * first + self.out_positions * last + self.lookups * first

    @property
    def break_even(self) -> int:
        """The largest rank at which two factors per group have fewer parameters than the dense weight.

        With O' = O / groups, a rank r costs r (D + O') instead of D O' per group. On a square layer half of the full
        rank saves nothing.

        Example:
            >>> Site(name="fc", kind="linear", weight_shape=(512, 512)).break_even
            255
        """
        per_group = self.out_features // self.groups
        return (self.in_features * per_group - 1) // (self.in_features + per_group)

    def chain_bias(self, metric: str | FitMetric) -> bool:
        """Whether its chain has a bias: its own, or one that corrects the mean of the output on the data.

        An embedding needs no correction: the second moment of its one-hot inputs is diagonal without centring. A head
        tied to one gets none: a number for each row of the table costs as much as a rank.
        """
        return self.has_bias or (get_metric(metric).corrects_bias and not self.looks_up)

    def layer(self, model: nn.Module) -> nn.Module:
        """The layer in a model of the same structure."""
        return unwrap(model).get_submodule(self.name)
