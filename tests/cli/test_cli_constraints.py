"""Budgets and constraints as text."""

from __future__ import annotations

import pytest

from rankwise.cli.options.choosing import Budget
from rankwise.cli.parsing import (
    check_names,
    parse_budgets,
    parse_formats,
    parse_keep,
    parse_pins,
    parse_ranks,
    parse_round_to,
    parse_rule,
)
from rankwise.ranks.budgeted import Knapsack


@pytest.mark.parametrize(
    "text, expected",
    [
        ("macs=0.5", {"macs": 0.5}),
        ("macs=1.0", {"macs": 1.0}),
        ("macs=50%", {"macs": 0.5}),
        ("params=5e-1", {"params": 0.5}),
        ("params=1.5M", {"params": 1_500_000}),
        ("bytes=300k", {"bytes": 300_000}),
        ("macs=2G", {"macs": 2_000_000_000}),
        ("macs=12345", {"macs": 12345}),
    ],
)
def test_a_fraction_is_a_float_and_an_absolute_number_an_int(text: str, expected: dict[str, float]) -> None:
    keep = parse_keep(text)
    assert keep == expected
    assert [type(value) for value in keep.values()] == [type(value) for value in expected.values()]


@pytest.mark.parametrize(
    "text", ["macs", "flops=0.5", "macs=", "macs=half", "macs=0", "macs=-0.5", "macs=1.5", "macs=1", "macs=150%"]
)
def test_a_budget_that_cannot_be_meant_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="--keep"):
        parse_keep(text)


def test_ranks_are_numbers_or_fractions_and_patterns_may_hold_equal_signs() -> None:
    assert parse_ranks(["layer.*=32", "re:a=b=0.5"], "--cap") == {"layer.*": 32, "re:a=b": 0.5}
    with pytest.raises(ValueError, match="--floor 'fc=many'"):
        parse_ranks(["fc=many"], "--floor")
    with pytest.raises(ValueError, match="--cap '32'"):
        parse_ranks(["32"], "--cap")


def test_settings_belong_to_the_format_before_them() -> None:
    assert parse_formats("svd, tucker2") == ("svd", "tucker2")
    assert parse_formats("svd,tt:outputs=8x2,inputs=4x4,ht:tree=th/cw,auto") == (
        *("svd", "tt:outputs=8x2,inputs=4x4"),
        *("ht:tree=th/cw", "auto"),
    )
    for names in (("tt:outputs=8x2", "auto"), ("svd",)):
        check_names("knapsack", None, names, {})
    with pytest.raises(ValueError, match=r"--formats 'tt:output=8x2': .*no setting 'output'; .* outputs=8x16x6"):
        check_names("knapsack", None, parse_formats("tt:output=8x2"), {})
    with pytest.raises(ValueError, match=r"'svd:slices=4': there is no setting 'slices'; svd has no settings"):
        check_names("knapsack", None, parse_formats("svd,slices=4"), {})


@pytest.mark.parametrize(
    "text, pattern, wanted",
    [
        ("fc=svd:64", "fc", "svd:64"),
        ("fc=dense", "fc", "dense"),
        ("re:a=b.*=svd:3", "re:a=b.*", "svd:3"),
        ("fc=slr:k=64,sr=0.5,rr=0.5", "fc", "slr:k=64,sr=0.5,rr=0.5"),
        ("fc=stt:slices=4:8,8,4", "fc", "stt:slices=4:8,8,4"),
        ("re:a=b=stt:slices=4,cores=all:8,4", "re:a=b", "stt:slices=4,cores=all:8,4"),
        ("fc=tt:outputs=8x2,inputs=4x4:3", "fc", "tt:outputs=8x2,inputs=4x4:3"),
        ("fc=ht:tree=th/cw:3,3,2,2,4", "fc", "ht:tree=th/cw:3,3,2,2,4"),
    ],
)
def test_pins_may_have_settings_before_their_ranks(text: str, pattern: str, wanted: str) -> None:
    assert parse_pins([text]) == {pattern: wanted}
    check_names("knapsack", None, (), {pattern: wanted})


def test_a_pin_of_a_format_that_is_not_there() -> None:
    assert parse_pins(["fc=sst:cores=all:8"]) == {"fc": "sst:cores=all:8"}
    with pytest.raises(ValueError, match=r"--pin fc=sst:cores=all:8: unknown format 'sst'; did you mean stt"):
        check_names("knapsack", None, (), parse_pins(["fc=sst:cores=all:8"]))


def test_round_to() -> None:
    assert parse_round_to("auto") == "auto"
    assert parse_round_to("8") == 8
    for text in ("0", "-8", "eight"):
        with pytest.raises(ValueError, match="--round-to"):
            parse_round_to(text)


def test_everything_becomes_keyword_arguments_of_choose() -> None:
    wishes = Budget(keep=["macs=0.5"], formats="svd, tucker2", pin=["fc=svd:64"], cap=["c*=8"]).wishes("input")
    assert wishes == {
        "keep": {"macs": 0.5},
        "rule": Knapsack(),
        "floor_rule": None,
        "target_drop": None,
        "minimise": "macs",
        "formats": ("svd", "tucker2"),
        "metric": "input",
        "ignore": (),
        "include": ("*",),
        "pin": {"fc": "svd:64"},
        "floor": {},
        "cap": {"c*": 8},
        "tie": (),
        "uniform": False,
        "round_to": "auto",
    }
    with pytest.raises(ValueError, match="--formats names nothing"):
        Budget(keep=["macs=0.5"], formats=",").wishes("input")


def test_several_budgets_are_one_request() -> None:
    assert parse_budgets(None) is None
    assert parse_budgets(["macs=0.5", "params=1M"]) == {"macs": 0.5, "params": 1_000_000}
    with pytest.raises(ValueError, match=r"--keep 'macs=0\.3': there is a macs budget already"):
        parse_budgets(["macs=0.5", "macs=0.3"])


def test_an_unknown_rule_gives_near_names() -> None:
    assert parse_rule("knapsack") == Knapsack()
    with pytest.raises(ValueError, match="--rule 'knapsak': unknown rule 'knapsak'; did you mean knapsack"):
        parse_rule("knapsak")
