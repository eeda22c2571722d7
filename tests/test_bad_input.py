"""Bad input: a clear error that names the place and the fix, and a model that is left as it was."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.nets import Residual, batches_of, chains, make, outputs, plan_of, unchanged
from torch import Tensor, nn

import rankwise as rw


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 24)
        self.drop = nn.Dropout(0.5)
        self.second = nn.Linear(24, 24)
        self.norm = nn.BatchNorm1d(24)
        self.third = nn.Linear(24, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(torch.relu(self.norm(self.second(self.drop(torch.relu(self.first(x)))))))


@pytest.fixture
def model() -> nn.Module:
    made = make(Small)
    made.train()
    made.norm.eval()
    made.third.requires_grad_(False)
    made.second.register_forward_hook(lambda module, args, output: None)
    made.first.register_forward_pre_hook(lambda module, args: None)
    return made


@pytest.fixture
def data() -> list[Tensor]:
    return batches_of(32, 16)


def poisoned(data: list[Tensor], value: float) -> list[Tensor]:
    return [data[0], data[1].clone().index_fill_(0, torch.tensor([3]), value), *data[2:]]


def endless(size: int) -> Iterator[Tensor]:
    while True:
        yield torch.zeros(size, 16)


# Data ----------------------------------------------------------------------------------------------------------------

VERBS: dict[str, Callable[[nn.Module, Any, rw.Plan], object]] = {
    "collect": lambda model, data, plan: rw.collect(model, data),
    "compress": lambda model, data, plan: rw.compress(model, data, keep={"params": 0.6}),
    "factorise": lambda model, data, plan: rw.factorise(model, plan, data=data),
    "factorise_": lambda model, data, plan: rw.factorise_(model, plan, data=data),
    "factorise with hooks": lambda model, data, plan: rw.factorise(model, plan, data=data, engine="hooks"),
}
DATA: dict[str, tuple[Callable[[list[Tensor]], Any], str]] = {
    "NaN": (
        lambda data: poisoned(data, float("nan")),
        r"calibration batch 1 \(32, 16\) holds values that are not finite",
    ),
    "infinity": (lambda data: poisoned(data, float("inf")), "batch 1 .*remove the sample or repair"),
    "empty list": (lambda data: [], "holds no batch; pass at least one batch"),
    "empty generator": (lambda data: iter(()), "holds no batch"),
    "nothing": (lambda data: None, "holds no batch|collect needs either data|needs data="),
    "other width": (lambda data: [data[0][:, :15]], r"Small rejects .*\(\d+, 15\)"),
    "other width later": (lambda data: [*data, data[0][:, :15]], "Small rejects batch 4"),
    "a number": (lambda data: 3, "must be an iterable of batches, got int"),
    "numbers": (lambda data: [1, 2], "must hold a tensor"),
    "labels left in": (
        lambda data: [(x, torch.zeros(32)) for x in data],
        r"labels are stripped with inputs_only\(loader\)",
    ),
    "a data set": (
        lambda data: torch.utils.data.TensorDataset(*data),
        "single samples, not batches; pass a .*DataLoader",
    ),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("kind", DATA)
def test_bad_data(verb: str, kind: str, model: nn.Module, data: list[Tensor]) -> None:
    plan = plan_of(rw.find(model, data[0]), {"first": ("svd", (4,)), "second": ("svd", (4,))})
    make_bad, message = DATA[kind]
    with unchanged(model), pytest.raises(ValueError, match=message):
        VERBS[verb](model, make_bad(data), plan)


def test_a_generator_that_is_too_large(model: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"one-shot iterator of more than 10,000 bytes.*pass a list or a DataLoader"):
        rw.Batches.of(endless(32), cache_limit=10_000)


def test_a_network_that_makes_nan_of_finite_data(model: nn.Module, data: list[Tensor]) -> None:
    broken = nn.Sequential(copy.deepcopy(model.first), LogOf(), nn.Linear(24, 24))
    plan = plan_of(rw.find(broken, data[0]), {"2": ("svd", (4,))})
    for run in (
        lambda: rw.collect(broken, data),
        lambda: rw.factorise(broken, plan, data=data),
        lambda: rw.factorise(broken, plan, data=data, engine="hooks"),
    ):
        with unchanged(broken), pytest.raises(ValueError, match="site '2', batch 0: the input holds NaN or infinity"):
            run()


class LogOf(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.log()


# What to build --------------------------------------------------------------------------------------------------------

CHOICES: dict[str, tuple[dict[str, Any], str]] = {
    "format": ({"formats": ("svd", "magic")}, "unknown format 'magic'; the formats are .*svd"),
    "no format": ({"formats": ()}, "no format given"),
    "metric": (
        {"metric": "zebra"},
        "unknown metric 'zebra'; the metrics are input, diagonal, fisher, weight, ",
    ),
    "ignored pattern": ({"ignore": ["secnd"]}, "pattern 'secnd' matches no site; near names are: second"),
    "included pattern": ({"include": ["layer*"]}, r"pattern 'layer\*' matches no site"),
    "expression": ({"ignore": ["re:["]}, "not a valid regular expression"),
    "budget": ({"keep": {"watts": 0.5}}, "unknown budget 'watts'; the budgets are params, macs, bytes"),
    "two budgets": (
        {"keep": {"params": 0.7, "macs": 0.001}},
        r"macs \(0\.001 of dense\) cannot be met together with at most [\d,]+ params",
    ),
    "no budget": ({"keep": {"macs": 0.0}}, "fraction up to 1 or a number above 0"),
    "half a unit": ({"keep": {"macs": 1.5}}, "neither a fraction up to 1.0 nor a whole number"),
    "too small": ({"keep": {"params": 0.01}}, r"cannot be met: .*keeps at least [\d,]+ \(0\.\d+\).*raise the budget"),
    "too much ignored": ({"keep": {"params": 0.5}, "ignore": ["*"]}, "cannot be met"),
    "rounding": ({"round_to": 0}, "round_to must be"),
    "pin": ({"pin": {"second": "svd"}}, "a pin is"),
    "pinned ranks": ({"pin": {"second": "svd:99"}}, r"site 'second': svd cannot have ranks \(99,\)"),
    "pinned format": ({"pin": {"second": "tucker2:2,2"}}, "site 'second' cannot be pinned to tucker2"),
    "pinned and ignored": ({"pin": {"second": "svd:4"}, "ignore": ["second"]}, "both ignored and pinned"),
}


@pytest.mark.parametrize("kind", CHOICES)
def test_bad_choices(kind: str, model: nn.Module, data: list[Tensor]) -> None:
    stats = rw.collect(model, data)
    options, message = CHOICES[kind]
    options = {"keep": {"params": 0.7}, **options}
    with unchanged(model), pytest.raises(ValueError, match=message):
        rw.choose(model, stats, **options)
    with unchanged(model), pytest.raises(ValueError, match=message):
        rw.compress(model, data, **options)


def test_the_input_metric_needs_statistics(model: nn.Module, data: list[Tensor]) -> None:
    sites = rw.find(model, data[0])
    with pytest.raises(ValueError, match=r'"input" metric needs statistics: pass rankwise\.collect'):
        rw.choose(model, sites, keep={"params": 0.6})
    plan = plan_of(sites, {"second": ("svd", (4,))})
    for source in (None, sites):
        with unchanged(model), pytest.raises(ValueError, match=r"needs data= \(sequential\) or statistics"):
            rw.factorise(model, plan, source)
    with unchanged(model), pytest.raises(ValueError, match=r"needs the sites: pass rankwise\.find"):
        rw.factorise(model, dataclasses.replace(plan, metric="weight"))


# Plans, statistics and artifacts of another network -------------------------------------------------------------------

ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "rank too large": ({"ranks": (25,)}, r"site 'second': svd cannot have ranks \(25,\); .*between 1 and \(24,\)"),
    "rank zero": ({"ranks": (0,)}, r"site 'second': svd cannot have ranks \(0,\)"),
    "two ranks": ({"ranks": (4, 4)}, r"site 'second': svd cannot have ranks \(4, 4\); it needs 1 number"),
    "no ranks": ({"ranks": ()}, r"site 'second': svd cannot have ranks \(\)"),
    "unknown format": ({"format": "magic"}, "unknown format 'magic'"),
    "format for convolutions": ({"format": "tucker2", "ranks": (4, 4)}, "site 'second' cannot have format 'tucker2'"),
    "unknown site": ({"site": "secnd"}, "pattern 'secnd' matches no site; near names are: second"),
}


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("method", ["sequential", "one-shot", "in place"])
def test_bad_plans(kind: str, method: str, model: nn.Module, data: list[Tensor]) -> None:
    stats = rw.collect(model, data)
    plan = plan_of(stats.sites, {"first": ("svd", (4,)), "second": ("svd", (4,))})
    change, message = ROWS[kind]
    rows = tuple(dataclasses.replace(row, **change) if row.site == "second" else row for row in plan.rows)
    plan = dataclasses.replace(plan, rows=rows)
    verb = rw.factorise_ if method == "in place" else rw.factorise
    with unchanged(model), pytest.raises(ValueError, match=message):
        verb(model, plan, stats, data=data if method == "sequential" else None)


def wider() -> nn.Module:
    model = make(Small)
    model.third = nn.Linear(24, 8)
    return model


def test_a_plan_of_another_network(model: nn.Module, data: list[Tensor]) -> None:
    other = wider()
    plan = rw.choose(other, rw.collect(other, data), keep={"params": 0.7})
    for options in ({"stats": rw.collect(model, data)}, {"data": data}):
        with unchanged(model), pytest.raises(ValueError, match="made for a network of another structure"):
            rw.factorise(model, plan, **options)


def test_statistics_of_another_network(model: nn.Module, data: list[Tensor]) -> None:
    """Of the same site names, but other shapes: not a crash of a matrix product, and no wrong result."""
    other = make(Small)
    other.second, other.norm, other.third = nn.Linear(24, 20), nn.BatchNorm1d(20), nn.Linear(20, 6)
    stats = rw.collect(other, data)
    with unchanged(model), pytest.raises(ValueError, match="another structure"):
        rw.choose(model, stats, keep={"params": 0.7})
    plan = rw.choose(other, stats, keep={"params": 0.7})
    for options in ({}, {"data": data}):
        with unchanged(model), pytest.raises(ValueError, match="another structure"):
            rw.factorise(model, plan, stats, **options)


def test_statistics_that_lack_a_site(model: nn.Module, data: list[Tensor]) -> None:
    stats = rw.collect(model, data)
    part = rw.Statistics({"first": stats["first"]}, sites=stats.sites, samples=stats.samples)
    plan = plan_of(stats.sites, {"first": ("svd", (4,)), "second": ("svd", (4,))})
    with unchanged(model), pytest.raises(ValueError, match="hold nothing for site 'second'; collect them again"):
        rw.factorise(model, plan, part)
    with unchanged(model), pytest.raises(ValueError, match="hold nothing for site 'second'"):
        rw.choose(model, part, keep={"params": 0.7})


def test_an_artifact_of_another_network(model: nn.Module, data: list[Tensor], tmp_path: Path) -> None:
    small, _ = rw.compress(model, data, keep={"params": 0.6})
    rw.save(small, tmp_path / "out")
    other = wider()
    with unchanged(other), pytest.raises(ValueError, match="third"):
        rw.load(other, tmp_path / "out")


# Networks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["weight_norm", "spectral_norm"])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_old_norms_are_refused(norm: str, data: list[Tensor]) -> None:
    model = make(Small)
    getattr(nn.utils, norm)(model.second)
    message = rf"'second' carries the old torch\.nn\.utils\.{norm}.*remove_{norm}\(layer\)"
    with unchanged(model), pytest.raises(ValueError, match=message):
        rw.compress(model, data, keep={"params": 0.6})


def test_lazy_layers_are_refused(data: list[Tensor]) -> None:
    model = nn.Sequential(nn.LazyLinear(24), nn.ReLU(), nn.Linear(24, 4))
    with pytest.raises(ValueError, match=r"'0\.weight' has no shape yet; run one forward pass first"):
        rw.compress(model, data, keep={"params": 0.6})
    assert isinstance(model[0], nn.LazyLinear)


def test_peft_is_refused(data: list[Tensor]) -> None:
    from rankwise.inputs.torchvision_shim import import_torchvision

    import_torchvision()  # peft imports transformers, which imports it where it is installed
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(make(Small), peft.LoraConfig(target_modules=["second"], r=2))
    with unchanged(model), pytest.raises(ValueError, match=r"PEFT .*merge_and_unload\(\)"):
        rw.compress(model, data, keep={"params": 0.6})
    merged = model.merge_and_unload()
    small, _ = rw.compress(merged, data, keep={"params": 0.6})
    assert chains(small)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("method", ["sequential", "one-shot", "weight"])
def test_weights_that_are_not_finite_name_the_site(value: float, method: str, data: list[Tensor]) -> None:
    model = make(Small)
    with torch.no_grad():
        model.third.weight[2, 3] = value
    stats = rw.collect(model, data)
    metric = "weight" if method == "weight" else "input"
    plan = plan_of(stats.sites, {"first": ("svd", (4,)), "third": ("svd", (2,))}, metric)
    message = "site 'third': the weight holds NaN or infinity"
    with unchanged(model), pytest.raises(ValueError, match=message):
        rw.factorise(model, plan, stats, data=data if method == "sequential" else None)
    with unchanged(model), pytest.raises(ValueError, match=message):
        rw.compress(model, data, keep={"params": 0.6})


class Wrapped(nn.parallel.DistributedDataParallel):
    """The wrapper's attributes without a process group."""

    def __init__(self, module: nn.Module) -> None:
        nn.Module.__init__(self)
        self.module = module


WRAPPERS: dict[str, Callable[[nn.Module], Any]] = {
    "torch.compile": torch.compile,
    "DataParallel": nn.DataParallel,
    "DistributedDataParallel": Wrapped,
    "both": lambda model: torch.compile(nn.DataParallel(model)),
}


@pytest.mark.parametrize("kind", WRAPPERS)
def test_wrappers_are_looked_through(kind: str, data: list[Tensor]) -> None:
    model = make(Small)
    stats = rw.collect(model, data)
    plan = rw.choose(model, stats, keep={"params": 0.6})
    wrapped = WRAPPERS[kind](model)
    with unchanged(model):
        assert rw.choose(wrapped, rw.collect(wrapped, data), keep={"params": 0.6}) == plan
        for options in ({}, {"data": data}):
            small = rw.factorise(wrapped, plan, stats, **options)
            assert type(small) is Small
            assert torch.equal(outputs(small, data), outputs(rw.factorise(model, plan, stats, **options), data))
    assert type(rw.compress(wrapped, data, keep={"params": 0.6})[0]) is Small
    expected = outputs(rw.factorise(model, plan, stats), data)
    rw.factorise_(wrapped, plan, stats)
    assert set(chains(model)) == {row.site for row in plan.factorised}
    assert torch.equal(outputs(model, data), expected)


# Surroundings ---------------------------------------------------------------------------------------------------------


def test_everything_around_is_left_as_it_was(model: nn.Module, data: list[Tensor]) -> None:
    """Random state, training flags, hooks, buffers, switches: for every verb, also with a loader that draws numbers."""
    loader = rw.inputs_only(
        torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.cat(data), torch.zeros(128)), batch_size=32)
    )
    switches = torch.is_grad_enabled(), torch.get_float32_matmul_precision(), torch.backends.mha.get_fastpath_enabled()
    for source in (data, loader):
        rng = source is data  # a DataLoader draws its seed from the global state, which is its own business
        with unchanged(model, rng):
            rw.find(model, data[0])
        with unchanged(model, rng):
            stats = rw.collect(model, source)
        with unchanged(model):
            plan = rw.choose(model, stats, keep={"params": 0.6})
        with unchanged(model):
            rw.factorise(model, plan, stats)
        for engine in ("graph", "hooks"):
            with unchanged(model, rng):
                rw.factorise(model, plan, data=source, engine=engine)
        with unchanged(model, rng):
            rw.compress(model, source, keep={"params": 0.6})
    assert switches == (
        torch.is_grad_enabled(),
        torch.get_float32_matmul_precision(),
        torch.backends.mha.get_fastpath_enabled(),
    )


def test_the_random_state_does_not_matter(data: list[Tensor]) -> None:
    model = make(Small)
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        results.append(outputs(rw.compress(model, data, keep={"params": 0.6})[0], data))
    assert torch.equal(*results)


@pytest.mark.parametrize("method", ["sequential", "one-shot"])
def test_autocast_outside_does_not_matter(method: str) -> None:
    model, data = make(Residual), batches_of(8, 3, 8, 8)
    expected = outputs(rw.compress(model, data, keep={"macs": 0.6}, method=method)[0], data)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        small, _ = rw.compress(model, data, keep={"macs": 0.6}, method=method)
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(outputs(small, data), expected)


@pytest.mark.parametrize("context", [torch.inference_mode, torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize("method", ["sequential", "one-shot"])
def test_the_result_can_be_trained_whatever_is_outside(
    context: Callable[[], Any], method: str, data: list[Tensor]
) -> None:
    model = make(Small)
    with context():
        small, _ = rw.compress(model, data, keep={"params": 0.6}, method=method)
    small(data[0]).sum().backward()
    for chain in chains(small).values():
        assert all(p.grad is not None and not p.is_inference() for p in chain.parameters())


def test_nothing_is_shared_with_the_dense_network(data: list[Tensor]) -> None:
    model = make(Small)
    for method in ("sequential", "one-shot"):
        small, _ = rw.compress(model, data, keep={"params": 0.6}, method=method)
        ours = {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}
        assert not ours & {tensor.data_ptr() for tensor in (*small.parameters(), *small.buffers())}


def test_in_place_after_an_error_nothing_was_replaced(model: nn.Module, data: list[Tensor]) -> None:
    stats = rw.collect(model, data)
    with torch.no_grad():
        model.third.weight[0, 0] = float("nan")  # the last site: the others are fitted before it
    plan = plan_of(stats.sites, {"first": ("svd", (4,)), "second": ("svd", (4,)), "third": ("svd", (2,))})
    for options in ({}, {"data": data}, {"data": data, "engine": "hooks"}):
        with unchanged(model), pytest.raises(ValueError, match="'third'"):
            rw.factorise_(model, plan, stats, **options)
