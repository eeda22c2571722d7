"""Switches of PyTorch around a verb: the same results, or a clear error, and the switches as they were."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from support.nets import batches_of
from torch import Tensor, nn

import rankwise as rw

DATA = batches_of(16, 16, count=3)
LABELS = torch.arange(48) % 6


def net() -> nn.Module:
    with torch.random.fork_rng(), torch.inference_mode(False):
        torch.manual_seed(0)
        layers = [nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 6)]
        return nn.Sequential(*layers).float().eval()


@contextmanager
def default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def inference_mode() -> Iterator[None]:
    with torch.inference_mode():
        yield
        assert torch.is_inference_mode_enabled()


@contextmanager
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield
        assert not torch.is_grad_enabled()


AROUND = {"inference_mode": inference_mode, "no_grad": no_grad, "float64": default_dtype}


class Verbs:
    """Every verb on one network, with what it needs made beforehand."""

    def __init__(self, folder: Path) -> None:
        self.model = net()
        self.stats = rw.collect(self.model, DATA, gradients=True)
        self.plan = rw.choose(self.model, self.stats, keep={"params": 0.6})
        self.small = rw.factorise(self.model, self.plan, self.stats)
        self.folder = folder
        rw.save(self.small, folder / "saved")

    def all(self) -> dict[str, Callable[[], Any]]:
        model, stats, plan, small, fresh = self.model, self.stats, self.plan, self.small, net()
        keep = {"params": 0.6}
        return {
            "find": lambda: rw.find(model, DATA[0]).total_macs,
            "collect": lambda: rw.collect(model, DATA, gradients=True)["2"].mean_GD,
            "choose": lambda: rw.choose(model, stats, keep=keep),
            "choose, fisher": lambda: rw.choose(model, stats, keep=keep, metric="fisher"),
            "choose, continuous": lambda: rw.choose(model, stats, keep=keep, rule="continuous"),
            "choose, evbmf": lambda: rw.choose(model, stats, keep=keep, rule="evbmf"),
            "profile": lambda: rw.profile(model, stats),
            "factorise": lambda: rw.factorise(model, plan, stats),
            "factorise, sequential": lambda: rw.factorise(model, plan, data=DATA),
            "factorise, hooks": lambda: rw.factorise(model, plan, data=DATA, engine="hooks"),
            "compress": lambda: rw.compress(model, DATA, keep=keep)[0],
            "load": lambda: rw.load(fresh, self.folder / "saved"),
            "agreement": lambda: rw.evaluate.agreement(model, small, DATA),
            "relative_error": lambda: rw.evaluate.relative_error(model, small, DATA),
            "accuracy": lambda: rw.evaluate.accuracy(model, [(DATA[0], LABELS[:16])]),
            "size": lambda: rw.evaluate.size(small, DATA[0]),
            "shrinkage": lambda: rw.choose_shrinkage(model, plan, stats, DATA),
            "latency": lambda: list(rw.evaluate.latency({"dense": model}, DATA[0], rounds=1, warmup=0)),
            "heal": lambda: rw.heal(small, model, DATA, epochs=1)[0],
            "train": lambda: rw.training.train(model, DATA, LABELS, epochs=1, keep={"params": 0.95})[0],
            "pt2": lambda: rw.export.pt2(small, DATA[0], self.folder / "net.pt2"),
        }


@pytest.fixture(scope="module")
def verbs(tmp_path_factory: pytest.TempPathFactory) -> Verbs:
    return Verbs(tmp_path_factory.mktemp("verbs"))


@pytest.fixture(scope="module")
def expected(verbs: Verbs) -> dict[str, Any]:
    return {name: verb() for name, verb in verbs.all().items()}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, nn.Module):
        ours, theirs = a.state_dict(), b.state_dict()
        return ours.keys() == theirs.keys() and all(same(ours[name], theirs[name]) for name in ours)
    return a.dtype == b.dtype and torch.equal(a, b) if isinstance(a, Tensor) else bool(a == b)


@pytest.mark.parametrize("around", AROUND)
def test_results_are_the_same(around: str, verbs: Verbs, expected: dict[str, Any]) -> None:
    context: Callable[[], AbstractContextManager[None]] = AROUND[around]
    for name, verb in verbs.all().items():
        with context():
            found = verb()
        assert same(found, expected[name]), name
        if isinstance(found, nn.Module):
            assert not any(tensor.is_inference() for tensor in found.state_dict(keep_vars=True).values()), name
            found(DATA[0]).sum().backward()


def test_the_meta_device_is_refused(verbs: Verbs) -> None:
    todo = verbs.all()
    torch.set_default_device("meta")
    try:
        for name, verb in todo.items():
            with pytest.raises(ValueError, match=r'default device of torch is "meta".*set_default_device\("cpu"\)'):
                verb()
            assert torch.get_default_device().type == "meta", name
    finally:
        torch.set_default_device(None)
    with torch.device("meta"):
        rw.save(verbs.small, verbs.folder / "again")  # makes no tensor
    assert same(rw.load(net(), verbs.folder / "again"), verbs.small)


def test_a_model_made_in_inference_mode_is_refused_with_the_fix() -> None:
    with torch.inference_mode():
        model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    with pytest.raises(ValueError, match=r"'0\.weight' was made in torch\.inference_mode.*copy\.deepcopy\(model\)"):
        rw.compress(model, DATA, keep={"params": 0.6})


def test_data_made_in_inference_mode(verbs: Verbs) -> None:
    with torch.inference_mode():
        data = [batch.clone() for batch in DATA]
    assert same(rw.compress(verbs.model, data, keep={"params": 0.6})[0], verbs.all()["compress"]())
    assert rw.heal(verbs.small, verbs.model, data, epochs=1)[1].samples
