"""The examples in the documentation of all modules run, and the public names are what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import rankwise

MODULES = ["rankwise", *(module.name for module in pkgutil.walk_packages(rankwise.__path__, "rankwise."))]
MODULES.remove("rankwise.__main__")


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    try:
        module = importlib.import_module(name)
    except ImportError as error:  # an extra that is not installed
        pytest.skip(str(error))
    found = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert found.failed == 0


def test_examples_are_found() -> None:
    """Where none is found the test above would pass for nothing."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    examples = sum(
        len(test.examples)
        for name in ("rankwise.planning.choose", "rankwise.network.sites", "rankwise.statistics.collection")
        for test in finder.find(importlib.import_module(name))
    )
    assert examples >= 8


def test_public_names_exist_once() -> None:
    names = rankwise.__all__
    assert len(names) == len(set(names))
    for name in names:
        assert getattr(rankwise, name) is not None
    modules = {"evaluate", "export", "kernels", "training"}
    objects = [id(getattr(rankwise, name)) for name in names if name not in modules]
    assert len(objects) == len(set(objects))
    assert rankwise.__version__.count(".") == 2


def test_everything_that_a_star_import_brings_is_meant() -> None:
    scope: dict[str, object] = {}
    exec("from rankwise import *", scope)
    assert set(scope) - {"__builtins__"} == set(rankwise.__all__)
