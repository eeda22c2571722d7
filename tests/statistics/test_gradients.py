"""Moments of gradients against gradients taken one sample at a time, and what they predict of a network's answers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from support.nets import Residual, batches_of, make, unchanged
from torch import Tensor, nn

from rankwise import Moments, Statistics, collect
from rankwise.evaluate import divergence
from rankwise.files.tensors import SEAL, write_tensors
from rankwise.formats.weights import site_weight
from rankwise.linalg.metric import Identity
from rankwise.statistics.gradients import FisherProbe, fisher_energy
from rankwise.statistics.output_gradients import Gradients

pytestmark = pytest.mark.usefixtures("one_thread")


def fixed(scores: Any) -> Tensor:
    """A loss that is not quadratic and draws nothing."""
    values = getattr(scores, "logits", scores)
    return values.sin().sum() + (values**2).mean(-1).sum()


def taken_by_hand(model: nn.Module, layer: nn.Module, samples: list[Any]) -> Tensor:
    """`E sum over positions of g g^T`, T x T: one forward and one backward pass per sample; no groups."""
    total = torch.zeros(())
    for x in samples:
        outputs: list[Tensor] = []

        def keep(module: nn.Module, args: Any, output: Tensor, kept: list[Tensor] = outputs) -> Tensor:
            kept.append(output)
            return output.clone()

        handle = layer.register_forward_hook(keep)
        for gradient in torch.autograd.grad(fixed(model(x)), outputs):
            rows = gradient if gradient.dim() < 4 else gradient.movedim(1, -1)
            rows = rows.reshape(-1, rows.shape[-1]).double()
            total = total + rows.mT @ rows
        handle.remove()
    return total / len(samples)


class Kinds(nn.Module):
    """An embedding, a layer called twice, a convolution and a transposed one."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.twice = nn.Embedding(11, 6), nn.Linear(6, 6)
        self.conv, self.up = nn.Conv2d(1, 4, 3, 2), nn.ConvTranspose2d(4, 3, 2, 2)
        self.relu, self.head = nn.ReLU(inplace=True), nn.Linear(3, 5)

    def forward(self, indices: Tensor) -> Tensor:
        x = self.twice(self.twice(self.words(indices)).tanh())
        x = self.relu(self.conv(x[:, None]))
        return self.head(self.up(x).tanh().mean((2, 3)))


def indices(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(11, (3, 7), generator=generator) for _ in range(count)]


@pytest.mark.parametrize("name", ["words", "twice", "conv", "up", "head"])
def test_it_is_the_mean_over_samples_of_the_sum_over_positions(name: str) -> None:
    model, batches = make(Kinds), indices(4)
    found = collect(model, batches, loss=fixed)[name].gradients
    assert found is not None
    expected = taken_by_hand(model, model.get_submodule(name), [x[None] for batch in batches for x in batch])
    torch.testing.assert_close(found.second_GTT[0], expected, rtol=1e-4, atol=1e-9)
    assert found.samples == 12


def test_groups_have_a_moment_each() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2, bias=False), nn.Flatten(), nn.Tanh())
    x = torch.randn(5, 4, 3, 3)
    found = collect(model, [x], loss=fixed)["0"].gradients
    assert found is not None
    whole = taken_by_hand(model, model[0], list(x[:, None]))
    for group, block in enumerate((whole[:3, :3], whole[3:, 3:])):
        torch.testing.assert_close(found.second_GTT[group], block, rtol=1e-4, atol=1e-9)


def test_transformers_layer_and_outputs_with_logits() -> None:
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D

    class Output(dict):  # a mapping with attributes, as transformers give it
        @property
        def logits(self) -> Tensor:
            return self["logits"]

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = conv1d(9, 6)

        def forward(self, x: Tensor) -> Output:
            return Output(logits=self.fc(x))

    model, x = Model(), torch.randn(8, 4, 6)
    found = collect(model, [x], loss=fixed)["fc"].gradients
    assert found is not None
    torch.testing.assert_close(found.second_GTT[0], taken_by_hand(model, model.fc, list(x[:, None])), rtol=1e-4, atol=0)
    assert collect(model, [x], gradients=True)["fc"].gradients is not None


@pytest.mark.parametrize("trains", [True, False])
def test_the_model_is_left_alone_and_the_moments_of_inputs_are_the_same(trains: bool) -> None:
    model, batches = make(Residual).train(trains), batches_of(6, 3, 8, 8)
    model.block1.requires_grad_(False)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    with unchanged(model):
        with torch.no_grad():
            found = collect(model, batches, gradients=True)
        plain = collect(model, batches)
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert list(grads) == ["head.weight"]
    assert torch.equal(grads["head.weight"], torch.ones_like(model.head.weight))
    for name, moments in plain.items():
        assert moments.gradients is None
        assert torch.equal(found[name].mean_GD, moments.mean_GD)
        for kind in ("second_GDD", "rows_GND"):
            ours, theirs = getattr(found[name], kind), getattr(moments, kind)
            assert (ours is None and theirs is None) or torch.equal(ours, theirs)
        assert not found[name].mean_GD.requires_grad


def test_the_seed_decides_and_the_random_state_does_not() -> None:
    model, batches = make(Residual), batches_of(6, 3, 8, 8)

    def moment(seed: int) -> Tensor:
        found = collect(model, batches, gradients=True, seed=seed)["block1.conv1"].gradients
        assert found is not None
        return found.second_GTT

    first = moment(0)
    torch.manual_seed(123)
    assert torch.equal(moment(0), first)
    assert not torch.allclose(moment(1), first)


def test_probes_have_the_fisher_information_of_the_answers() -> None:
    p = torch.tensor([0.7, 0.2, 0.1])
    z = p.log().expand(20000, 3).clone().requires_grad_()
    (g,) = torch.autograd.grad(FisherProbe(seed=0)(z), z)
    torch.testing.assert_close(g.mT @ g / len(g), torch.diag(p) - torch.outer(p, p), rtol=0, atol=5e-3)
    torch.testing.assert_close(g.sum(1), torch.zeros(len(g)), rtol=0, atol=1e-6)


def perturbed(model: nn.Module, stats: Statistics, name: str, scale: float) -> tuple[nn.Module, Tensor]:
    """The model with a small change of one weight, its mean output kept, and the change."""
    other: Any = copy.deepcopy(model)
    layer = other.get_submodule(name)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        change = scale * layer.weight.std() * torch.randn(layer.weight.shape, generator=generator)
        layer.weight += change
        shift = (change.flatten(1).double() @ stats[name].mean_GD[0]).float()
        layer.bias -= shift
    return other, change


def test_of_a_last_layer_the_divergence_is_predicted_exactly() -> None:
    """Answers that hardly depend on the input: inputs and gradients are independent, as the factors assume."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 5))
        nn.init.normal_(model[0].weight, std=0.01)
        batches = [torch.randn(10000, 6) @ torch.randn(6, 6) for _ in range(2)]
    stats = collect(model, batches, gradients=True)
    other, change = perturbed(model, stats, "0", 2.0)
    assert fisher_energy(change, stats["0"]) == pytest.approx(divergence(model, other, batches), rel=0.03)


@pytest.mark.parametrize("name", ["0", "2", "4"])
def test_of_inner_layers_it_is_predicted_to_a_third(name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 5))
        batches = [torch.randn(8000, 8)]
    stats = collect(model, batches, gradients=True)
    other, change = perturbed(model, stats, name, 0.1)
    assert fisher_energy(change, stats[name]) == pytest.approx(divergence(model, other, batches), rel=0.33)


def test_energy_is_half_the_trace() -> None:
    stats = collect(make(Residual), batches_of(4, 3, 8, 8), gradients=True)
    model = make(Residual)
    moments, W = stats["block2.conv1"], site_weight(model, stats.sites["block2.conv1"])
    sigma, G = moments.metrics(damping=0)[0].dense(), moments.gradients.second_GTT[0]  # type: ignore[union-attr]
    direct = float((G @ W.flatten(1) @ sigma @ W.flatten(1).mT).trace()) / 2
    assert fisher_energy(W, moments) == pytest.approx(direct, rel=1e-9)


def test_merged_parts_are_the_whole(tmp_path: Path) -> None:
    model, batches = make(Kinds), indices(6)
    first, second = collect(model, batches[:2], loss=fixed), collect(model, batches[2:], loss=fixed)
    merged, whole = first.merge(second), collect(model, batches, loss=fixed)
    loaded = Statistics.load(merged.save(tmp_path / "s"))
    for name, moments in whole.items():
        assert moments.gradients is not None
        for found in (merged[name].gradients, loaded[name].gradients):
            assert found is not None
            assert found.samples == moments.gradients.samples == 18
            torch.testing.assert_close(found.second_GTT, moments.gradients.second_GTT, rtol=1e-5, atol=1e-12)
    one_sided = first.merge(collect(model, batches[2:]))
    kept = one_sided["conv"].gradients
    assert kept is first["conv"].gradients
    assert one_sided.without_rows()["conv"].gradients is kept


def test_files_without_gradients_are_read_as_ever(tmp_path: Path) -> None:
    """A file as it was written before there were gradients holds no word of them."""
    path = collect(make(Residual), batches_of(4, 3, 8, 8)).save(tmp_path / "s")
    with safe_open(path, framework="pt") as file:
        about = {key: value for key, value in file.metadata().items() if "gradient" not in key}
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    write_tensors(tensors, path, {name: text for name, text in about.items() if name != SEAL})
    assert not [key for key in tensors if "gradient" in key]
    assert all(moments.gradients is None for moments in Statistics.load(path).values())


def gradients_of(second: Tensor, samples: int) -> Moments:
    D = 3
    gradients = Gradients(samples=samples, second_GTT=second[None].double())
    return Moments(count=9, mean_GD=torch.zeros(1, D), second_GDD=torch.eye(D)[None].double(), gradients=gradients)


def test_few_samples_and_a_share_of_the_weight_metric_even_the_outputs_out() -> None:
    G = torch.diag(torch.tensor([10.0, 1.0, 0.1, 0.0]))

    def ratio(samples: int, shrink: float = 0.0) -> float:
        root_GTT = gradients_of(G, samples).two_sided("fisher", shrink).root_GTT
        if root_GTT is None:
            return 1.0
        moment = root_GTT[0].mT @ root_GTT[0]
        return float(moment[0, 0] / moment[3, 3])

    assert ratio(10**9) > ratio(1000) > ratio(50) > ratio(10) > 1
    assert ratio(1000) > ratio(1000, 0.1) > ratio(1000, 0.5) > ratio(1000, 0.99) > ratio(1000, 1) == 1
    assert isinstance(gradients_of(G, 10).two_sided("fisher", 1).inputs[0], Identity)
    assert not isinstance(gradients_of(G, 10).two_sided("fisher").inputs[0], Identity)


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.other = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.fc(x), self.other(x)


@pytest.mark.parametrize(
    "how, message",
    [
        ({"loss": lambda outputs: outputs[0].sum()}, "site 'other': the loss does not depend on its output"),
        ({"loss": lambda outputs: outputs[0]}, "batch 0: the loss must be one number"),
        ({"loss": lambda outputs: 3.0}, "batch 0: the loss must be one number"),
        ({"loss": lambda outputs: outputs[0].detach().sum()}, "batch 0: the loss must be one number"),
        (
            {"loss": lambda o: (0 * o[0]).sqrt().sum() + o[1].sum()},
            "site 'fc', batch 0: the gradient .* NaN",
        ),
    ],
)
def test_complaints(how: dict[str, Callable[..., Any]], message: str) -> None:
    model, batches = TwoHeads(), batches_of(5, 4, count=1)
    with unchanged(model), pytest.raises(ValueError, match=message):
        collect(model, batches, **how)  # type: ignore[arg-type]


def test_a_forward_loop_has_no_loss() -> None:
    with pytest.raises(ValueError, match="gradients need the batches themselves"):
        collect(TwoHeads(), forward_loop=lambda model: None, example_input=torch.zeros(1, 4), gradients=True)


def test_too_many_outputs_are_announced_and_named_when_needed(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Linear(4, 8200), nn.Linear(8200, 3))
    stats = collect(model, [torch.randn(5, 4)], gradients=True)
    assert "site '0': no gradients are collected, a moment of its 8200 outputs would be too large" in caplog.text
    with pytest.raises(ValueError, match="site '0': the statistics hold no gradients at its output; collect them with"):
        stats.metric("0", "fisher")
    assert stats.metric("1", "fisher").root_GTT is not None
    with pytest.raises(ValueError, match="hold nothing for site 'head'"):
        stats.metric("head", "input")


def test_gradients_of_weights_sample_by_sample(tmp_path: Path) -> None:
    """Squares summed over each row of the weight, and the mean gradient times the weight; also from a file."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(24, 5))
    x = torch.randn(7, 4, 4, 4)
    stats = collect(model, [x[:4], x[4:]], gradients="weights", loss=fixed)
    stored = Statistics.load(stats.save(tmp_path / "stats"))
    for name, groups in (("0", 2), ("3", 1)):
        layer = model.get_submodule(name)
        taken = [torch.autograd.grad(fixed(model(each[None])), layer.weight)[0].flatten(1).double() for each in x]
        squares = torch.stack(taken).square().mean(0).sum(1).view(groups, -1)
        mean, weight = torch.stack(taken).mean(0), layer.weight.detach().flatten(1).double()
        rows = len(weight) // groups
        cross = torch.stack([own @ w.mT for own, w in zip(mean.split(rows), weight.split(rows), strict=True)])
        for found in (stats[name].gradients, stored[name].gradients):
            assert found is not None
            torch.testing.assert_close(found.rows_GT, squares, rtol=1e-4, atol=1e-9)
            torch.testing.assert_close(found.cross_GTT, cross, rtol=1e-3, atol=1e-6)
    merged = collect(model, [x[:4]], gradients="weights", loss=fixed).merge(
        collect(model, [x[4:]], gradients="weights", loss=fixed)
    )
    both = merged["3"].gradients
    assert both is not None
    torch.testing.assert_close(both.cross_GTT, stats["3"].gradients.cross_GTT, rtol=1e-4, atol=1e-8)
    plain = collect(model, [x], gradients="weights")["3"].gradients
    assert plain is not None
    assert plain.cross_GTT is None  # the mean of random signs says nothing
    assert plain.rows_GT is not None
    with pytest.raises(ValueError, match="site 'twice' is called 2 times"):
        collect(make(Kinds), indices(1), gradients="weights")
