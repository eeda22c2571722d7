"""What `print` and notebooks show of sites, plans and reports, and the short way to compress."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import rankwise as rw


@pytest.fixture(scope="module")
def made() -> tuple[nn.Module, rw.CompressReport]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    return rw.compress(model, [torch.randn(64, 32)], keep=0.5)


def test_a_number_alone_is_a_share_of_the_macs(made: tuple[nn.Module, rw.CompressReport]) -> None:
    _, report = made
    assert report.plan.keep == {"macs": 0.5}
    assert report.compressed.macs <= 0.5 * report.dense.macs


@pytest.mark.parametrize(
    ("keep", "message"), [(50, r'write keep=\{"macs": 0.5\}'), (1.5, "neither a fraction up to 1.0")]
)
def test_another_number_is_an_error_that_says_what_to_write(keep: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rw.compress(nn.Linear(4, 4), [torch.randn(2, 4)], keep=keep)


def test_a_loader_with_labels_is_an_error_that_says_what_to_write() -> None:
    loader = [(torch.randn(8, 4), torch.zeros(8, dtype=torch.long))]
    with pytest.raises(ValueError, match="inputs_only"):
        rw.compress(nn.Sequential(nn.Linear(4, 4)), loader, keep=0.5)


def test_tables(made: tuple[nn.Module, rw.CompressReport]) -> None:
    _, report = made
    sites = str(report.sites).splitlines()
    assert sites[0].split() == [
        "layer",
        "kind",
        "weight",
        "layers",
        "params",
        "MACs",
        "of",
        "all",
        "MACs",
        "stays",
        "dense",
    ]
    assert sites[1].split()[:5] == ["[0,2]", "linear", "32x32", "2", "2,112"]
    assert sites[-1].split()[:4] == ["whole", "network", f"{report.dense.params:,}", f"{report.dense.macs:,}"]
    plan = str(report.plan).splitlines()
    assert len(plan) == 1 + len(report.plan) + len(report.plan.dense)
    assert [line.split()[0] for line in plan[1:4]] == ["0", "2", "4"]
    assert "all MACs" in str(report.plan)
    for shown in (report.sites, report.plan, report):
        html = shown._repr_html_()
        assert html.startswith("<table>")
        assert html.count("<table>") == html.count("</table>")


def test_reasons_say_what_the_columns_do_not(made: tuple[nn.Module, rw.CompressReport]) -> None:
    _, report = made
    for row in report.plan.factorised:
        assert row.why.startswith("cheaper: ") or row.why == "the cheapest option"
        assert f"{row.error:.2%}" not in row.why


def test_plots(made: tuple[nn.Module, rw.CompressReport]) -> None:
    pytest.importorskip("matplotlib", reason="the extra [report] is not installed")
    _, report = made
    for shown in (report.sites, report.plan, report):
        (axes,) = shown.plot().axes
        assert len(axes.patches) > 0
    with pytest.raises(ValueError, match="nothing to draw"):
        rw.Plan(rows=()).plot()
