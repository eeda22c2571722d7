"""The copy for running: the same numbers, the fastest forms, nothing else than running, and the model as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rankwise as rw
from rankwise.kernels import optimise, optimised


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3, stride=2), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(96, 32), nn.ReLU(), nn.Linear(32, 5)),
    )


def compressed(model: nn.Module, example: Any) -> nn.Module:
    sites = rw.find(model, example)
    return rw.factorise(model, rw.choose(model, sites, keep={"macs": 0.6}, metric="weight"), sites)


def prefer(monkeypatch: pytest.MonkeyPatch, *wanted: str) -> None:
    """Take the first of the wanted names that is there for the fastest, whatever was measured."""

    def first(seconds: dict[str, float]) -> str:
        return next((name for name in wanted if name in seconds), optimise.AS_IT_IS)

    monkeypatch.setattr(optimise, "_fastest", first)


@pytest.mark.parametrize("wanted", [("packed",), ("product", "packed"), ("inputs first",)], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
def test_whatever_is_chosen_computes_the_same(monkeypatch: pytest.MonkeyPatch, layout: str, wanted: Any) -> None:
    prefer(monkeypatch, layout, *wanted)
    x = torch.randn(2, 3, 12, 12)
    small = compressed(net(), x).eval()
    fast, report = optimised(small, x, rounds=1)
    assert report.layout == layout
    assert {choice.form for choice in report.choices} & set(wanted) or wanted == ("product", "packed")
    assert report.difference < 1e-5
    with torch.no_grad():
        y = torch.randn(3, 3, 14, 10)
        assert torch.allclose(fast(y), small(y), atol=1e-5)


def test_every_layer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    prefer(monkeypatch, "contiguous", "inputs first")
    fast, report = optimised(nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(1, 8), rounds=1)
    assert [(choice.layer, choice.form) for choice in report.choices] == [("0", "inputs first"), ("2", "inputs first")]
    assert all(set(choice.seconds) == {"as it is", "inputs first"} for choice in report.choices)
    assert str(report).startswith("contiguous; layers: 2 inputs first; ")
    assert not any(parameter.requires_grad for parameter in fast.parameters())


def test_where_nothing_is_faster_the_copy_is_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    prefer(monkeypatch)
    model = net().eval()
    fast, report = optimised(model, torch.randn(1, 3, 12, 12), rounds=1)
    assert report.layout == "as it is"
    assert {choice.form for choice in report.choices} == {"as it is"}
    assert fast is not model
    assert [type(module) for module in fast] == [type(module) for module in model]


def test_a_network_with_the_channels_last_may_become_contiguous(monkeypatch: pytest.MonkeyPatch) -> None:
    prefer(monkeypatch, "contiguous")
    model: nn.Module = net().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    fast, report = optimised(model, torch.randn(1, 3, 12, 12), rounds=1)
    assert report.layout == "contiguous"
    assert fast.get_submodule("3").weight.is_contiguous()
    assert not model.get_submodule("3").weight.is_contiguous()


class Volumes(nn.Module):
    """Pictures first, then volumes."""

    def __init__(self) -> None:
        super().__init__()
        self.flat, self.deep = nn.Conv2d(3, 4, 3), nn.Conv3d(4, 4, (1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.deep(self.flat(x)[:, :, None])


def test_channels_last_is_a_layout_of_pictures_only(monkeypatch: pytest.MonkeyPatch) -> None:
    prefer(monkeypatch, "channels last")
    model = Volumes()
    fast, _ = optimised(model, torch.randn(1, 3, 9, 9), rounds=1)
    assert fast.flat.weight.is_contiguous(memory_format=torch.channels_last)
    assert fast.deep.weight.is_contiguous()


class Roots(nn.Module):
    """Its second output is not finite where a form gives other signs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.layer(x)
        return y.abs(), y.abs().sqrt() if not isinstance(self.layer, Doubled) else torch.full_like(y, float("nan"))


def test_what_is_no_number_in_one_output_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    prefer(monkeypatch, "contiguous", "wrong")
    monkeypatch.setattr(optimise, "forms_of", lambda layer, seen: {"wrong": lambda: Doubled(8, 4)})
    with pytest.raises(ValueError, match="is off by nan relative to the network"):
        optimised(Roots(), torch.randn(1, 8), rounds=1, tolerance=1e9)


def test_only_what_is_clearly_faster_is_taken() -> None:
    assert optimise._fastest({"as it is": 1.0, "packed": 0.97}) == "as it is"
    assert optimise._fastest({"as it is": 1.0, "packed": 0.9, "product": 0.8}) == "product"


def test_the_model_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    prefer(monkeypatch, "channels last", "packed", "inputs first")
    model = net().train()
    before = {name: (tensor.clone(), tensor.stride()) for name, tensor in model.state_dict().items()}
    x = torch.randn(1, 3, 12, 12)
    random = torch.get_rng_state()
    optimised(model, x, rounds=1)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name][0])
        assert tensor.stride() == before[name][1]


def test_a_copy_for_running_only_runs(tmp_path: Path) -> None:
    x = torch.randn(1, 8)
    model = nn.Sequential(nn.Linear(8, 4))
    fast, _ = optimised(model, x, rounds=1)
    message = "a copy for running that rankwise.kernels.optimised made; take the network that it was made from"
    for refused in (
        lambda: rw.save(fast, tmp_path / "out"),
        lambda: rw.find(fast, x),
        lambda: rw.collect(fast, [x]),
        lambda: optimised(nn.Sequential(fast), x),
        lambda: rw.evaluate.size(fast),
        lambda: rw.export.folded(fast),
        lambda: rw.export.absorbed(fast),
        lambda: rw.export.pt2(fast, x, tmp_path / "out"),
        lambda: rw.artifact.as_stored(fast, "int8+entropy"),
    ):
        with pytest.raises(ValueError, match=message):
            refused()
    assert not (tmp_path / "out").exists()
    rw.save(model, tmp_path / "out")
    assert rw.evaluate.latency({"fast": fast}, x, rounds=1)["fast"].median > 0


class Doubled(nn.Linear):
    """A form that computes something else."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_a_copy_that_differs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    prefer(monkeypatch, "contiguous", "wrong")
    monkeypatch.setattr(optimise, "forms_of", lambda layer, seen: {"wrong": lambda: Doubled(8, 4)})
    model, x = nn.Sequential(nn.Linear(8, 4)), torch.randn(1, 8)
    with pytest.raises(ValueError, match=r"is off by .* relative to the network, tolerance is 0.001"):
        optimised(model, x, rounds=1)


@pytest.mark.parametrize("options", [{"threads": 0}, {"rounds": 0}])
def test_options_out_of_range(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        optimised(nn.Sequential(nn.Linear(2, 2)), torch.zeros(1, 2), **options)
