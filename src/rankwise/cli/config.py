"""Runs as files: `--config run.yaml` reads the options of a command, and every run writes its own beside its result."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import typer
import yaml
from typer.core import TyperCommand, TyperGroup

from ..files import parse_yaml, read_text, replacing, told
from ..names import check_name

NAME = "run.yaml"
# How a command reports does not change its result.
APART = ("config", "json", "debug", "quiet", "verbose", "log", "dry-run", "resume", "report", "help")
# Arguments of commands that are given by place, in that order.
PLACES = ("model", "plan", "data", "path")
Group = TypeVar("Group")


@dataclass(frozen=True, kw_only=True)
class Given:
    """A command and the options and arguments that it was given, in words.

    Attributes:
        options: name without dashes -> word, list of words, or True for a switch.
        arguments: names of those that are given by place.
    """

    command: str
    options: Mapping[str, Any]
    arguments: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """The command line that repeats the run."""
        places = [word for name in self.arguments for word in _listed(self.options.get(name))]
        words = [
            word for name, value in self.options.items() if name not in self.arguments for word in _words(name, value)
        ]
        return shlex.join(["rankwise", self.command, *places, *words])

    def text(self) -> str:
        """The YAML file."""
        places = {name: self.options[name] for name in self.arguments if name in self.options}
        content = {"command": self.command, **places, **self.options}
        return f"# {self.line}\n" + yaml.safe_dump(content, sort_keys=False, allow_unicode=True)

    def write(self, result: Path) -> Path:
        """Write the file into a result that is a folder, or beside one that is a file."""
        file = result / NAME if result.is_dir() else result.with_name(f"{result.stem}.{NAME}")
        with replacing(file) as new:
            new.write_text(self.text(), encoding="utf-8")
        return file

    @classmethod
    def read(cls, file: Path) -> Given:
        """What a file holds; a ValueError if it is no such file."""
        with told(f"cannot read the run {str(file)!r}"):
            content = parse_yaml(read_text(file))
            if not isinstance(content, dict) or not isinstance(content.get("command"), str):
                raise ValueError("it must hold `command: compress` and its options, a line each")
            command = content.pop("command")
            places = [name for name in PLACES if name in content]
            return cls(
                command=command, options={str(key): each for key, each in content.items()}, arguments=tuple(places)
            )

    def group(self, kind: type[Group], **others: Any) -> Group:
        """A group of options with what the run says of them; `others` are set beside it."""
        made, kinds = dict(others), get_type_hints(kind)
        for each in fields(kind):  # type: ignore[arg-type]
            word = self.options.get(each.name.replace("_", "-"))
            if each.name in made or word is None:
                continue
            made[each.name] = _typed(word, str(kinds[each.name]))
        return kind(**made)


# What the command that runs now was given.
RUNNING: ContextVar[Given | None] = ContextVar("RUNNING", default=None)


class Configured(TyperCommand):
    """A command that also takes its options from `--config FILE`; those on the command line win."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the command line; what cannot be read is one line and exit code 2."""
        with _one_line(ctx):
            given = self._given(ctx, args) if "--help" not in args else {}
            if (file := given.get("config")) is not None:
                args = self._with_file(ctx, args, given, Path(file))
                given = self._given(ctx, args)
            kept = {name: value for name, value in given.items() if name not in APART}
            places = tuple(_name(each) for each in self.params if each.param_type_name == "argument")
            RUNNING.set(Given(command=str(self.name), options=kept, arguments=places))
            return super().parse_args(ctx, args)

    def _given(self, ctx: Any, args: Sequence[str]) -> dict[str, Any]:
        """The words of every option and argument that is given."""
        words, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        known = {each.name: each for each in self.params}
        return {
            _name(known[name]): list(value) if isinstance(value, (list, tuple)) else value
            for name, value in words.items()
            if name in known and isinstance(value, (str, bool, int, list, tuple)) and value != ()
        }

    def _with_file(self, ctx: Any, args: Sequence[str], given: Mapping[str, Any], file: Path) -> list[str]:
        """The command line with the options and arguments of the file that it does not give itself."""
        run = Given.read(file)
        if run.command != self.name:
            raise ValueError(f"--config {file} is of rankwise {run.command}, not of rankwise {self.name}")
        known = {_name(each): each for each in self.params}
        options, places = list[str](), list[str]()
        for name, value in run.options.items():
            check_name("option", name, known, f"--config {file}: ")
            if name not in given and known[name].param_type_name != "argument":
                options += _words(name, value)
        for name, each in known.items():
            if each.param_type_name == "argument" and name not in given:
                places += _listed(run.options.get(name))
        return [*options, *args, *places]


class Commands(TyperGroup):
    """The commands; an unknown one is one line and exit code 2."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command."""
        with _one_line(ctx):
            return super().resolve_command(ctx, args)


@contextmanager
def _one_line(ctx: Any) -> Iterator[None]:
    """Inside, a command line that cannot be read ends as every error does: one line, exit code 2."""
    try:
        yield
    except Exception as error:
        usage = hasattr(error, "format_message") and getattr(error, "exit_code", 0) == 2
        if not isinstance(error, (ValueError, OSError)) and not usage:
            raise
        if type(error).__name__.startswith("NoArgsIsHelp"):
            raise
        text = error.format_message() if hasattr(error, "format_message") else str(error)
        text = " ".join(text.split()).rstrip(".")
        typer.echo(f"error: {text} ({ctx.command_path} --help shows what can be written)", err=True)
        raise typer.Exit(2) from error


def _name(parameter: Any) -> str:
    """The name of an option without dashes, or of an argument."""
    long = [name for name in parameter.opts if name.startswith("--")]
    return long[0].lstrip("-") if long else str(parameter.name)


def _listed(value: Any) -> list[str]:
    return [] if value is None else [str(each) for each in value] if isinstance(value, list) else [str(value)]


def _words(name: str, value: Any) -> list[str]:
    """An option as words of a command line."""
    if isinstance(value, bool):
        return [f"--{name}"] if value else []
    return [word for each in _listed(value) for word in (f"--{name}", each)]


def _typed(word: Any, kind: str) -> Any:
    """A word as the type that a group of options declares."""
    if "list" in kind:
        return _listed(word)
    for name, read in (("Path", Path), ("bool", bool), ("int", int), ("float", float)):
        if name in kind:
            return read(word)
    return str(word)
