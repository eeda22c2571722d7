"""Count the structure of the source: rooms, circles, lines, the longest function, the most parameters, comments.

python -m benchmarks.house [--against FOLDER] [--json FILE] [--source FOLDER]
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parent.parent / "src" / "rankwise"
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, kw_only=True)
class Module:
    """One file.

    Attributes:
        name: dotted, below the package; "" for the package itself.
        tree: of its source.
        lines, comments: how many; a line with code and a comment counts as both.
        imports: the modules of the package that it imports, in functions and for type checking too.
    """

    name: str
    tree: ast.Module
    lines: int
    comments: int
    imports: frozenset[str]

    @property
    def room(self) -> str:
        """The package, or the module at the top, that it belongs to."""
        return self.name.partition(".")[0]


@dataclass(frozen=True, kw_only=True)
class House:
    """The counts. Circles are groups of files, or of rooms, that import each other."""

    top_level_modules: int
    rooms: int
    arrows: int
    files: int
    lines: int
    comment_share: float
    file_circles: int
    room_circles: int
    longest_function: tuple[int, str]
    most_parameters: tuple[int, str]
    most_parameters_outside_cli: tuple[int, str]


def modules_of(source: Path) -> dict[str, Module]:
    """All files below a package, by dotted name."""
    paths = {".".join(path.relative_to(source).with_suffix("").parts): path for path in sorted(source.rglob("*.py"))}
    files = {name.removesuffix("__init__").removesuffix("."): path for name, path in paths.items()}
    found = {}
    for name, path in files.items():
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        imports = frozenset(_imports(tree, package, files, source.name)) - {name}
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        comments = sum(token.type == tokenize.COMMENT for token in tokens)
        found[name] = Module(
            name=name, tree=tree, lines=len(text.splitlines()), comments=comments, imports=frozenset(imports)
        )
    return found


def _imports(tree: ast.Module, package: str, files: Mapping[str, Path], top: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith(f"{top}."):
                    yield alias.name.removeprefix(f"{top}.")
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                parts = package.split(".") if package else []
                base = ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])
            elif node.module == top or (node.module or "").startswith(f"{top}."):
                base = (node.module or "").removeprefix(top).removeprefix(".")
            else:
                continue
            for alias in node.names:
                inside = f"{base}.{alias.name}".removeprefix(".")
                yield inside if inside in files else base


def circles(arrows: Mapping[str, frozenset[str]]) -> list[list[str]]:
    """Groups of names that reach one another along the arrows.

    Example:
        >>> circles({"a": frozenset("b"), "b": frozenset("a"), "c": frozenset("a")})
        [['a', 'b']]
    """
    reached: dict[str, set[str]] = {}
    for start in arrows:
        seen: set[str] = set()
        todo = list(arrows[start])
        while todo:
            if (name := todo.pop()) not in seen:
                seen.add(name)
                todo += arrows.get(name, ())
        reached[start] = seen
    groups = {
        tuple(sorted(other for other in reached[name] if name in reached.get(other, ())))
        for name in arrows
        if name in reached[name]
    }
    return [list(group) for group in sorted(groups)]


def between_rooms(modules: Mapping[str, Module]) -> dict[str, frozenset[str]]:
    """Which room imports from which; the package itself only passes names on and is not a room."""
    rooms: dict[str, set[str]] = {module.room: set() for module in modules.values() if module.name}
    for module in modules.values():
        for name in module.imports if module.name else ():
            if name and (room := modules[name].room) != module.room:
                rooms[module.room].add(room)
    return {room: frozenset(others) for room, others in rooms.items()}


def functions(modules: Mapping[str, Module]) -> Iterator[tuple[str, Function]]:
    """Every function, with the name of its module."""
    for module in modules.values():
        for node in ast.walk(module.tree):
            if isinstance(node, Function):
                yield module.name, node


def parameters(function: Function) -> int:
    """Number of parameters of a function, without `self` and `cls`."""
    given = function.args
    named = [argument.arg for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len([name for name in named if name not in ("self", "cls")]) + bool(given.vararg) + bool(given.kwarg)


def length(function: Function) -> int:
    """Lines of a function, including signature and docstring."""
    return (function.end_lineno or 0) - function.lineno + 1


def is_kernel(function: Function) -> bool:
    """Whether it runs on a GPU by Triton, where every pointer and stride is a parameter."""
    return any(ast.unparse(decorator).startswith("triton.") for decorator in function.decorator_list)


def house(source: Path = SOURCE) -> House:
    """Count a package."""
    modules = modules_of(source)
    rooms = between_rooms(modules)
    lines = sum(module.lines for module in modules.values())
    known = {name: frozenset(other for other in module.imports if other in modules) for name, module in modules.items()}
    made = [(f"{home}.{function.name}", home, function) for home, function in functions(modules)]
    lengths = [(length(function), name) for name, _, function in made]
    taken = [(parameters(function), name, home) for name, home, function in made if not is_kernel(function)]
    return House(
        top_level_modules=sum(path.suffix == ".py" for path in source.iterdir()),
        rooms=len(rooms),
        arrows=sum(map(len, rooms.values())),
        files=len(modules),
        lines=lines,
        comment_share=sum(module.comments for module in modules.values()) / lines,
        file_circles=len(circles({name: others for name, others in known.items() if name})),
        room_circles=len(circles(rooms)),
        longest_function=max(lengths),
        most_parameters=max((count, name) for count, name, _ in taken),
        most_parameters_outside_cli=max(
            (count, name) for count, name, home in taken if home.partition(".")[0] != "cli"
        ),
    )


def main() -> None:
    """Print what was counted, beside another checkout's where one is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, default=SOURCE, help="folder of the package")
    parser.add_argument("--against", type=Path, help="folder of another version of the package, for a table of both")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    given = parser.parse_args()
    found = asdict(house(given.source))
    if given.against is None:
        for name, value in found.items():
            print(f"{name.replace('_', ' '):<28} {_shown(value)}")
    else:
        before = asdict(house(given.against))
        print("| counted | before | now |\n|---|---|---|")
        for name, value in found.items():
            print(f"| {name.replace('_', ' ')} | {_shown(before[name])} | {_shown(value)} |")
    if given.json:
        given.json.write_text(json.dumps(found, indent=2))


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        count, name = value
        return f"{count:,} (`{name}`)"
    return f"{value:.1%}".replace("%", " %") if isinstance(value, float) else f"{value:,}"


if __name__ == "__main__":
    main()
