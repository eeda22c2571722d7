"""`rankwise doctor`: what is here, what is missing and how to get it, and a self-test that can fail."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from rankwise import names
from rankwise.describe import environment


@pytest.fixture
def few_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines that take seconds are not here."""
    problem = environment._problem
    monkeypatch.setattr(
        environment, "_problem", lambda name: problem(name) if name == "torch" else "not here: a reason"
    )


def test_everything_is_told(few_engines: None, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    listed = ['numpy>=1.24; extra == "onnx"', 'no-such-package>=1; extra == "onnx"', "torch>=2.4"]
    monkeypatch.setattr(environment, "requires", lambda name: listed)
    result = cli("doctor", "--json", "-")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert {"rankwise", "torch", "python", "system"} <= told["versions"].keys()
    (onnx,) = told["extras"]
    assert (list(onnx["installed"]), onnx["missing"]) == (["numpy"], ["no-such-package"])
    assert onnx["fix"] == "pip install 'rankwise[onnx]'"
    assert [each["name"] for each in told["engines"]] == list(names.ENGINES)
    assert told["devices"][0].startswith("CPU: ")
    assert [each["done"] for each in told["self_test"]][-1] == "run both in torch"
    assert "a reason" in result.stderr


def test_what_to_install_is_shown_as_it_is_typed(
    few_engines: None, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "requires", lambda name: ['no-such-package>=1; extra == "onnx"'])
    assert "pip install 'rankwise[onnx]'" in cli("doctor").stdout


def test_a_self_test_that_fails_is_an_error(
    few_engines: None, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rankwise.cli.self_test.load", lambda model, folder: model)  # untrained by the compression
    result = cli("doctor")
    assert result.exit_code == 1
    assert "a network that was saved and loaded gives other outputs" in result.stderr


def test_every_extra_for_users_says_what_it_is_for() -> None:
    listed = {each.name for each in environment.extras()}
    assert listed <= environment.USES.keys()
    assert {"onnx", "executorch", "vision"} <= listed
