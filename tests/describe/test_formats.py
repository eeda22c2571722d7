"""What is said of every format holds, in the documentation too, and the pictures are what the script draws."""

from __future__ import annotations

import re
import subprocess
import sys
from math import prod
from pathlib import Path

import pytest

from rankwise.describe.formats import MOVES, describe, half
from rankwise.describe.layers import CONV, LINEAR, layer_site
from rankwise.formats import FORMATS, get_format, of_role
from rankwise.layers.kinds import Role
from rankwise.names import SETTINGS

DOCS = Path(__file__).parents[2] / "docs"
FORMS = (
    *of_role(Role.LAYER),
    *("tt:outputs=8x64,inputs=16x32", "tt:outputs=8x8,inputs=4x4x4", "stt:slices=4", "stt:cores=all"),
    *("str:cores=all,outputs=8x8", "ht:tree=tc/hw", "ht:outputs=4x4x4x8", "btd:inputs=16x32"),
    *("kronecker:kernel=3x1", "kronecker:outputs=4x16,inputs=8x8"),
)
LAYERS = {"conv": layer_site(CONV), "linear": layer_site(LINEAR)}
TAKEN = [(name, kind) for name in FORMS for kind, site in LAYERS.items() if get_format(name).refuses(site) is None]


@pytest.mark.parametrize("name, kind", TAKEN)
def test_formula_and_layers_count_what_the_format_counts(name: str, kind: str) -> None:
    site, format = LAYERS[kind], get_format(name)
    form = describe(format, site)[kind]
    ranks = half(format, site)
    values = {**form["sizes"], **dict(zip(form["rank_letters"], ranks, strict=True))}
    values |= {"T": site.out_features, "C": site.weight_shape[1]}

    def number(word: str) -> int:
        """Of "9", "r", "(r+s)" or "(T-r)"."""
        first, *others = re.findall(r"[+-]?\w+", word.strip("()"))
        signed = [(part.lstrip("+-"), -1 if part[0] == "-" else 1) for part in (first, *others)]
        return sum(sign * (int(part) if part.isdecimal() else values[part]) for part, sign in signed)

    terms = [prod(map(number, term.split("·"))) for term in form["formula"].split(" + ")]
    layers = [layer for layer in form["layers"] if layer["layer"] not in MOVES]
    assert terms == [layer["params"] for layer in layers]
    assert sum(terms) == format.cost(site, ranks, bias=False).params == form["params"]
    for whole, split in form["modes"].items():
        assert prod(values[letter] for letter in split.split("·")) == values[whole]


@pytest.mark.parametrize("name, kind", TAKEN)
def test_factors_have_the_names_of_the_docstring(name: str, kind: str) -> None:
    form = describe(get_format(name), LAYERS[kind])[kind]
    names = [layer["factor"].partition("[")[0] for layer in form["layers"] if "factor" in layer]
    assert all(re.fullmatch("[A-Z]", name) for name in names), names
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_has_a_section_and_those_of_layers_a_picture(name: str) -> None:
    sections = re.split(r"^## ", (DOCS / "formats.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    section = next((text for text in sections if text.startswith(f"`{name}`")), "")
    assert section, f"docs/formats.md has no section on {name}"
    assert (f"](pictures/formats/{name}.svg)" in section) == (name in of_role(Role.LAYER))
    form = describe(FORMATS[name])
    for kind in LAYERS:
        if "formula" in form[kind]:
            assert form[kind]["formula"] in section
            assert form[kind]["equation"] in section


def test_every_form_is_described_for_a_layer() -> None:
    assert {name for name, _ in TAKEN} == set(FORMS)


def test_every_setting_is_documented() -> None:
    page = (DOCS / "formats.md").read_text(encoding="utf-8")
    table = page.partition("\n## Settings\n")[2].partition("\n## ")[0]
    rows = [row.split("|")[1:3] for row in table.splitlines() if row.startswith("| `")]
    documented = {
        (name, re.findall(r"`(\w+)=", setting)[0]) for setting, names in rows for name in re.findall(r"`(\w+)`", names)
    }
    documented |= {(name, "inputs") for name, setting in documented if setting == "outputs"}
    assert documented == {(name, key) for name, settings in SETTINGS.items() for key in settings}
    for name, settings in SETTINGS.items():
        form = describe(FORMATS[name])
        assert form["settings"].keys() == settings.keys()
        section = next(text for text in re.split(r"^## ", page, flags=re.MULTILINE) if text.startswith(f"`{name}`"))
        assert "ettings" in section or f"{name}:" in section


def test_the_pictures_are_what_the_script_draws(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(DOCS / "pictures/draw_formats.py"), str(tmp_path)], check=True)
    drawn = {file.name: file.read_text(encoding="utf-8") for file in tmp_path.iterdir()}
    assert set(drawn) == {f"{name}.svg" for name in of_role(Role.LAYER)}
    for name, text in drawn.items():
        assert (DOCS / "pictures/formats" / name).read_text(encoding="utf-8") == text, f"draw {name} again"
