"""The layers of a model that can be factorised, and what they and the whole cost today."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from math import prod
from typing import Any

from torch import nn

from ..files import built
from ..layers.kinds import TIED, is_convolution, is_transposed
from ..metrics import FitMetric, get_metric
from ..running.guards import unwrap
from .counting import Call
from .patterns import matching, near

__all__ = ["Call", "Site", "Sites", "fingerprint"]


@dataclass(frozen=True, kw_only=True)
class Site:
    """A layer that can be factorised, or one of that kind that must stay dense.

    Attributes:
        name: first qualified name.
        aliases: further names of the same module, or of modules tied to its weight.
        kind: one of `kinds.KINDS`: "linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d" and so on, or
            "conv1d_hf" (transformers' Conv1D, a linear layer), or "embedding" (a linear layer of one-hot inputs); or
            "tied_embedding", an embedding and the linear head that shares its weight, which is described as the head.
        weight_shape: (O, I) or (O, I/groups, *kernel), always output first, however the layer stores it.
        stride, padding, dilation, padding_mode, groups, output_padding: of the convolution; `padding` may be "same" or
            "valid".
        has_bias: whether the layer has a bias.
        dtype: of the weight, such as "float32".
        calls: every call in one forward of the example input; of a tied embedding those of its head.
        lookups: rows that a tied embedding looks up in one forward of the example input.
        dense_because: why it must stay dense, None where it may be factorised.
        unless_named: why it stays dense where no pattern but "*" includes it, None for most sites (`vocabulary`).
        unpaired: who picks the rows of its input by what the network computes, so that those of two networks are no
            pairs; None where nobody does.
        extra_params: parameters that a parametrisation holds beyond the weight and bias that it yields.
    """

    name: str
    kind: str
    weight_shape: tuple[int, ...]
    aliases: tuple[str, ...] = ()
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
    extra_params: int = 0

    @property
    def stays_dense(self) -> str | None:
        """Why it stays dense where nothing is asked for, None where it may be factorised."""
        return self.dense_because or self.unless_named

    @property
    def out_features(self) -> int:
        """O: output features or channels."""
        return self.weight_shape[0]

    @property
    def in_features(self) -> int:
        """D: what one output is computed from: I, or I/groups * taps."""
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
    def is_convolution(self) -> bool:
        """Whether it has a kernel, of one tap or more."""
        return is_convolution(self.kind)

    @property
    def is_embedding(self) -> bool:
        """Whether its inputs are indices of rows."""
        return self.kind == "embedding"

    @property
    def is_tied(self) -> bool:
        """Whether it is an embedding and the linear head that shares its weight."""
        return self.kind == TIED

    @property
    def is_looked_up(self) -> bool:
        """Whether rows of its weight are looked up."""
        return self.is_embedding or self.is_tied

    @property
    def is_transposed(self) -> bool:
        """Whether it is a transposed convolution, whose kernel runs over the input positions."""
        return is_transposed(self.kind)

    @property
    def params(self) -> int:
        """Parameters of the layer, its bias included."""
        return prod(self.weight_shape) + self.has_bias * self.out_features + self.extra_params

    @property
    def rows(self) -> int:
        """Products with the weight, summed over the calls."""
        return sum(call.rows for call in self.calls)

    def positions(self, done: Collection[int]) -> int:
        """Positions of all calls where the spatial dimensions `done` have their output size, the others their input's.

        A 1 x 1 convolution before the kernel runs at `positions(())`, one after it at `out_positions`.
        """
        return sum(call.positions(done) for call in self.calls)

    @property
    def out_positions(self) -> int:
        """Output positions of all calls."""
        return self.positions(range(len(self.kernel_size)))

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all calls: rows * O * D; an embedding looks its rows up and multiplies nothing."""
        if self.is_embedding:
            return 0
        return self.rows * prod(self.weight_shape)

    @property
    def break_even(self) -> int:
        """The largest rank at which two factors per group have fewer parameters than the dense weight.

        With O' = O / groups, a rank r costs r (D + O') instead of D O' per group. Half of the full rank is no saving on
        a square layer.

        Example:
            >>> Site(name="fc", kind="linear", weight_shape=(512, 512)).break_even
            255
        """
        per_group = self.out_features // self.groups
        return (self.in_features * per_group - 1) // (self.in_features + per_group)

    def chain_bias(self, metric: str | FitMetric) -> bool:
        """Whether its chain has a bias: its own, or one that corrects the mean of the output on the data.

        An embedding needs none: the second moment of its one-hot inputs is diagonal as it is. Nor gets a head that is
        tied to one: a number for each row of the table is as much as a rank, and the mean is fitted like the rest.
        """
        return self.has_bias or (get_metric(metric).corrects_bias and not self.is_looked_up)

    def layer(self, model: nn.Module) -> nn.Module:
        """The layer in a model of the same structure."""
        return unwrap(model).get_submodule(self.name)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Sites(Mapping[str, Site]):
    """The sites of a model by name, in the order of their first call, and the counts of the whole model.

    Attributes:
        by_name: name -> site.
        total_params: all parameters of the model, tied ones once.
        other_macs: counted layers and parameters that are no sites -> MACs.
        not_counted: operators that are not counted -> why.
        never_called: layers that the forward never called.
        fingerprint: sha256 of the structure, see `fingerprint`.
        example: what the network was called with; not stored.
    """

    by_name: Mapping[str, Site]
    total_params: int
    other_macs: Mapping[str, int]
    not_counted: Mapping[str, str]
    never_called: tuple[str, ...]
    fingerprint: str
    example: Any = None

    @property
    def total_macs(self) -> int:
        """MACs of the whole model for the example input: all sites, dense ones included, and `other_macs`."""
        return sum(site.macs for site in self.by_name.values()) + sum(self.other_macs.values())

    def __getitem__(self, name: str) -> Site:
        return self.by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.by_name)

    def __len__(self) -> int:
        return len(self.by_name)

    def __repr__(self) -> str:
        free = sum(site.stays_dense is None for site in self.values())
        return f"Sites({free} of {len(self)} to factorise, {self.total_params:,} params, {self.total_macs:,} MACs)"

    def select(self, patterns: str | Iterable[str]) -> list[Site]:
        """The sites that any pattern matches, in execution order.

        Args:
            patterns: names or aliases as they are; else globs over them ("encoder.*.fc1"), or full-match regular
                expressions ("re:.*fc[12]").

        Returns:
            The sites, each once.

        Raises:
            ValueError: a pattern matches nothing (near names are listed), or is no regular expression.
        """
        owners = {alias: site.name for site in self.values() for alias in (site.name, *site.aliases)}
        chosen: set[str] = set()
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            matched = matching(pattern, [*owners, *self.never_called])
            found = {owners[name] for name in matched if name in owners}
            if not found:
                raise ValueError(self._no_match(pattern, list(owners), matched))
            chosen |= found
        return [site for name, site in self.items() if name in chosen]

    def included(self, patterns: str | Iterable[str]) -> list[Site]:
        """The sites that patterns allow to factorise: those that they match, but "*" alone reaches no `unless_named`.

        Args:
            patterns: as for `select`; `["*", "lm_head"]` allows all sites and the head of a language model too.

        Raises:
            ValueError: as `select` does.
        """
        patterns = [patterns] if isinstance(patterns, str) else list(patterns)
        named = {site.name for site in self.select(pattern for pattern in patterns if pattern != "*")}
        return [site for site in self.select(patterns) if site.name in named or not site.unless_named]

    def left_dense(self, reasons: Mapping[str, str]) -> Sites:
        """The same sites, some of which must stay dense: name -> why."""
        changed = {
            name: replace(site, dense_because=reasons.get(name, site.dense_because)) for name, site in self.items()
        }
        return replace(self, by_name=changed)

    def check_structure(self, model: nn.Module) -> None:
        """Refuse a model of another structure than the one that the sites were found in.

        Raises:
            ValueError: if the structure differs.
        """
        if self.fingerprint != fingerprint(model):
            raise ValueError(
                f"the sites or statistics belong to a network of another structure than this {type(model).__name__}; "
                f"find or collect them again for this one"
            )

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, to be stored as JSON; `from_dict` is the way back."""
        values = asdict(replace(self, example=None))
        del values["example"]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Sites:
        """The sites that `to_dict` described, also after a round trip through JSON.

        Raises:
            ValueError: naming the field that is missing or of another type.
        """
        return built(cls, values, "sites")

    def _no_match(self, pattern: str, names: list[str], idle: list[str]) -> str:
        if idle:
            return f"pattern '{pattern}' matches only layers that the example input never calls: {', '.join(idle)}"
        if not names:
            return f"pattern '{pattern}' matches no site: the model has none"
        return f"pattern '{pattern}' matches no site; near names are: {near(pattern, names)}"


def fingerprint(model: nn.Module) -> str:
    """A sha256 of a model's structure: the class of every module, the name and shape of every parameter.

    Values, dtypes and devices play no part, so two runs of the same constructor agree.

    Example:
        >>> fingerprint(nn.Linear(2, 3)) == fingerprint(nn.Linear(2, 3).half())
        True
    """
    model = unwrap(model)
    lines = [f"{name} {type(module).__name__}" for name, module in model.named_modules(remove_duplicate=False)]
    lines += [f"{name} {tuple(p.shape)}" for name, p in model.named_parameters(remove_duplicate=False)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
