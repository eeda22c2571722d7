"""Draw every format as a tensor network, and below it the layers that compute it: docs/pictures/formats/NAME.svg.

python docs/pictures/draw_formats.py [FOLDER]

Factors stand above the layers that hold them. Everything is read from the formats themselves; the ranks are examples.
"""

from __future__ import annotations

import sys
from pathlib import Path
from xml.sax.saxutils import escape

from rankwise.describe import slr
from rankwise.describe.formats import MOVES
from rankwise.describe.layers import CONV, LINEAR, layer_name, layer_site
from rankwise.describe.networks import factor_names, layers_of, network_of, rank_letters
from rankwise.formats import Format, Ranks, of_role
from rankwise.formats.shape import Shape
from rankwise.formats.slr import SparseLowRank
from rankwise.layers.kinds import Role
from rankwise.network.sites import Site

# Ranks of the convolution, and of the linear layer where there is one.
EXAMPLES: dict[str, tuple[Ranks, ...]] = {
    "svd": ((32,), (128,)),
    "pivoted_svd": ((32,), (128,)),
    "slr": ((24, 16, 32, 32), (96, 64, 256, 256)),
    "slr3": ((20, 16, 32, 32, 12, 16, 16), (80, 48, 256, 256, 32, 128, 128)),
    "spatial_svd": ((48,),),
    "tucker2": ((32, 32),),
    "tucker": ((48, 48, 2, 2),),
    "cp": ((96,),),
    "cp3": ((96,),),
    "tt": ((40, 32, 40), (4, 4)),
    "tr": ((2, 24, 32, 24), (2, 4, 4)),
    "stt": ((32, 32, 32), (96, 96)),
    "str": ((2, 16, 32, 16), (2, 48, 48)),
    "ht": ((24, 24, 3, 3, 24), (4, 4, 4)),
    "btd": ((2, 24, 24), (4, 48, 8, 4)),
    "kronecker": ((8,), (8,)),
}
COLOURS = {"channels": "#1d6fb8", "outputs": "#c2570c", "taps": "#2e7d32", "ranks": "#5b2a86"}
INK, GREY, FILL = "#1f2933", "#5f6b7a", "#f3f0f8"
RADIUS, LEG, SPACING, WIDE = 26, 42, 176, 208
EDGE, BOX, BOX_HEIGHT, BUS = 130, 140, 100, 34
FONT = "font-family='Helvetica, Arial, sans-serif'"


def text(
    x: float, y: float, words: str, *, size: int = 16, colour: str = INK, anchor: str = "middle", bold: bool = False
) -> str:
    weight = " font-weight='bold'" if bold else ""
    return (
        f"<text x='{x:g}' y='{y:g}' {FONT} font-size='{size}' fill='{colour}' text-anchor='{anchor}'{weight}>"
        f"{escape(words)}</text>"
    )


def path(way: str, colour: str, *, width: float = 2.5, arrow: bool = False) -> str:
    end = " marker-end='url(#arrow)'" if arrow else ""
    return f"<path d='{way}' fill='none' stroke='{colour}' stroke-width='{width:g}'{end}/>"


class Panel:
    """One layer: the network of a format and its chain.

    Args:
        format: the format.
        site: the layer.
        ranks: of the format.
        top: where the panel begins.
    """

    def __init__(self, format: Format, site: Site, ranks: Ranks, top: int) -> None:
        self.top = top
        self.network = network_of(format, Shape.of_site(site), ranks)
        self.layers = list(layers_of(format, site, ranks))
        self.parts: list[str] = []
        self.names = factor_names(format, self.network)
        inner = [layer["layer"] for layer in self.layers][1:-1]
        self.spacing = WIDE if "reorder" in inner else SPACING
        count = len(self.network.factors)
        self.xs = [EDGE + BOX // 2 + self.spacing * place for place in range(count)]
        self.width = self.xs[-1] + BOX // 2 + EDGE
        self.head(format, site, ranks, top)
        self.row = top + 164
        bottom = self.tensors()
        self.bottom = self.chain(bottom + 34)

    def head(self, format: Format, site: Site, ranks: Ranks, top: int) -> None:
        cost = format.cost(site, ranks, bias=False)
        letters = slr.rank_letters(format) if isinstance(format, SparseLowRank) else rank_letters(format, site)
        values = ", ".join(f"{letter} = {rank}" for letter, rank in zip(letters, ranks, strict=True))
        name = layer_name(site)
        title = name[0].upper() + name[1:].replace(" x ", " \u00d7 ")
        self.parts.append(text(24, top + 32, title, size=18, anchor="start", bold=True))
        counts = f"{values}: {cost.params:,} of {site.params:,} parameters, {cost.macs / site.macs:.0%} of the MACs"
        self.parts.append(text(24, top + 57, counts, size=16, colour=GREY, anchor="start"))

    def label(self, letter: str) -> str:
        return f"{letter} = {self.network.sizes[letter]}"

    def tensors(self) -> int:
        """Factors, their modes upwards, bonds between neighbours straight, all others below; the lower end."""
        network, factors = self.network, self.network.factors
        letters_once = dict.fromkeys("".join(factors))
        holders = {letter: [k for k, held in enumerate(factors) if letter in held] for letter in letters_once}
        kinds = {network.channels: "channels", network.outputs: "outputs", network.spatial: "taps"}
        kind = {letter: name for letters, name in kinds.items() for letter in letters}
        bonds = {letter: held for letter, held in holders.items() if letter not in kind}
        straight = {letter: held for letter, held in bonds.items() if len(held) == 2 and held[1] == held[0] + 1}
        below = sorted((held[-1] - held[0], letter) for letter, held in bonds.items() if letter not in straight)
        for letter, (left, right) in straight.items():
            self.parts.append(path(f"M{self.xs[left]} {self.row}H{self.xs[right]}", COLOURS["ranks"]))
            middle = (self.xs[left] + self.xs[right]) / 2
            self.parts.append(text(middle, self.row - 9, self.label(letter), colour=COLOURS["ranks"]))
        depth = self.row + RADIUS
        for level, (_, letter) in enumerate(below):
            depth = self.row + RADIUS + BUS * (level + 1)
            self.bus(letter, bonds[letter], depth, drop=12 * (level - (len(below) - 1) / 2))
        for place, letters in enumerate(factors):
            modes = [letter for letter in letters if letter in kind]
            self.legs(place, modes, {letter: COLOURS[kind[letter]] for letter in modes})
            self.parts.append(
                f"<circle cx='{self.xs[place]}' cy='{self.row}' r='{RADIUS}' fill='{FILL}' stroke='{INK}' "
                "stroke-width='2'/>"
            )
            self.parts.append(text(self.xs[place], self.row + 7, self.names[place], size=20, bold=True))
        return depth

    def bus(self, letter: str, held: list[int], y: float, drop: float) -> None:
        """A bond below the factors: between two that are no neighbours, or between more than two."""
        xs = [self.xs[place] + drop for place in held]
        bend = 10
        way = f"M{xs[0]:g} {self.row}V{y - bend:g}Q{xs[0]:g} {y:g} {xs[0] + bend:g} {y:g}H{xs[-1] - bend:g}"
        way += f"Q{xs[-1]:g} {y:g} {xs[-1]:g} {y - bend:g}V{self.row}"
        self.parts.append(path(way, COLOURS["ranks"]))
        for x in xs[1:-1]:
            self.parts.append(path(f"M{x:g} {self.row}V{y:g}", COLOURS["ranks"]))
            self.parts.append(f"<circle cx='{x:g}' cy='{y:g}' r='5' fill='{COLOURS['ranks']}'/>")
        middle = (xs[0] + xs[1]) / 2 if held[1] == held[0] + 1 else xs[0] + self.spacing / 2
        self.parts.append(text(middle, y - 8, self.label(letter), colour=COLOURS["ranks"]))

    def legs(self, place: int, modes: list[str], colours: dict[str, str]) -> None:
        gap = 64
        for number, letter in enumerate(modes):
            shift = (number - (len(modes) - 1) / 2) * gap
            x, y = self.xs[place], self.row - RADIUS - LEG
            self.parts.append(path(f"M{x} {self.row}L{x + shift:g} {y}", colours[letter]))
            self.parts.append(text(x + shift, y - 8, self.label(letter), colour=colours[letter]))

    def chain(self, top: int) -> int:
        """The layers, from the input on the left to the output on the right."""
        middle = top + BOX_HEIGHT / 2
        count = len(self.xs)
        gaps: list[list[str]] = [[] for _ in range(count + 1)]
        place = 0
        for layer in self.layers:
            if layer["layer"] in MOVES:
                gaps[place].append(layer["layer"])
                continue
            self.box(self.xs[place], top, layer)
            place += 1
        network = self.network
        ends = [network.count("g" + network.channels), network.count("g" + network.outputs)]
        for number, marks in enumerate(gaps):
            left = 62 if number == 0 else self.xs[number - 1] + BOX // 2
            right = self.width - 62 if number == count else self.xs[number] - BOX // 2
            self.parts.append(path(f"M{left} {middle:g}H{right - 9}", INK, width=2, arrow=True))
            if marks:
                self.parts.append(text((left + right) / 2 - 3, middle - 9, marks[0], size=14, colour=GREY))
        self.parts.append(text(52, middle + 6, str(ends[0]), colour=COLOURS["channels"], anchor="end", bold=True))
        self.parts.append(
            text(self.width - 54, middle + 6, str(ends[1]), colour=COLOURS["outputs"], anchor="start", bold=True)
        )
        return top + BOX_HEIGHT

    def box(self, x: float, top: float, layer: dict[str, object]) -> None:
        self.parts.append(
            f"<rect x='{x - BOX / 2:g}' y='{top:g}' width='{BOX}' height='{BOX_HEIGHT}' rx='8' fill='#ffffff' "
            f"stroke='{INK}' stroke-width='2'/>"
        )
        words = str(layer["layer"]).replace(" x ", " \u00d7 ")
        remarks = ["depthwise"] if words.startswith("depthwise ") else []
        if words.startswith("grouped "):
            remarks.append(f"{layer['groups']} groups")
        if layer["slices"] != 1:
            remarks.append(f"{layer['slices']} slices")
        lines = [
            (words.removeprefix("depthwise ").removeprefix("grouped "), 16, INK, True),
            (f"{layer['inputs']} \u2192 {layer['outputs']}", 16, INK, False),
            *([(", ".join(remarks), 14, GREY, False)] if remarks else []),
            (f"{layer['params']:,} params", 14, GREY, False),
        ]
        y = top + BOX_HEIGHT / 2 - 10.5 * len(lines) + 16
        for words, size, colour, bold in lines:
            self.parts.append(text(x, y, words, size=size, colour=colour, bold=bold))
            y += 21


class Blocks(Panel):
    """One layer in sparse low rank: the weight with its nested blocks, then its branches and bands, side by side.

    Args:
        format: the format.
        site: the layer.
        ranks: of the format.
        top: where the panel begins.
    """

    def __init__(self, format: SparseLowRank, site: Site, ranks: Ranks, top: int) -> None:
        self.top, self.parts = top, []
        layers = list(slr.layers(format, site, ranks))
        columns = [layers[: format.levels], layers[format.levels + 1 : -1]]
        height = format.levels * (BOX_HEIGHT + 16) - 16
        self.width = 940
        self.head(format, site, ranks, top)
        self.blocks(format, top + 110, height, ranks)
        for x, boxes in zip((470, 720), columns, strict=True):
            for row, layer in enumerate(boxes):
                self.box(x, top + 110 + row * (BOX_HEIGHT + 16), layer)
        self.bottom = top + 110 + height
        middle = top + 110 + height / 2
        ends = [str(site.weight_shape[1]), str(site.out_features)]
        for left, right in ((372, 400), (540, 650), (790, 872)):
            self.parts.append(path(f"M{left} {middle:g}H{right - 9}", INK, width=2, arrow=True))
        self.parts.append(text(366, middle + 6, ends[0], colour=COLOURS["channels"], anchor="end", bold=True))
        self.parts.append(text(592, middle - 9, "side by side", size=14, colour=GREY))
        self.parts.append(text(828, middle - 9, "reorder", size=14, colour=GREY))
        self.parts.append(text(876, middle + 6, ends[1], colour=COLOURS["outputs"], anchor="start", bold=True))

    def blocks(self, format: SparseLowRank, top: float, height: float, ranks: Ranks) -> None:
        """The weight, important outputs above and important inputs on the left, with the rank of every block."""
        left, size = 60.0, min(height, 230.0)
        for level in range(format.levels):
            side = size / 1.7**level
            self.parts.append(
                f"<rect x='{left:g}' y='{top:g}' width='{side:g}' height='{side:g}' fill='{FILL}' stroke='{INK}' "
                "stroke-width='2'/>"
            )
            letters = "+".join(levels[0] for levels in slr.LEVELS[: level + 1])
            self.parts.append(text(left + side - 8, top + side - 10, letters, anchor="end", colour=COLOURS["ranks"]))
            if level:
                _, inputs, outputs = slr.LEVELS[level]
                self.parts.append(text(left + side, top - 8, inputs, colour=COLOURS["channels"]))
                self.parts.append(text(left - 10, top + side, outputs, colour=COLOURS["outputs"], anchor="end"))
        self.parts.append(text(left + size / 2 + 46, top - 8, "inputs", size=14, colour=COLOURS["channels"]))
        self.parts.append(text(left - 8, top + size, "T", size=14, colour=COLOURS["outputs"], anchor="end"))


def legend(y: float) -> list[str]:
    words = {"channels": "input channels", "outputs": "outputs", "taps": "taps of the kernel", "ranks": "bonds (ranks)"}
    parts, x = [], 24
    for kind, name in words.items():
        parts.append(path(f"M{x} {y - 5:g}H{x + 22}", COLOURS[kind], width=3))
        parts.append(text(x + 28, y, name, size=14, colour=GREY, anchor="start"))
        x += 28 + 8 * len(name) + 14
    return parts


def draw(format: Format) -> str:
    """The picture of one format."""
    sites = [site for site in map(layer_site, (CONV, LINEAR)) if format.refuses(site) is None]
    panels: list[Panel] = []
    for site, ranks in zip(sites, EXAMPLES[format.name], strict=True):
        panel = Blocks if isinstance(format, SparseLowRank) else Panel
        panels.append(panel(format, site, ranks, top=panels[-1].bottom + 26 if panels else 0))
    width, height = max(620, *(panel.width for panel in panels)), panels[-1].bottom + 52
    body = [part for panel in panels for part in panel.parts] + legend(height - 16)
    body += [path(f"M24 {panel.top}H{width - 24}", "#d5dae1", width=1) for panel in panels[1:]]
    return "\n".join(
        [
            f"<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{height}' "
            f"viewBox='0 0 {width} {height}' role='img'>",
            f"<title>{escape(format.name)}: {escape(format.summary)}</title>",
            "<defs><marker id='arrow' viewBox='0 0 10 10' refX='1' refY='5' markerWidth='9' markerHeight='9' "
            f"markerUnits='userSpaceOnUse' orient='auto'><path d='M0 0L10 5L0 10z' fill='{INK}'/></marker></defs>",
            f"<rect width='{width}' height='{height}' rx='10' fill='#ffffff'/>",
            *body,
            "</svg>\n",
        ]
    )


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "formats"
    folder.mkdir(parents=True, exist_ok=True)
    for name, format in of_role(Role.LAYER).items():
        (folder / f"{name}.svg").write_text(draw(format), encoding="utf-8")


if __name__ == "__main__":
    main()
