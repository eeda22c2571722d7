"""The network as a tree of its modules, with what every layer cost before and costs after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from .findings import Layer

OPEN = 40  # layers up to which the whole tree is unfolded


@dataclass
class _Node:
    """A module: those inside it by name, and its own layer."""

    inside: dict[str, _Node] = field(default_factory=dict)
    layer: Layer | None = None

    def totals(self) -> tuple[int, int, int]:
        """MACs before and after, and layers."""
        own = (
            (0, 0, 0) if self.layer is None else ((self.layer.before[1] or self.layer.after[1]), self.layer.after[1], 1)
        )
        parts = [own, *(each.totals() for each in self.inside.values())]
        return sum(a for a, _, _ in parts), sum(b for _, b, _ in parts), sum(c for _, _, c in parts)


def tree(layers: Sequence[Layer]) -> str:
    """Nested lists with two bars for each layer: MACs before and after, as shares of the largest layer's.

    Args:
        layers: in execution order; names are paths of modules, parted by dots.
    """
    if not layers:
        return ""
    root = _Node()
    for layer in layers:
        node = root
        for part in layer.name.split("."):
            node = node.inside.setdefault(part, _Node())
        node.layer = layer
    largest = max(layer.before[1] or layer.after[1] for layer in layers) or 1
    return (
        '<p class="quiet">Bars are MACs: pale before, strong after, on one scale for all layers.</p>'
        f'<ul class="tree">{_items(root, largest, len(layers) <= OPEN)}</ul>'
    )


def _items(node: _Node, largest: int, unfolded: bool) -> str:
    return "".join(_item(name, inner, largest, unfolded) for name, inner in node.inside.items())


def _item(name: str, node: _Node, largest: int, unfolded: bool) -> str:
    own = "" if node.layer is None else _leaf(name, node.layer, largest)
    if not node.inside:
        return f"<li>{own}</li>"
    before, after, count = node.totals()
    kept = f"{after / before:.0%} of its MACs" if before else "no MACs"
    told = f"{escape(name)} <span class='quiet'>{count} {'layer' if count == 1 else 'layers'}, {kept}</span>"
    state = " open" if unfolded else ""
    return (
        f"<li><details{state}><summary>{told}</summary><ul>{own}{_items(node, largest, unfolded)}</ul></details></li>"
    )


def _leaf(name: str, layer: Layer, largest: int) -> str:
    before, after = layer.before[1] or layer.after[1], layer.after[1]
    how = layer.format + (f" {', '.join(map(str, layer.ranks))}" if layer.ranks else "")
    kept = f", {after / before:.0%}" if before and after != before else ""
    bars = "".join(f'<i style="width:{100 * macs / largest:.2f}%"></i>' for macs in (before, after))
    return (
        f'<div class="leaf"><span>{escape(name)} <span class="quiet">{escape(layer.kind)}</span></span>'
        f'<span class="meter" role="img" aria-label="{before:,} MACs before, {after:,} after">{bars}</span>'
        f"<span>{escape(how)}{kept}</span></div>"
    )
