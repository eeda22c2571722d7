"""Options in groups: one parameter each, in order, and a group made of them for the command."""

from __future__ import annotations

from dataclasses import dataclass
from inspect import signature
from typing import Annotated, Any

import typer
from typer.testing import CliRunner

from rankwise.cli.command import command
from rankwise.cli.options.base import argument, data, plain


@dataclass(frozen=True, kw_only=True)
class Base:
    """A group."""

    what: Annotated[str, argument("WHAT", "An argument.")]
    size: Annotated[int, data("--size N", "An option.")] = 3


@dataclass(frozen=True, kw_only=True)
class Wider(Base):
    """A group that adds to another."""

    flag: Annotated[bool, plain("--flag", "A switch.")] = False


def wide(told: list[Any]) -> Any:
    @command
    def run(group: Wider, single: Annotated[str, plain("-s --single TEXT", "Beside the group.")] = "x") -> None:
        """Do nothing."""
        told.extend((group, single))

    return run


def test_fields_become_parameters_in_their_order() -> None:
    parameters = signature(wide([])).parameters
    assert list(parameters) == ["what", "size", "flag", "single"]
    assert [each.default for each in parameters.values()] == [parameters["what"].empty, 3, False, "x"]


def test_a_command_receives_its_groups() -> None:
    told: list[Any] = []
    app = typer.Typer()
    app.command()(wide(told))
    assert CliRunner().invoke(app, ["cat", "--flag", "-s", "y"]).exit_code == 0
    assert CliRunner().invoke(app, ["cat", "--size", "5"]).exit_code == 0
    assert CliRunner().invoke(app, []).exit_code == 2
    assert told == [Wider(what="cat", flag=True), "y", Wider(what="cat", size=5), "x"]


def test_an_option_is_written_in_one_text() -> None:
    option = plain("-o --out HOW MUCH", "Help.", shown=False)
    # typer takes the first name for a default, which `Annotated` puts right
    assert (option.default, *option.param_decls) == ("-o", "--out")
    assert (option.metavar, option.show_default) == ("HOW MUCH", False)
    assert plain("--flag", "Help.").metavar is None
    assert (plain("--flag", "Help.").rich_help_panel, data("--size N", "Help.").rich_help_panel) == (None, "Data")
