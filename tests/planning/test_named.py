"""Methods of the literature against their own equations, written down once more without the library."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rankwise as rw
from rankwise.evaluate import Trials, divergence
from rankwise.planning.named import NAMED
from rankwise.statistics.gradients import WithLabels, stated_loss

pytestmark = pytest.mark.usefixtures("one_thread")
WORDS, WIDTH, HIDDEN, BATCHES = 61, 12, 24, 8


class Block(nn.Module):
    """What stands for attention, and an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.v_proj = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.o_proj = nn.Linear(WIDTH, WIDTH, bias=False)
        self.up_proj, self.down_proj = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.o_proj(self.q_proj(x).tanh() * self.v_proj(x))
        return x + self.down_proj(self.up_proj(x).relu())


class Words(nn.Module):
    """Scores of the next word, and their loss if there are labels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(WIDTH, WORDS)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> SimpleNamespace:
        x = self.table(input_ids)
        for layer in self.layers:
            x = layer(x)
        logits, loss = self.head(x), None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return SimpleNamespace(logits=logits, loss=loss)


MODEL = Words().eval()
IGNORED = ["head"]
NAMES = [name for name, part in MODEL.named_modules() if isinstance(part, nn.Linear) and name != "head"]


def batches() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [{"input_ids": torch.randint(WORDS, (4, 9), generator=generator)} for _ in range(BATCHES)]


@torch.no_grad()
def inputs(name: str) -> list[Tensor]:
    """The rows that a layer reads, batch by batch, float64."""
    seen: list[Tensor] = []
    layer = MODEL.get_submodule(name)
    handle = layer.register_forward_hook(lambda _, args, output: seen.append(args[0].flatten(0, 1).double()))
    for batch in batches():
        MODEL(**batch)
    handle.remove()
    return seen


def compressed(name: str, keep: float = 0.7, **further: Any) -> tuple[rw.Plan, nn.Module, rw.Statistics]:
    """A method as it is named."""
    named = NAMED[name]
    loss = name in ("fwsvd", "zs_svd")
    stats = rw.collect(
        MODEL,
        list(WithLabels(batches())) if loss else batches(),
        gradients="weights" if loss else False,
        loss=stated_loss if loss else None,
        joint=named.joint,
    )
    if NAMED[name].rule.startswith(("sensitivity", "bolaco")):
        further["evaluate"] = Trials(MODEL, lambda plan: rw.factorise(MODEL, plan, stats), batches()[:2], "divergence")
    plan = rw.choose(MODEL, stats, keep={"linear": keep}, ignore=IGNORED, **{**named.wishes, **further})
    return plan, rw.factorise(MODEL, plan, stats), stats


def dense(network: nn.Module, name: str) -> tuple[Tensor, Tensor | None]:
    """Weight and bias that a chain stands for."""
    chain = network.get_submodule(name)
    return chain[1].weight.double() @ chain[0].weight.double(), chain[1].bias


def cut(W: Tensor, rank: int) -> Tensor:
    U, s, V = torch.linalg.svd(W, full_matrices=False)
    return (U[:, :rank] * s[:rank]) @ V[:rank]


def weight_gradients(name: str) -> list[Tensor]:
    """The gradient of the loss of each sample."""
    layer, found = MODEL.get_submodule(name), []
    for batch in batches():
        for row in batch["input_ids"]:
            loss = MODEL(row[None], labels=row[None]).loss
            found.append(torch.autograd.grad(loss, layer.weight)[0].double())
    return found


def svd(W: Tensor, name: str, rank: int) -> Tensor:
    return cut(W, rank)


def asvd(W: Tensor, name: str, rank: int) -> Tensor:
    scale = torch.cat(inputs(name)).abs().mean(0).sqrt()
    return cut(W * scale, rank) / scale


def fwsvd(W: Tensor, name: str, rank: int) -> Tensor:
    rows = torch.stack(weight_gradients(name)).square().mean(0).sum(1).sqrt()
    return cut(rows[:, None] * W, rank) / rows[:, None]


def svd_llm(W: Tensor, name: str, rank: int) -> Tensor:
    x = torch.cat(inputs(name))
    L = torch.linalg.cholesky(x.mT @ x)
    return cut(W @ L, rank) @ torch.linalg.inv(L)


PUBLISHED: Mapping[str, Callable[[Tensor, str, int], Tensor]] = {
    "svd": svd,
    "asvd": asvd,
    "fwsvd": fwsvd,
    "svd_llm": svd_llm,
    "lems": svd_llm,
    "zs_svd": svd_llm,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_weights_are_those_of_the_equations(name: str) -> None:
    plan, small, _ = compressed(name)
    assert plan.planned["linear"] <= 0.7 * plan.dense["linear"]
    assert len(plan.factorised) >= 3
    for row in plan.factorised:
        layer = MODEL.get_submodule(row.site)
        expected = PUBLISHED[name](layer.weight.detach().double(), row.site, row.ranks[0])
        found, bias = dense(small, row.site)
        torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-4)
        assert (bias is None) == (layer.bias is None)
        assert bias is None or torch.equal(bias, layer.bias)


@pytest.mark.parametrize("name", ["svd", "fwsvd", "svd_llm"])
def test_the_same_share_of_all_layers(name: str) -> None:
    """`r = rho m n / (m + n)`, rounded down."""
    plan, *_ = compressed(name)
    shares = {row.site: (row.ranks[0] * sum(MODEL.get_submodule(row.site).weight.shape)) for row in plan.factorised}
    ratios = [share / MODEL.get_submodule(site).weight.numel() for site, share in shares.items()]
    assert len(plan.factorised) == len(NAMES)
    assert max(ratios) - min(ratios) < max(
        sum(MODEL.get_submodule(site).weight.shape) / MODEL.get_submodule(site).weight.numel() for site in shares
    )


def test_bolaco() -> None:
    """Principal components of the outputs in the pooled covariance, the bias that keeps their mean, values dense."""
    plan, small, _ = compressed("bolaco", rule="bolaco:trials=4,startup=2", round_to=1)
    assert {row.site for row in plan.factorised}.isdisjoint({"layers.0.v_proj", "layers.1.v_proj"})
    kept: dict[str, set[float]] = {}
    for row in plan.factorised:
        layer, parts = MODEL.get_submodule(row.site), inputs(row.site)
        W = layer.weight.detach().double()
        b = torch.zeros(len(W), dtype=torch.float64) if layer.bias is None else layer.bias.detach().double()
        outputs = [part @ W.mT + b for part in parts]
        pooled = sum(each.mT.cov() * (len(each) - 1) for each in outputs) / sum(len(each) - 1 for each in outputs)
        U = torch.linalg.eigh(pooled).eigenvectors[:, -row.ranks[0] :]
        P = U @ U.mT
        found, bias = dense(small, row.site)
        torch.testing.assert_close(found, P @ W, rtol=2e-3, atol=2e-4)
        mean = torch.cat(outputs).mean(0)
        assert bias is not None
        torch.testing.assert_close(bias.double(), mean - P @ mean + P @ b, rtol=1e-3, atol=1e-4)
        kept.setdefault(row.site.rpartition(".")[2], set()).add(row.ranks[0])
    assert all(len(ranks) == 1 for ranks in kept.values())  # one ratio for each type
    full = plan.dense["linear"]
    assert 0.6 * full <= plan.planned["linear"] <= 0.7 * full


def test_modegpt() -> None:
    """The units of the largest ridge leverage; `W_D C[:, k] C[k, k]^+` for the layer that reads them."""
    plan, small, _ = compressed("modegpt", keep=0.8)
    assert {row.format for row in plan.factorised} == {"nystrom:order=leverage"}
    for row in plan.factorised:
        block = row.site.rpartition(".")[0]
        W = MODEL.get_submodule(f"{block}.down_proj").weight.detach().double()
        h = torch.cat(inputs(f"{block}.down_proj"))
        C = h.mT @ h / len(h)
        leverage = (C @ torch.linalg.inv(C + C.diagonal().mean() * torch.eye(HIDDEN).double())).diagonal()
        units = leverage.topk(row.ranks[0]).indices.sort().values
        expected = W @ C[:, units] @ torch.linalg.pinv(C[units][:, units], rtol=1e-9)
        chain = small.get_submodule(f"{block}.down_proj")
        assert torch.equal(chain[0].places.long(), units)
        torch.testing.assert_close(chain[1].weight.double(), expected, rtol=2e-2, atol=2e-3)
        torch.testing.assert_close(chain[1].bias, MODEL.get_submodule(f"{block}.down_proj").bias)


def test_zs_svd_scores_and_the_order_in_which_components_leave() -> None:
    plan, *_ = compressed("zs_svd", keep=0.7, round_to=1)
    scores, ranks = {}, {}
    for name in NAMES:
        W = MODEL.get_submodule(name).weight.detach().double()
        x, G = torch.cat(inputs(name)), torch.stack(weight_gradients(name)).mean(0)
        L = torch.linalg.cholesky(x.mT @ x / len(x))
        U, s, V = torch.linalg.svd(W @ L, full_matrices=False)
        scores[name] = (-s * (U.mT @ G @ torch.linalg.inv(L).mT @ V.mT).diagonal()).tolist()
        ranks[name] = len(s)

    def saved() -> float:
        """Parameters, biases apart."""
        shapes = {name: MODEL.get_submodule(name).weight.shape for name in NAMES}
        return sum(max(m * n - ranks[name] * (m + n), 0) for name, (m, n) in shapes.items())

    total = 0.0
    while saved() < 0.3 * plan.dense["linear"]:
        heads = [(abs(scores[name][ranks[name] - 1]), name) for name in NAMES if ranks[name] > 1]
        wanted = [each for each in heads if (scores[each[1]][ranks[each[1]] - 1] > 0) == (total < 0)]
        _, name = min(wanted or heads)
        ranks[name] -= 1
        total += scores[name][ranks[name]]
    for row in plan.rows:
        if row.site in ranks:
            m, n = MODEL.get_submodule(row.site).weight.shape
            below = ranks[row.site] * (m + n) < m * n
            assert row.ranks == ((ranks[row.site],) if below else ())


def test_lems() -> None:
    """The best of all plans by `m_b KL_probe tail(r) / tail(r0)`, with a floor, by trying every one of them."""
    tried: list[tuple[str, tuple[int, ...], float]] = []
    named = NAMED["lems"]
    stats = rw.collect(MODEL, batches())
    only = ["layers.0.q_proj", "layers.0.up_proj", "layers.1.up_proj"]

    def evaluate(plan: rw.Plan) -> float:
        (row,) = plan.factorised
        tried.append((row.site, row.ranks, divergence(MODEL, rw.factorise(MODEL, plan, stats), batches()[:1])))
        return tried[-1][2]

    wishes = {**named.wishes, "include": only, "keep": {"linear": 0.92}, "evaluate": evaluate}
    plan = rw.choose(MODEL, stats, **wishes)
    assert len(tried) == 3  # one probe for each
    curves = rw.profile(MODEL, stats, formats=["svd"], metric="uncentred", only=only)
    factor = {"layers.0.q_proj": 6.0, "layers.0.up_proj": 6.0, "layers.1.up_proj": 1.0}
    spare = plan.dense["linear"] * 0.92 - plan.dense["linear"]
    choices = []
    for site, ranks, loss in tried:
        whole = curves[site][0]
        known = {option.ranks: option.error for option in curves[site]}
        allowed = [option for option in curves[site] if not option.ranks or option.params >= 0.3 * whole.params]
        losses = [factor[site] * loss * option.error / known[ranks] for option in allowed]
        choices.append([(own, o.params - whole.params, o) for own, o in zip(losses, allowed, strict=True)])
    within = [each for each in itertools.product(*choices) if sum(saved for _, saved, _ in each) <= spare]
    best = min(within, key=lambda each: sum(loss for loss, *_ in each))
    found = {row.site: row.ranks for row in plan.rows}
    assert [found[site] for site, *_ in tried] == [option.ranks for *_, option in best]


class Tied(Words):
    """The head shares the weight of the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        self.head.weight = self.table.weight


def test_tied_embeddings_have_no_gradients_of_their_own() -> None:
    model = Tied().eval()
    stats = rw.collect(model, list(WithLabels(batches())), gradients="weights", loss=stated_loss)
    for name in ("fwsvd", "zs_svd"):
        plan = rw.choose(model, stats, keep={"linear": 0.7}, **NAMED[name].wishes)
        assert plan.factorised
        assert all(row.format == "dense" for row in plan.rows if row.site not in NAMES)


def test_what_a_method_lacks_is_told() -> None:
    plain = rw.collect(MODEL, batches())
    with pytest.raises(ValueError, match="hold no gradients"):
        rw.choose(MODEL, plain, keep={"linear": 0.7}, **NAMED["zs_svd"].wishes)
    own = rw.collect(MODEL, batches(), gradients="weights")  # of the network's own answers: their mean says nothing
    with pytest.raises(ValueError, match="no gradients of a loss on labels"):
        rw.choose(MODEL, own, keep={"linear": 0.7}, **NAMED["zs_svd"].wishes)
    with pytest.raises(ValueError, match="is for svd without ties"):
        rw.choose(MODEL, own, keep={"linear": 0.7}, **{**NAMED["zs_svd"].wishes, "formats": ["pivoted_svd"]})
    with pytest.raises(ValueError, match="the metric 'rows' needs"):
        rw.profile(MODEL, rw.collect(MODEL, batches(), gradients=True), metric="rows")
    with pytest.raises(ValueError, match="unknown method set 'svdllm'; did you mean svd_llm"):
        rw.method_set("svdllm")
    with pytest.raises(ValueError, match='it is True, False or "weights"'):
        rw.collect(MODEL, batches(), gradients="weight")
