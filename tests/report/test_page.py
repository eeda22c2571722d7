"""A report's page: complete, escaped, alone, and in order in a real browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib", reason="the extra [report] is not installed")

from rankwise.evaluate.answers import ChangedClass, ChangedSample, Changes
from rankwise.plan import Plan, PlanRow
from rankwise.report import Findings, Front, Layer, Point
from rankwise.report.comparison import figures_beside, layers_beside, write_comparison
from rankwise.report.page import html_of
from rankwise.report.verdict import gist, worse

EVIL = '<script>alert("x")</script>'
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
VOID = {"meta", "img", "path", "use", "rect", "br", "link", "input"}


def found() -> Findings:
    """Findings with everything in them, and names that would be harmful if they were not escaped."""
    rows = (
        PlanRow(site=EVIL, format="svd", ranks=(3,), params=60, macs=600, error=0.2, why=EVIL),
        PlanRow(site="block.1.fc", params=100, macs=1000, error=0.0, why="dense"),
    )
    layers = (
        Layer(
            name=EVIL,
            kind="linear",
            shape=(10, 10),
            format="svd",
            ranks=(3,),
            why=EVIL,
            before=(100, 1000),
            after=(60, 600),
            predicted=0.2,
            measured=0.25,
            values=(5.0, 2.0, 1.0, 0.1, 0.0),
            cut=3,
            curve=((0.2, 0.7), (0.4, 0.4), (0.6, 0.2), (0.8, 0.05), (1.0, 0.0)),
        ),
        Layer(name="block.1.fc", kind="linear", shape=(10, 10), before=(100, 1000), after=(100, 1000), predicted=0.0),
    )
    speed = {"median": 0.8, "low": 0.7, "high": 0.9}
    figures = {
        "dense": {"params": 200, "macs": 2000, "bytes": 800, "top1": 90.0, "latency_torch_ms": 1.0},
        "compressed": {
            **{"params": 160, "macs": 1600, "bytes": 900, "top1": 88.5, "agreement": 95.0},
            **{"latency_torch_ms": 1.25, "latency_torch_ms_interval": [1.2, 1.3], "speedup_torch": speed},
            "measures": {"agreement": {"title": "agreement", "unit": "%", "higher_is_better": True}},
        },
        "measured_on": EVIL,
        "timing": {"threads": 1, "batch": 1},
    }
    points = (
        Point(label="80%", share=0.8, value=88.5, low=85.0, high=91.0, chosen=True),
        Point(label="50%", share=0.5, value=70.0, low=65.0, high=74.0),
    )
    front = Front(unit="macs", title="accuracy", points=points, reference=90.0, higher=True)
    sample = ChangedSample(index=7, before=1, after=0, label=1, distance=0.5, inputs=torch.rand(3, 8, 8))
    row = ChangedClass(index=1, answers=9, changed=1, labels=9, right=(8, 7))
    changes = Changes(total=20, changed=1, classes=(row,), samples=(sample,))
    return Findings(
        name=EVIL,
        line=f"rankwise compress {EVIL}",
        run=f"model: {EVIL}",
        figures=figures,
        plan=Plan(rows=rows, dense={"macs": 2000}, planned={"macs": 1600}),
        layers=layers,
        samples=4,
        front=front,
        changes=changes,
        notes=(EVIL,),
        environment={"python": EVIL},
        provenance={"model": f"nets.{EVIL}"},
    )


class Tags(HTMLParser):
    """Checks that tags nest, and collects ids and what is fetched from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.fetched: list[str] = []
        self.pictures: list[dict[str, str | None]] = []
        self.count: dict[str, int] = {}

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._look(tag, dict(attrs))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._look(tag, dict(attrs))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def _look(self, tag: str, attributes: dict[str, str | None]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
        self.ids += [value for key, value in attributes.items() if key == "id" and value]
        links = [value or "" for key, value in attributes.items() if key in ("src", "href", "xlink:href")]
        self.fetched += [link for link in links if not link.startswith(("#", "data:image/png;base64,"))]
        if tag == "img":
            self.pictures.append(attributes)


@pytest.fixture(scope="module")
def page() -> str:
    return html_of(found())


def test_the_page_is_whole_and_stands_alone(page: str) -> None:
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert tags.fetched == []
    assert len(tags.ids) == len(set(tags.ids))
    assert tags.count["svg"] == 5  # times, front, errors, singular values, error curve
    assert [each["alt"] for each in tags.pictures] == ["Sample 7: class 1 became 0, label 1"]
    assert "url(http" not in page
    assert "@import" not in page


def test_names_are_escaped(page: str) -> None:
    assert EVIL not in page
    assert page.count("<script>") == 1
    assert "&lt;script&gt;" in page


def test_pictures_take_their_colours_from_the_page(page: str) -> None:
    assert "var(--small)" in page
    assert not re.search(r"#0[1-6]0[1-6]0[1-6]", page)


def test_what_got_worse_is_told() -> None:
    told = " ".join(worse(found()))
    for part in ("fell by 1.50 points", "5.00 % of the answers differ", "1.25 times the time", "More bytes", "(20.0%)"):
        assert part in told
    better = replace(found(), figures={}, layers=())
    assert worse(better) == []
    assert "80.0% of the parameters and 80.0% of the multiply-accumulates; 1 of 2" in gist(found())


def test_a_page_of_nothing_but_a_plan_has_no_empty_sections() -> None:
    bare = Findings(name="out", layers=found().layers[1:])
    tags = Tags()
    tags.feed(html_of(bare))
    assert tags.count["section"] == 3  # what got worse, before and after, layers
    assert "svg" not in tags.count


HARNESS = """
<script>
const told = {errors: [], orders: []};
addEventListener("error", (event) => told.errors.push(event.message));
addEventListener("securitypolicyviolation", (event) => told.errors.push(event.violatedDirective));
console.error = (...words) => told.errors.push(words.join(" "));
addEventListener("load", () => {
  const table = document.querySelector(".layers table[data-sorts]");
  const names = () => Array.from(table.tBodies[0].rows, (row) => row.cells[5].dataset.value);
  const button = table.querySelectorAll("thead button")[5];
  told.orders.push(names());
  button.click(); told.orders.push(names());
  button.click(); told.orders.push(names());
  told.sorted = button.closest("th").getAttribute("aria-sort");
  told.drawn = Array.from(document.querySelectorAll("figure svg"), (each) => each.getBoundingClientRect().width > 100);
  told.wide = document.documentElement.scrollWidth > innerWidth;
  document.body.innerHTML = "";
  document.body.textContent = JSON.stringify(told);
});
</script>
"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")
@pytest.mark.parametrize("width", [1200, 400])
def test_a_browser_shows_it_without_an_error_and_tables_sort(page: str, tmp_path: Path, width: int) -> None:
    file = tmp_path / "page.html"
    file.write_text(page.replace("<style>", HARNESS + "<style>", 1))
    command = [
        str(CHROMIUM),
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    command += [f"--window-size={width},900", "--virtual-time-budget=2000", "--dump-dom", file.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout
    told = json.loads(shown[shown.index('{"errors"') : shown.rindex("}") + 1])
    assert told["errors"] == []
    assert told["orders"] == [["600", "1000"], ["600", "1000"], ["1000", "600"]]
    assert told["sorted"] == "descending"
    assert told["drawn"] == [True] * 5
    assert not told["wide"]


def test_two_artifacts_stand_side_by_side(tmp_path: Path) -> None:
    a = replace(found(), name="a")
    b = replace(
        a, name="b", plan=Plan(rows=(PlanRow(site="block.1.fc", format="svd", ranks=(2,), params=40, macs=400),))
    )
    assert layers_beside(a, b)[1] == ("block.1.fc", "dense", "svd 2", 1000, 400)
    assert layers_beside(a, b)[0][2:] == ("-", 600, None)
    titles = [row[0] for row in figures_beside(a, b)]
    assert "speed over dense in torch" in titles
    assert not [title for title in titles if title.startswith("ms")]
    write_comparison(a, b, tmp_path / "both.html")
    tags = Tags()
    tags.feed((tmp_path / "both.html").read_text())
    assert (tags.open, tags.fetched, tags.count["svg"]) == ([], [], 1)
