"""An embedding and the linear head that shares its weight: one site, factorised once for both uses."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.artifact_nets import edit
from support.factorisation_nets import E, Language, V, tokens
from support.nets import chains, make, outputs, plan_of, unchanged
from torch import Tensor, nn

import rankwise as rw
from rankwise import Statistics
from rankwise.evaluate import size
from rankwise.formats.both_sides import fit
from rankwise.inputs.torchvision_shim import import_torchvision
from rankwise.layers.modules import TransposedLinear
from rankwise.statistics.gradients import fisher_energy

pytestmark = pytest.mark.usefixtures("one_thread")

PAIR = ("words", "head")


def assert_tied(model: Any, table: str = "words", head: str = "head") -> None:
    lookup, linear = model.get_submodule(table)
    first, last = model.get_submodule(head)
    assert (type(lookup), type(linear), type(first), type(last)) == (
        *(nn.Embedding, nn.Linear),
        *(TransposedLinear, nn.Linear),
    )
    assert last.weight is lookup.weight
    assert first.weight is linear.weight


@pytest.fixture(scope="module", params=[False, True], ids=["no bias", "bias"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    return make(lambda: Language(request.param))


@pytest.fixture(scope="module")
def stats(model: nn.Module) -> Statistics:
    return rw.collect(model, tokens())


def test_one_site_with_the_counts_of_both(model: Any, stats: Statistics) -> None:
    has_bias = model.head.bias is not None
    site = rw.find(model, tokens()[0][:2])["words"]
    assert (site.aliases, site.kind, site.weight_shape, site.dense_because) == (
        ("head",),
        "tied_embedding",
        (V, E),
        None,
    )
    assert (site.rows, site.lookups, site.macs, site.has_bias) == (24, 24, 24 * V * E, has_bias)
    assert site.params == V * E + V * has_bias
    assert rw.FORMATS["svd"].cost(site, (5,), has_bias) == (5 * (V + E) + V * has_bias, 24 * 5 * (V + E) + 24 * 5 * E)
    for format in rw.FORMATS.values():
        assert format.name == "svd" or str(format.refuses(site)).find("use ") > 0


def test_statistics_hold_the_inputs_of_the_head_and_the_counts_of_the_words(
    model: Any, stats: Statistics, tmp_path: Path
) -> None:
    found = stats["words"]
    expected = torch.bincount(torch.cat(tokens()).flatten(), minlength=V).double()
    assert found.lookups_V is not None
    assert torch.equal(found.lookups_V, expected)
    with torch.no_grad():
        x = model.words(torch.cat(tokens()))
        x = model.norm(x + F.gelu(model.hidden(x))).flatten(0, 1).double()
    second = rw.collect(model, tokens(), positions="all")["words"].second_GDD
    torch.testing.assert_close(second, (x.mT @ x / len(x))[None], rtol=1e-4, atol=1e-5)
    halves = [rw.collect(model, tokens()[:1]), rw.collect(model, tokens()[1:])]
    merged = halves[0].merge(halves[1])["words"].lookups_V
    loaded = Statistics.load(stats.save(tmp_path / "stats"))["words"].lookups_V
    for lookups in (merged, loaded):
        assert lookups is not None
        assert torch.equal(lookups, expected)
    for share in (0.0, 1.0):
        assert [metric.dim for metric in found.metrics(share)] == [E, V]


@pytest.mark.parametrize("how", ["one-shot", "sequential", "weight"])
def test_both_layers_share_the_factors(how: str, model: Any, stats: Statistics) -> None:
    metric = "weight" if how == "weight" else "input"
    plan = plan_of(stats.sites, {"words": ("svd", (4,)), "hidden": ("svd", (5,))}, metric)
    with unchanged(model):
        small = rw.factorise(model, plan, stats, data=tokens() if how == "sequential" else None)
    assert_tied(small)
    assert set(chains(small)) == {"words", "head", "hidden"}
    torch.testing.assert_close(small.words.weight, small.head.weight)
    assert float(small.words(torch.tensor([0])).detach().abs().max()) == 0  # the row of the padding
    counted = size(small, tokens()[0][:1])
    recounted = rw.choose(
        model, stats, keep={"params": 10**6}, pin={"words": "svd:4", "hidden": "svd:5"}, metric=metric
    ).planned
    assert recounted == {"params": counted.params, "macs": counted.macs, "bytes": counted.bytes}
    assert (small.head.bias is None) == (model.head.bias is None)
    assert sum(module.training for module in small.modules()) == 0


def test_full_rank_changes_nothing(model: nn.Module, stats: Statistics) -> None:
    small = rw.factorise(model, plan_of(stats.sites, {"words": ("svd", (E,))}), stats)
    torch.testing.assert_close(outputs(small, tokens()), outputs(model, tokens()), rtol=1e-4, atol=1e-4)


def test_a_budget_counts_the_pair_once(model: Any, stats: Statistics) -> None:
    everything = ("*", "head")
    plan = rw.choose(model, stats, keep={"params": 0.5, "macs": 0.6}, include=everything)
    (row,) = [row for row in plan.rows if row.site == "words"]
    assert row.format == "svd"
    small, report = rw.compress(model, tokens(), keep={"params": 0.5, "macs": 0.6}, include=everything)
    assert (report.compressed.params, report.compressed.macs) == (plan.planned["params"], plan.planned["macs"])
    assert_tied(small)
    energy = rw.choose(model, stats, rule="energy:share=0.8", include="words")
    assert energy.rows[0].format == "svd"


def test_the_errors_of_the_curve_are_those_of_the_start(model: nn.Module, stats: Statistics) -> None:
    curve = rw.profile(model, stats, round_to=1)["words"]
    errors = [option.error for option in curve if option.format == "svd"]
    assert errors == sorted(errors, reverse=True)
    for option in curve[1:6]:
        pinned = rw.choose(model, stats, keep={"params": 10**6}, pin={"words": (option.format, option.ranks)})
        assert 0.7 * option.error < pinned.rows[0].error <= option.error


def test_held_out_samples_choose_the_share_of_the_weight_metric(model: nn.Module, stats: Statistics) -> None:
    plan = plan_of(stats.sites, {"words": ("svd", (4,))})
    assert rw.choose_shrinkage(model, plan, stats, tokens()) == 0
    few = rw.collect(model, [torch.full((2, 3), 55)])
    assert rw.choose_shrinkage(model, plan, few, tokens()) > 0


def test_export(tmp_path: Path) -> None:
    model = make(Language)
    sites = rw.find(model, tokens()[0])
    small = rw.factorise(model, plan_of(sites, {"words": ("svd", (4,))}, "weight"), sites)
    exported = torch.export.export(small, (tokens()[0],)).module()
    torch.testing.assert_close(exported(tokens()[0]), small(tokens()[0]))
    assert rw.export.onnx(small, tokens()[0][:2], tmp_path / "words.onnx").stat().st_size > 0


def test_artifact_and_training(model: Any, stats: Statistics, tmp_path: Path) -> None:
    def fresh() -> nn.Module:
        return Language(model.head.bias is not None).eval()

    small = rw.factorise(model, plan_of(stats.sites, {"words": ("svd", (4,))}), stats)
    rw.save(small, tmp_path / "out")
    loaded = rw.load(fresh(), tmp_path / "out")
    assert_tied(loaded)
    assert torch.equal(outputs(loaded, tokens()), outputs(small, tokens()))
    again = rw.factorise(fresh(), plan_of(stats.sites, {"words": ("svd", (4,))}, "weight"), stats)
    again.load_state_dict(small.state_dict())
    assert_tied(again)
    assert torch.equal(outputs(again, tokens()), outputs(small, tokens()))
    loaded.train()(tokens()[0]).square().mean().backward()
    assert float(loaded.words[0].weight.grad.abs().sum()) > 0
    untied: Any = fresh()
    untied.head.weight = nn.Parameter(untied.head.weight.detach().clone())
    with pytest.raises(ValueError, match="shares the factors of 'words' and 'head', the fresh model has a weight for"):
        rw.load(untied, tmp_path / "out")
    edit(tmp_path / "out", lambda manifest: manifest["structure"][1].update(ranks=[3]))
    with pytest.raises(ValueError, match="share factors of different formats or ranks"):
        rw.load(fresh(), tmp_path / "out")


def test_an_artifact_of_separate_factors_does_not_become_one_of_shared_ones(tmp_path: Path) -> None:
    model = make(lambda: Language(tied=False))
    sites = rw.find(model, tokens()[0])
    small = rw.factorise(model, plan_of(sites, dict.fromkeys(PAIR, ("svd", (E,))), "weight"), sites)
    rw.save(small, tmp_path / "out")
    loaded: Any = rw.load(Language().eval(), tmp_path / "out")
    assert loaded.head[1].weight is not loaded.words[0].weight
    assert torch.equal(outputs(loaded, tokens()), outputs(small, tokens()))


def test_in_place(model: Any, stats: Statistics) -> None:
    own = copy.deepcopy(model)
    assert rw.factorise_(own, plan_of(stats.sites, {"words": ("svd", (4,))}), stats) is own
    assert_tied(own)


@pytest.mark.parametrize("name", ["GPT-2", "Llama"])
def test_transformers(name: str, tmp_path: Path) -> None:
    """What the library does with tied weights by name goes on with the factors."""
    import_torchvision()  # transformers imports it where it is installed
    transformers = pytest.importorskip("transformers", minversion="5")
    common = {"vocab_size": 50, "attn_implementation": "eager", "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    if name == "GPT-2":
        config = transformers.GPT2Config(n_positions=16, n_embd=24, n_layer=1, n_head=2, **common)
    else:
        sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = transformers.LlamaConfig(tie_word_embeddings=True, **sizes, **common)

    def fresh() -> Any:
        return make(lambda: transformers.AutoModelForCausalLM.from_config(config))

    dense = fresh()
    ids = torch.randint(3, 50, (8, 12), generator=torch.Generator().manual_seed(0))
    batches = [{"input_ids": ids, "use_cache": False}]
    stats = rw.collect(dense, batches)
    (table,) = [site for site in stats.sites if len(stats.sites[site].calls) and stats.sites[site].lookups]
    assert stats.sites[table].aliases == ("lm_head",)
    plan = plan_of(stats.sites, {table: ("svd", (8,))})
    small: Any = rw.factorise(dense, plan, stats)
    rw.save(small, tmp_path / "out")
    in_place = copy.deepcopy(dense)
    rw.factorise_(in_place, plan, stats)
    for network in (small, in_place, rw.load(fresh(), tmp_path / "out")):
        before = outputs_of(network, ids)
        network.tie_weights()
        assert_tied(network, table, "lm_head")
        assert torch.equal(outputs_of(network, ids), before)
        generated = network.generate(ids[:1, :4], max_new_tokens=3, do_sample=False)
        expected = outputs_of(network, generated[:, :-1])[0, 3:].argmax(-1)
        assert generated[0, 4:].tolist() == expected.tolist()[: generated.shape[1] - 4]
    dense.tie_weights()  # the class still ties what it tied
    assert dense.lm_head.weight is dense.get_submodule(table).weight


@torch.no_grad()
def outputs_of(model: Any, ids: Tensor) -> Tensor:
    return model(input_ids=ids).logits


def text(count: int, seed: int) -> Tensor:
    """Sentences of a language of 60 words: which come next depends on the class of a word; some are frequent."""
    generator = torch.Generator().manual_seed(7)
    often = 1 / torch.arange(1, V + 1.0)
    follows = torch.randn(V, 6, generator=generator) @ torch.randn(6, V, generator=generator)
    chances = F.softmax(follows + often.log(), -1)
    generator.manual_seed(seed)
    words = [torch.randint(1, V, (count,), generator=generator)]
    for _ in range(12):
        words.append(torch.multinomial(chances[words[-1]], 1, generator=generator)[:, 0])
    return torch.stack(words, 1)


def test_fitted_to_both_uses_a_trained_network_loses_less() -> None:
    """Less than with the factors of the weight alone."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Language().train()
        train, held_out = text(2000, 0), text(500, 1)
        optimiser = torch.optim.Adam(model.parameters(), 1e-2)

        def loss(network: nn.Module, words: Tensor) -> Tensor:
            return F.cross_entropy(network(words[:, :-1]).flatten(0, 1), words[:, 1:].flatten())

        for step in range(300):
            optimiser.zero_grad()
            loss(model, train[step % 10 :: 10]).backward()
            optimiser.step()
    model.eval()
    stats = rw.collect(model, [train[:500, :-1]])
    with torch.no_grad():
        dense = float(loss(model, held_out))
        for rank in (3, 6):
            fitted = {}
            for metric in ("input", "weight"):
                plan = plan_of(stats.sites, {"words": ("svd", (rank,))}, metric)
                fitted[metric] = float(loss(rw.factorise(model, plan, stats), held_out)) - dense
            print(
                f"rank {rank}: loss {dense:.3f}, more by {fitted['input']:.3f} (input), {fitted['weight']:.3f} (weight)"
            )
            assert fitted["input"] < 0.9 * fitted["weight"]


@pytest.fixture(scope="module")
def weighed(model: nn.Module) -> Statistics:
    return rw.collect(model, tokens(), gradients=True)


@pytest.mark.parametrize("rule", ["knapsack", "fisher"])
@pytest.mark.parametrize("metric", ["input", "fisher"])
def test_gradients_of_both_uses(rule: str, metric: str, model: Any, weighed: Statistics) -> None:
    plan = rw.choose(model, weighed, keep={"params": 0.5}, include=["*", "head"], rule=rule, metric=metric)
    assert plan["words"].format == "svd"
    for small in (rw.factorise(model, plan, weighed), rw.factorise(model, plan, weighed, data=tokens())):
        assert_tied(small)
        assert size(small, tokens()[0][:1]).params == plan.planned["params"]
    assert 0 <= rw.choose_shrinkage(model, plan, weighed, tokens()) <= 1


def test_the_energy_of_a_pair_is_that_of_its_uses() -> None:
    """Gradients by autograd, one sample after the other, at the rows that are looked up and at the scores."""
    model: Any = make(lambda: Language(False))
    stats = rw.collect(model, tokens(), gradients=True, loss=lambda scores: scores.square().sum(), positions="all")
    gradients = stats["words"].gradients
    assert gradients is not None
    assert gradients.lookups_DD is not None
    words, scores, samples = torch.zeros(E, E).double(), torch.zeros(V, V).double(), 0
    for batch in tokens():
        x = model.words(batch).detach().requires_grad_()
        y = model.head(model.norm(x + F.gelu(model.hidden(x))))
        (g,) = torch.autograd.grad(y.square().sum(), x)
        words += g.flatten(0, -2).double().mT @ g.flatten(0, -2).double()
        scores += 4 * y.detach().flatten(0, -2).double().mT @ y.detach().flatten(0, -2).double()
        samples += len(batch)
    torch.testing.assert_close(gradients.lookups_DD, words / samples, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(gradients.second_GTT[0], scores / samples, rtol=1e-3, atol=1e-4)
    moments, W = stats["words"].uncentred(), model.words.weight.detach().double()
    frequency = moments.lookups_V / moments.lookups_V.sum()
    lookups = float((frequency[:, None] * (W @ gradients.lookups_DD) * W).sum())
    products = float((gradients.second_GTT[0] * (W @ moments.second_GDD[0] @ W.mT)).sum())
    assert fisher_energy(W, moments) == pytest.approx((lookups + products) / 2, rel=1e-9)


def test_a_use_that_matters_more_is_fitted_better(model: Any, weighed: Statistics) -> None:
    weight, found = model.words.weight.detach().double(), weighed["words"].uncentred()
    assert found.gradients is not None
    errors = []
    for factor in (1e-4, 1.0, 1e4):
        gradients = replace(found.gradients, lookups_DD=found.gradients.lookups_DD * factor)
        metric = replace(found, gradients=gradients).two_sided("fisher")
        fitted = fit(rw.FORMATS["svd"], weighed.sites["words"], weight, metric, (4,)).dense()
        rows = metric.inputs[1]
        errors.append(rows.energy((weight - fitted).mT) / rows.energy(weight.mT))
    assert errors[0] > errors[1] > errors[2]


def test_gradients_of_both_uses_are_stored_and_merged(weighed: Statistics, tmp_path: Path) -> None:
    loaded = Statistics.load(weighed.save(tmp_path / "stats.safetensors"))["words"].gradients
    gradients = weighed["words"].gradients
    assert loaded is not None
    assert gradients is not None
    assert torch.equal(loaded.lookups_DD, gradients.lookups_DD)  # type: ignore[arg-type]
    torch.testing.assert_close(gradients.merge(loaded).lookups_DD, gradients.lookups_DD)
