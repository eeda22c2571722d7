"""`rankwise formats`: every format is there, and what is said about it holds, and it has a section and a picture."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import pytest

from rankwise.describe.formats import MOVES, describe, half
from rankwise.describe.layers import CONV, LINEAR, layer_site
from rankwise.formats import FORMATS

DOCS = Path(__file__).parents[2] / "docs"
LAYERS = {"conv": layer_site(CONV), "linear": layer_site(LINEAR)}
TAKEN = [
    (name, kind) for name, format in FORMATS.items() for kind, site in LAYERS.items() if format.refuses(site) is None
]


def document(cli: Callable[..., Any], *arguments: str) -> dict[str, Any]:
    result = cli("formats", *arguments, "--json", "-")
    assert result.exit_code == 0, result.output
    return {form["name"]: form for form in json.loads(result.stdout)["formats"]}


def test_every_format_is_listed(cli: Callable[..., Any]) -> None:
    result = cli("formats")
    assert result.exit_code == 0, result.output
    assert set(FORMATS) <= set(re.findall(r"^\w+", result.stdout, re.MULTILINE))
    forms = document(cli)
    assert list(forms) == list(FORMATS)
    for form in forms.values():
        assert form["summary"]
        assert form["use"]
        assert not form["use"].endswith(".")
        assert form["source"]
        assert form["takes"]


@pytest.mark.parametrize("name", FORMATS)
def test_one_format_in_full(cli: Callable[..., Any], name: str) -> None:
    result = cli("formats", name)
    assert result.exit_code == 0, result.output
    text = " ".join(result.stdout.split())
    form = document(cli, name)[name]
    assert form["source"] in text
    for kind in LAYERS:
        if (name, kind) in TAKEN:
            assert form[kind]["equation"] in text
            assert form[kind]["formula"] in text
        else:
            assert form[kind]["refused"] in text


@pytest.mark.parametrize("name, kind", TAKEN)
def test_formula_and_layers_count_what_the_format_counts(name: str, kind: str) -> None:
    site, format = LAYERS[kind], FORMATS[name]
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
    form = describe(FORMATS[name], LAYERS[kind])[kind]
    names = [layer["factor"].partition("[")[0] for layer in form["layers"] if "factor" in layer]
    assert all(re.fullmatch("[A-Z]", name) for name in names), names
    assert len(set(names)) == len(names)


def test_one_layer(cli: Callable[..., Any]) -> None:
    forms = document(cli, "--conv", "16,32,5")
    for name, form in forms.items():
        kind = form["conv"]
        assert kind["weight_shape"] == [32, 16, 5, 5]
        assert FORMATS[name].cost(layer_site((32, 16, 5, 5)), tuple(kind["ranks"]), bias=False).params == kind["params"]
        assert "linear" not in form
    text = cli("formats", "--conv", "16,32,5").stdout
    assert "5 x 5 convolution of 16 channels to 32" in text
    refused = cli("formats", "--linear", "7,13").stdout
    assert "linear layer of 7 inputs to 13 outputs" in refused
    assert "refused: tucker2 needs a convolution" in refused


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("tuker2",), ("'tuker2'", "tucker2", "tucker")),
        (("--conv", "64,64"), ("--conv '64,64'", "64,64,3")),
        (("--conv", "64,64,0"), ("--conv '64,64,0'", "above 0")),
        (("--linear", "a,b"), ("--linear 'a,b'", "512,512")),
        (("--linear", "4,4", "--conv", "4,4,3"), ("give one of them",)),
    ],
)
def test_what_cannot_be_used(cli: Callable[..., Any], arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    result = cli("formats", *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error:")
    assert all(word in result.stderr for word in words), result.stderr


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_has_a_section_with_a_picture(name: str) -> None:
    sections = re.split(r"^## ", (DOCS / "formats.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    section = next((text for text in sections if text.startswith(f"`{name}`")), "")
    assert section, f"docs/formats.md has no section on {name}"
    assert f"](pictures/formats/{name}.svg)" in section
    form = describe(FORMATS[name])
    for kind in LAYERS:
        if "formula" in form[kind]:
            assert form[kind]["formula"] in section
            assert form[kind]["equation"] in section


def test_the_pictures_are_what_the_script_draws(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(DOCS / "pictures/draw_formats.py"), str(tmp_path)], check=True)
    drawn = {file.name: file.read_text(encoding="utf-8") for file in tmp_path.iterdir()}
    assert set(drawn) == {f"{name}.svg" for name in FORMATS}
    for name, text in drawn.items():
        assert (DOCS / "pictures/formats" / name).read_text(encoding="utf-8") == text, f"draw {name} again"
