"""A plan through YAML and back, edited by hand, and every complaint about it."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from rankwise import Plan, PlanRow
from rankwise.names import METRICS

text = st.text(st.characters(codec="utf-8"), max_size=12)
numbers = st.integers(0, 10**15)
dense_rows = st.builds(PlanRow, site=text, params=numbers, macs=numbers, error=st.just(0.0), why=text)
low_rank_rows = st.builds(
    PlanRow,
    site=text,
    format=st.sampled_from(["svd", "spatial_svd", "tucker2"]),
    ranks=st.lists(st.integers(1, 9999), min_size=1, max_size=3).map(tuple),
    params=numbers,
    macs=numbers,
    error=st.one_of(st.none(), st.floats(0, 1)),
    why=text,
)
plans = st.builds(
    Plan,
    rows=st.lists(st.one_of(dense_rows, low_rank_rows), max_size=5, unique_by=lambda row: row.site).map(tuple),
    keep=st.dictionaries(st.sampled_from(["macs", "params"]), st.one_of(st.floats(0.001, 1), numbers), max_size=1),
    dense=st.dictionaries(text, numbers, max_size=3),
    planned=st.dictionaries(text, numbers, max_size=3),
    metric=st.sampled_from(METRICS),
    fingerprint=text,
)


def example() -> Plan:
    return Plan(
        rows=(
            PlanRow(site="stem", params=100, macs=1000, error=0.0, why="ignored"),
            PlanRow(
                site="layer1.0.conv", format="tucker2", ranks=(8, 4), params=50, macs=500, error=0.0125, why="a: b"
            ),
            PlanRow(site="0", format="svd", ranks=(3,), params=5, macs=50),
        ),
        keep={"macs": 0.5},
        dense={"params": 300, "macs": 3000, "bytes": 1200},
        planned={"params": 155, "macs": 1550, "bytes": 620},
        fingerprint="abc",
    )


@settings(max_examples=150, deadline=None)
@given(plan=plans)
def test_yaml_round_trip(plan: Plan) -> None:
    assert Plan.from_yaml(plan.to_yaml()) == plan
    assert Plan.from_dict(plan.to_dict()) == plan


def test_file_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    example().save(path)
    assert Plan.load(str(path)) == example()
    assert yaml.safe_load(path.read_text())["rows"][1]["ranks"] == [8, 4]


def test_one_line_per_site() -> None:
    lines = example().to_yaml().splitlines()
    rows = [line for line in lines if line.startswith("- ")]
    assert len(rows) == 3
    assert rows[1].startswith("- {site: layer1.0.conv, format: tucker2, ranks: [8, 4], params: 50")


def test_a_plan_is_a_mapping_of_its_rows() -> None:
    plan = example()
    assert list(plan) == ["stem", "layer1.0.conv", "0"]
    assert len(plan) == 3
    assert plan["0"].ranks == (3,)
    assert "stem" in plan
    assert "layer9" not in plan
    with pytest.raises(KeyError):
        plan["layer9"]
    assert [row.site for row in plan.factorised] == ["layer1.0.conv", "0"]


def test_an_edited_row_may_leave_out_what_follows_from_it() -> None:
    plan = Plan.from_yaml(
        """
        # fewer ranks in the middle
        metric: weight
        rows:
        - {site: a, format: svd, ranks: [4]}
        - site: b          # stays
        """
    )
    assert plan["a"] == PlanRow(site="a", format="svd", ranks=(4,), params=0, macs=0)
    assert plan["b"].format == "dense"
    assert plan.metric == "weight"


def changed(row: dict[str, Any] | None = None, **top: Any) -> dict[str, Any]:
    plain: dict[str, Any] = {"rows": [{"site": "a", "format": "svd", "ranks": [4], "params": 1, "macs": 2}]}
    plain["rows"][0].update(row or {})
    return {**plain, **top}


@pytest.mark.parametrize(
    "plain, message",
    [
        ([], "plan: a mapping is needed, not list"),
        (None, "plan: a mapping is needed, not NoneType"),
        ({}, "plan: the field 'rows' is missing"),
        (changed(budget=3), "plan: unknown field 'budget'; the fields are"),
        (changed(rows=None), "plan: rows must be a list, not NoneType"),
        (changed(rows={"a": 1}), "plan: rows must be a list, not dict"),
        (changed(rows=["a"]), "plan row 0: a mapping is needed, not str"),
        (changed(rows=[{"format": "svd"}]), "plan row 0: the field 'site' is missing"),
        (changed({"rank": 4}), "plan row 0: unknown field 'rank'"),
        (changed({"ranks": 4}), r"plan row 0 \(site 'a'\): ranks must be a list of integers, not 4"),
        (changed({"ranks": [4.5]}), "ranks must be a list of integers"),
        (changed({"ranks": [True]}), "ranks must be a list of integers"),
        (changed({"ranks": "4"}), "ranks must be a list of integers"),
        (changed({"site": 3}), "site must be str, not 3"),
        (changed({"format": None}), "format must be str, not None"),
        (changed({"why": []}), "why must be str"),
        (changed({"params": "many"}), "params must be int, not 'many'"),
        (changed({"macs": True}), "macs must be int, not True"),
        (changed({"macs": 1.5}), "macs must be int, not 1.5"),
        (changed({"error": "small"}), "error must be a number, not 'small'"),
        (changed({"error": True}), "error must be a number, not True"),
        (changed({"format": "dense"}), r"a dense site has no ranks, but \[4\] stand there"),
        (changed(rows=[{"site": "a"}, {"site": "b"}, {"site": "a"}]), "site 'a' has more than one row"),
        (changed(keep=0.5), "plan: keep must be a mapping, not 0.5"),
        (changed(dense=[1]), r"plan: dense must be a mapping, not \[1\]"),
        (changed(planned=None), "plan: planned must be a mapping, not None"),
        (changed(keep={"macs": "half"}), "plan: keep must map names to finite numbers, not {'macs': 'half'}"),
        (changed(dense={1: 2}), "plan: dense must map names to finite numbers"),
        (changed(metric=3), "plan: metric must be a string, not 3"),
        (
            changed(metric="inputs"),
            "plan: unknown metric 'inputs'; did you mean input",
        ),
        (changed(rule=None), "plan: rule must be a string, not None"),
        (changed(fingerprint=["a"]), "plan: fingerprint must be a string"),
    ],
)
def test_what_is_no_plan_is_refused_by_name(plain: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Plan.from_dict(plain)
    with pytest.raises(ValueError, match=message):
        Plan.from_yaml(yaml.safe_dump(plain))


def test_plans_made_in_python_are_checked_too() -> None:
    row = PlanRow(site="a", format="svd", ranks=(4,), params=1, macs=2)
    with pytest.raises(ValueError, match="unknown metric 'inputs'; did you mean input"):
        Plan(rows=(row,), metric="inputs")
    with pytest.raises(ValueError, match="site 'a' has more than one row; keep one"):
        Plan(rows=(row, replace(row, ranks=(2,))))


def test_a_plan_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "plan.yaml"
    example().save(path)

    def full(self: Path, text: str, **_: Any) -> None:
        self.write_bytes(text.encode()[:20])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match=r"cannot write: No space left on device.*plan\.yaml"):
        replace(example(), fingerprint="new").save(path)
    assert Plan.load(path) == example()
    assert list(tmp_path.iterdir()) == [path]


def test_a_plan_is_saved_in_a_new_folder(tmp_path: Path) -> None:
    example().save(str(tmp_path / "new" / "folder" / "plan.yaml"))
    assert Plan.load(tmp_path / "new" / "folder" / "plan.yaml") == example()


def test_text_that_is_no_yaml() -> None:
    with pytest.raises(ValueError, match="not valid YAML"):
        Plan.from_yaml("rows: [")
    with pytest.raises(ValueError, match="not valid YAML"):
        Plan.from_yaml("rows: !!python/object/apply:os.getcwd []")


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read the plan .*nowhere\.yaml"):
        Plan.load(tmp_path / "nowhere.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ValueError, match=r"binary\.yaml"):
        Plan.load(tmp_path / "binary.yaml")
    (tmp_path / "other.yaml").write_text("a: 1\n")
    with pytest.raises(ValueError, match=r"other\.yaml: plan: unknown field 'a'"):
        Plan.load(tmp_path / "other.yaml")
