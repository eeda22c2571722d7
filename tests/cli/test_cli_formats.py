"""`rankwise formats`: every format is there, and in full."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

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


def test_a_format_with_settings_in_full(cli: Callable[..., Any]) -> None:
    name = "stt:slices=4,cores=all"
    text = " ".join(cli("formats", name).stdout.split())
    form = document(cli, name)[name]
    assert form["conv"]["sizes"]["s"] == 4
    assert form["conv"]["equation"] in text
    for key, setting in form["settings"].items():
        assert f"stt:{key}={setting['example']}" in text
        assert setting["about"] in text
    assert "settings" not in cli("formats", "svd").stdout
    split = document(cli, "tt:outputs=8x16x6,inputs=4x16x12", "--linear", "768,768")
    (form,) = split.values()
    assert form["linear"]["sizes"] == {"t": 8, "u": 16, "v": 6, "i": 4, "j": 16, "k": 12}
    assert "takes layers of the sizes in its settings" in " ".join(cli("formats", form["name"]).stdout.split())


def test_one_layer(cli: Callable[..., Any]) -> None:
    forms = document(cli, "--conv", "16,32,5")
    for name, form in forms.items():
        kind = form["conv"]
        if name in ("nystrom", "head_svd"):
            assert "not single ones" in kind["refused"]
            continue
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
        (("stt:slice=4",), ("no setting 'slice'", "slices=4", "cores=all")),
        (("svd:16",), ("svd has no settings",)),
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
