"""Pages of the site that are made from the code: the first page, formats, rules, the command line and the API.

`make site` runs it while it builds the site.

- The first page is README.md with its links made relative.
- Every format has a page: equation, when to use it, what it takes and costs, its picture.
- Every rule that chooses ranks and every technique of training has one: what it solves, its settings, its source.
- The command line is what `--help` knows.
- The API is what docstrings say about the public names.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import mkdocs_gen_files
import typer

import rankwise as rw
from rankwise.cli.app import app
from rankwise.describe.formats import describe
from rankwise.techniques import RECIPES

ROOT = Path(__file__).resolve().parents[2]
SOURCE = "https://github.com/rankwise/rankwise/blob/main/"
MODULES = ("evaluate", "export", "kernels", "training")
# Pages of one class have a heading of their own; pages of many have one for each.
DOCSTRING = "    options: {show_root_heading: false, show_root_toc_entry: false, members: false, show_bases: false}\n"
NAMED = "    options: {show_root_heading: true, heading_level: 2, filters: ['!^_'], show_bases: false}\n"


def write(path: str, text: str) -> None:
    """Write a page of the site."""
    with mkdocs_gen_files.open(path, "w") as file:
        file.write(text.rstrip() + "\n")


def first_page() -> str:
    """README.md, whose links are relative to the repository, as a page of `docs/`."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"\[docs/(\w+)\.md\]\(docs/", r"[\1](", text)
    text = re.sub(r"\]\(docs/", "](", text)
    return re.sub(r"\]\((examples|src)/", rf"]({SOURCE}\1/", text)


def format_page(name: str) -> str:
    """The page of a format."""
    format = rw.FORMATS[name]
    told = describe(format)
    picture = ROOT / "docs" / "pictures" / "formats" / f"{name}.svg"
    lines = [f"# {name}", "", f"{sentence(told['summary'])} Use it for {told['use']}.", ""]
    if picture.exists():
        lines += [f"![The factors of {name}, and the layers that hold them](../../pictures/formats/{name}.svg)", ""]
    lines += [f"Takes: {', '.join(told['takes'])}.", ""]
    costs = [(kind, told[kind]) for kind in ("conv", "linear") if "ranks" in told.get(kind, {})]
    if costs:
        lines += ["## Cost at about half of the MACs", "", "| layer | ranks | parameters | of dense | MACs of dense |"]
        lines += ["|---|---|---|---|---|"]
        for _, one in costs:
            shape, ranks = ("x".join(map(str, one[key])) for key in ("weight_shape", "ranks"))
            shares = f"{one['params_share']:.2f} | {one['macs_share']:.2f}"
            lines.append(f"| {shape} | {ranks} | {one['params']:,} | {shares} |")
        lines.append("")
    if told["settings"]:
        lines += ["## Settings", "", *(f"- `{key}`: {one['about']}" for key, one in told["settings"].items()), ""]
    lines += ["## What it solves", "", f"::: {home(type(format))}", DOCSTRING]
    lines += [
        f"More: [all formats](../../formats.md), [how fits work](../../method.md). Try it: `rankwise formats {name}`."
    ]
    return "\n".join(lines)


def rule_page(name: str) -> str:
    """The page of a rule."""
    rule = rw.RULES[name]
    keep = " --keep macs=0.5" if rule.needs_budget else ""
    return f"""# {name}

{sentence(rule.summary)}

```sh
rankwise compress nets.py:build pictures/ --rule {name}{keep} -o out/
```

## What it solves

::: {home(rule)}
{DOCSTRING}
More: [all rules, compared](../../rules.md)."""


def technique_page(name: str) -> str:
    """The page of a technique of training."""
    recipe = RECIPES[name]
    found = re.search(r"`(\w+)\.(\w+)`", recipe.__doc__ or "")
    assert found is not None, f"the docstring of {recipe.__name__} names no technique"
    cls = getattr(importlib.import_module(f"rankwise.{found[1]}"), found[2])
    settings = ", ".join(f"`{field.name}={field.default}`" for field in fields(recipe))
    return f"""# {name}

{sentence(recipe.summary)}

```sh
rankwise train nets.py:build pictures/ --technique {name} --keep params=0.3 -o out/
```

Settings, after a colon: {settings}.

## What it does

::: {home(cls)}
{DOCSTRING}
More: [all techniques](../../training.md)."""


def home(cls: type[Any]) -> str:
    """Where a class is defined."""
    return f"{cls.__module__}.{cls.__qualname__}"


def sentence(text: str) -> str:
    """A summary as a sentence."""
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def command_page() -> str:
    """All commands with their options."""
    group: Any = typer.main.get_command(app)
    lines = [
        "# Command line reference",
        "",
        "What `--help` says. [Examples and concepts](../cli.md) are on their own page.",
        "",
    ]
    for name, command in group.commands.items():
        lines += [f"## rankwise {name}", "", plain(command.help or ""), ""]
        lines += [*options(command), ""]
    return "\n".join(lines)


def options(command: Any) -> Iterator[str]:
    """A table of a command's options."""
    yield "| option | what it does |"
    yield "|---|---|"
    for parameter in command.params:
        if parameter.param_type_name == "option" and not parameter.hidden:
            names = ", ".join([*parameter.opts, *parameter.secondary_opts])
            value = "" if parameter.is_flag else f" {parameter.metavar or parameter.type.name.upper()}"
            yield f"| `{names}{value}` | {plain(parameter.help or '').replace('|', chr(92) + '|')} |"


def plain(text: str) -> str:
    """Help without the markup of the terminal; what was bold there is code."""
    return re.sub(r"\[/?(bold|dim)\]", "`", text).replace("\n\n\n", "\n\n")


def api_page(name: str) -> str:
    """Docstrings of all public names of a module, or of those at the top."""
    module: Any = getattr(rw, name) if name in MODULES else rw
    path = f"rankwise.{name}" if name in MODULES else "rankwise"
    names = [each for each in module.__all__ if each not in MODULES and callable(getattr(module, each))]
    return f"# {path}\n\n" + "\n\n".join(f"::: {path}.{each}\n{NAMED}" for each in names)


write("index.md", first_page())
for each in rw.FORMATS:
    write(f"reference/formats/{each}.md", format_page(each))
for each in rw.RULES:
    write(f"reference/rules/{each}.md", rule_page(each))
for each in RECIPES:
    write(f"reference/techniques/{each}.md", technique_page(each))
write("reference/cli.md", command_page())
for each in ("rankwise", *MODULES):
    write(f"reference/api/{each}.md", api_page(each))
listed = [
    "* [Command line](cli.md)",
    "* Formats",
    *(f"    * [{each}](formats/{each}.md)" for each in rw.FORMATS),
    "* Rules for ranks",
    *(f"    * [{each}](rules/{each}.md)" for each in rw.RULES),
    "* Techniques of training",
    *(f"    * [{each}](techniques/{each}.md)" for each in RECIPES),
    "* Python",
    *(f"    * [{each}](api/{each}.md)" for each in ("rankwise", *MODULES)),
]
write("reference/SUMMARY.md", "\n".join(listed))
