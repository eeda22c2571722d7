"""Which fits a race asks for, and the curves that it draws through them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from torch import nn

from rankwise import FORMATS, Site, find
from rankwise.formats import Cost, Ranks
from rankwise.formats.bounds import Bounds
from rankwise.formats.front import Front
from rankwise.formats.multilinear import QUICK, Multilinear
from rankwise.formats.race import POWER, WORTH, Asked, Entry, run, through
from rankwise.formats.shape import Shape
from rankwise.formats.weights import site_weight
from rankwise.linalg.metric import Identity

FORMS = [format for format in FORMATS.values() if isinstance(format, Multilinear)]


def entry_of(seed: int, *names: str, rivals: Front | None = None, outputs: int = 12) -> Entry:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(8, outputs, 3))
    site = find(model, torch.randn(1, 8, 6, 6))["0"]
    formats = [format for format in FORMS if not names or format.name in names]
    return Entry(formats, site, site_weight(model, site), [Identity(site.in_features)], 1, rivals)


def answers(model: dict[str, float]) -> tuple[list[tuple[str, Ranks]], object]:
    """Errors that fall exponentially with the share of the MACs, from a level for each format; and a list of fits."""
    made: list[tuple[str, Ranks]] = []

    def fits(asked: Asked, entries: Sequence[Entry]) -> list[list[float]]:
        made.extend((asked.format.name, ranks) for ranks in asked.ranks)
        return [[level(model, asked.format, one.site, ranks) for ranks in asked.ranks] for one in entries]

    return made, fits


def level(model: dict[str, float], format: Multilinear, site: Site, ranks: Ranks) -> float:
    return model[format.name] * math.exp(-3 * (format.cost(site, ranks, False).macs / site.macs) ** POWER)


def quick(format: Multilinear, entry: Entry, ranks: Ranks) -> float:
    return format._fit(entry.site, entry.weight, entry.metrics, ranks, QUICK).error


def test_a_curve_through_three_points_of_a_parabola() -> None:
    """A logarithm that is a polynomial of a power of the cost is found again."""
    costs = {place: round(1e6 * (place + 1) ** (1 / POWER)) for place in range(10)}
    exact = {place: math.exp(-0.3 * (place + 1) - 0.02 * (place + 1) ** 2) for place in range(10)}
    curve = through({place: exact[place] for place in (0, 4, 9)}, costs)
    assert list(curve) == list(costs)
    assert list(curve.values()) == pytest.approx(list(exact.values()))


def test_curves_never_rise_and_stay_between_known_errors() -> None:
    costs = {place: 1 + place for place in range(30)}
    for errors in ({0: 0.9, 10: 0.89, 12: 1e-3, 29: 1e-3}, {0: 0.5, 15: 0.6, 29: 0.0}, {0: 1.5, 29: 0.2}):
        curve = through(errors, costs)
        assert all(after <= before for before, after in pairwise(curve.values()))
        assert all(curve[place] <= error for place, error in errors.items())
        assert max(curve.values()) <= 1
    assert through({3: 0.4}, {3: 7}) == {3: 0.4}


def test_without_rivals_all_families_are_fitted() -> None:
    entry = entry_of(0)
    made, fits = answers(dict.fromkeys(FORMATS, 0.9))
    (curves,) = run([entry], fits)  # type: ignore[arg-type]
    for format in FORMS:
        useful = {
            ranks
            for ladder in format.ladders(Shape.of_site(entry.site), 1)
            for ranks in ladder
            if format.saves(entry.site, ranks)
        }
        assert dict(curves[format.name]).keys() == useful
        for ranks, error in curves[format.name]:
            # Between fits the curve is a guess, above all near the smallest ranks.
            assert error <= level({format.name: 0.9}, format, entry.site, ranks) * 1.05
    assert len(set(made)) < sum(map(len, curves.values())) / 2


def test_what_cannot_be_the_best_is_not_fitted() -> None:
    """Rivals at the bounds themselves leave nothing to hope for."""
    entry, shape = entry_of(0), Shape(1, 12, 8, (3, 3))
    bounds = Bounds(entry.site, entry.weight, entry.metrics, 1)
    front = Front()
    for format in FORMS:
        places = [ranks for ladder in format.ladders(shape, 1) for ranks in ladder if format.saves(entry.site, ranks)]
        front.add((format.cost(entry.site, ranks, False), bounds(format.network(shape, ranks))) for ranks in places)
    made, fits = answers(dict.fromkeys(FORMATS, 0.9))
    run([entry._replace(rivals=front)], fits)  # type: ignore[arg-type]
    assert not made


def test_a_family_that_is_clearly_beaten_is_fitted_once() -> None:
    rivals = Front([(Cost(1, 1), 1e-6)])
    made, fits = answers(dict.fromkeys(FORMATS, 0.9))
    assert run([entry_of(0, "kronecker", "stt", rivals=rivals)], fits) == [{"kronecker": [], "stt": []}]  # type: ignore[arg-type]
    entry = entry_of(0, "kronecker")
    (kronecker,) = entry.formats
    made, fits = answers({"kronecker": 2.0})
    run([entry], fits)  # type: ignore[arg-type]
    first = made[0][1]
    cost, error = kronecker.cost(entry.site, first, False), level({"kronecker": 2.0}, kronecker, entry.site, first)  # type: ignore[arg-type]
    error **= kronecker.power
    for share, is_dropped in ((1.01 / WORTH, False), (0.99 / WORTH, True)):
        again, fits = answers({"kronecker": 2.0})
        run([entry._replace(rivals=Front([(cost, share * error)]))], fits)  # type: ignore[arg-type]
        assert (again[-1] == made[0]) == is_dropped


def test_forms_run_against_each_other() -> None:
    """What comes first and is better leaves nothing to those after it."""
    made, fits = answers({"cp3": 1.46, "cp": 4.0})
    (curves,) = run([entry_of(0, "cp3", "cp", rivals=Front())], fits)  # type: ignore[arg-type]
    assert curves["cp3"]
    assert not curves["cp"]
    assert [name for name, _ in made].count("cp") == 1


def test_a_site_has_the_same_curves_alone_and_among_others() -> None:
    """Also among sites that need other fits; sites of one shape are fitted side by side."""
    names = ("cp3", "ht", "kronecker")
    entries = [entry_of(seed, *names, rivals=Front([(Cost(300, 300), 0.9 - 0.2 * seed)])) for seed in range(3)]
    entries.append(entry_of(3, *names, rivals=Front(), outputs=16))
    together: list[int] = []

    def fits(asked: Asked, some: Sequence[Entry]) -> list[list[float]]:
        together.append(len(some))
        format = asked.format
        assert isinstance(format, Multilinear)
        return [
            [format._fit(one.site, one.weight, one.metrics, ranks, QUICK).error for ranks in asked.ranks]
            for one in some
        ]

    assert run(entries, fits) == [run([entry], fits)[0] for entry in entries]
    assert max(together) >= 3
