"""Several threads: the same bits as one after another, nothing left behind, and what cannot work is refused."""

from __future__ import annotations

import copy
import inspect
import logging
import os
import random
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.nets import Residual, batches_of, make
from torch import Tensor, nn

import rankwise as rw
from rankwise.formats import get_format
from rankwise.running import exclusive
from rankwise.running.exclusive import OtherThreadError
from rankwise.surgery import tracing

pytestmark = pytest.mark.usefixtures("one_thread")

PATIENCE = 60  # seconds after which a test that hangs gives up


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.conv(x))).mean((2, 3)))


def data(seed: int = 0) -> list[Tensor]:
    return batches_of(16, 3, 6, 6, count=2, seed=seed)


def compressed(model: nn.Module, format: str, method: str, seed: int) -> dict[str, Tensor]:
    """The tensors of a network whose layers all have a format, where it takes them."""
    batches = data(seed)
    stats = rw.collect(model, batches)
    pins = {
        name: (format, tuple(max(1, limit // 2) for limit in get_format(format).limits(site)))
        for name, site in stats.sites.items()
        if get_format(format).refuses(site) is None
    }
    ignore = sorted(stats.sites.keys() - pins.keys())
    plan = rw.choose(model, stats, keep={"params": 10_000_000}, formats=format, pin=pins, ignore=ignore)
    small = rw.factorise(model, plan, stats, data=batches if method == "sequential" else None)
    return dict(small.state_dict())


def healed(model: nn.Module, seed: int) -> dict[str, Tensor]:
    batches = data(seed)
    small, _ = rw.compress(model, batches, keep={"params": 0.8})
    return dict(rw.heal(small, model, batches, epochs=1, batch=8)[0].state_dict())


def switches() -> dict[str, Any]:
    """What belongs to the whole process and may not be left changed."""
    precision = [
        getattr(getattr(home, name), "fp32_precision", None)
        for home in (torch.backends.cuda, torch.backends.cudnn, torch.backends.mkldnn)
        for name in ("matmul", "conv", "rnn")
        if hasattr(home, name)
    ]
    return {
        "torch random": torch.get_rng_state().tolist(),
        "python random": random.getstate(),
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "precision": (precision, torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32),
        "flags": (
            torch.backends.cudnn.enabled,
            torch.backends.mkldnn.enabled,
            torch.backends.mha.get_fastpath_enabled(),
        ),
        "deterministic": (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark),
        "autocast": torch.is_autocast_enabled("cpu"),
        "filters": list(warnings.filters),
        "classes": (nn.Module.__call__, nn.Module.__getattr__, nn.Linear.forward),
        "hooks": (
            dict(torch.nn.modules.module._global_forward_hooks),
            dict(torch.nn.modules.module._global_forward_pre_hooks),
        ),
        "loggers": {name: logging.getLogger(name).level for name in ("rankwise", "torch", "torch.onnx")},
        "handlers": list(logging.getLogger("rankwise").handlers),
        "streams": (sys.stdout, sys.stderr),
    }


QUICK = ("svd", "spatial_svd", "tucker2", "slr", "cp", "tt")  # one of each family


@pytest.mark.parametrize(
    "formats", [QUICK, pytest.param(tuple(rw.FORMATS), marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_formats_in_threads_give_the_bits_of_one_after_another(formats: tuple[str, ...]) -> None:
    jobs = [(format, ("one-shot", "sequential")[n % 2], n) for n, format in enumerate(formats)]
    models = [make(Small, n) for n in range(len(jobs))]
    before = switches()
    alone = [compressed(model, *job) for model, job in zip(models, jobs, strict=True)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda model, job: compressed(model, *job), models, jobs))
    assert switches() == before
    for job, one, other in zip(jobs, alone, together, strict=True):
        assert one.keys() == other.keys(), job
        assert all(torch.equal(one[name], other[name]) for name in one), job
    assert len({tuple(one) for one in alone}) > 2  # chains of different layers, or nothing was compared


def test_healing_in_threads_gives_the_bits_of_one_after_another() -> None:
    models = [make(Small, n) for n in range(3)]
    before = switches()
    alone = [healed(model, seed) for seed, model in enumerate(models)]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(healed, models, range(3)))
    assert switches() == before
    for one, other in zip(alone, together, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_verbs_leave_no_switch_behind(tmp_path: Any) -> None:
    model, batches = make(Small), data()
    stats = rw.collect(model, batches, gradients=True)  # what is imported late is imported now
    plan = rw.choose(model, stats, keep={"macs": 0.6})
    verbs: dict[str, Callable[[], object]] = {
        "find": lambda: rw.find(model, batches[0][:1]),
        "collect": lambda: rw.collect(model, batches, gradients=True),
        "choose": lambda: rw.choose(model, stats, keep={"macs": 0.6}, formats=["svd", "cp"]),
        "timed": lambda: rw.choose(
            model, stats, keep={"latency": 1.0}, example=batches[0][:1], threads=2, formats="svd", ignore="conv"
        ),
        "factorise": lambda: rw.factorise(model, plan, stats),
        "sequential": lambda: rw.factorise(model, plan, data=batches),
        "compress": lambda: rw.compress(model, batches, keep={"macs": 0.6}),
        "heal": lambda: rw.heal(rw.factorise(model, plan, stats), model, batches, epochs=1),
        "latency": lambda: rw.evaluate.latency({"dense": model}, batches[0][:1], threads=2, rounds=2),
        "agreement": lambda: rw.evaluate.agreement(model, model, batches),
        "export": lambda: rw.export.pt2(model, batches[0][:1], tmp_path / "net.pt2"),
        "save": lambda: rw.save(rw.factorise(model, plan, stats), tmp_path / "out"),
        "load": lambda: rw.load(make(Small), tmp_path / "out", example=batches[0][:1]),
        "expand": lambda: rw.training.merge_(rw.training.expand_(copy.deepcopy(model), stats.sites)),
    }
    for name, verb in verbs.items():
        verb()  # imports of its own may change filters and loggers for good
        before = switches()
        verb()
        after = switches()
        assert {key for key in before if before[key] != after[key]} == set(), name


@contextmanager
def elsewhere(run: Callable[[], object]) -> Iterator[threading.Thread]:
    """Runs a function in another thread; its error, if any, is raised here at the end."""
    errors: list[BaseException] = []

    def guarded() -> None:
        try:
            run()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=guarded, name="elsewhere")
    thread.start()
    try:
        yield thread
    finally:
        thread.join(PATIENCE)
    assert not thread.is_alive(), "the other thread hangs"
    if errors:
        raise errors[0]


class Held(list[Tensor]):
    """Batches that stop a verb in its pass over them until they are let go."""

    def __init__(self, batches: list[Tensor]) -> None:
        super().__init__(batches)
        self.reached, self.release = threading.Event(), threading.Event()

    def __iter__(self) -> Iterator[Tensor]:
        for batch in super().__iter__():
            self.reached.set()
            assert self.release.wait(PATIENCE)
            yield batch


class Sharing(nn.Module):
    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 3, 1)
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        return self.part(self.body(x))


def sharing_a_parameter(model: nn.Module) -> nn.Module:
    other = make(Small)
    other.head.weight = model.head.weight  # type: ignore[union-attr, assignment]
    return other


SAME: dict[str, Callable[[nn.Module], nn.Module]] = {
    "itself": lambda model: model,
    "DataParallel": nn.DataParallel,
    "torch.compile": lambda model: torch.compile(model, backend="eager"),  # type: ignore[return-value]
    "a larger network": Sharing,
    "a part": lambda model: model.conv,  # type: ignore[return-value]
    "a shared parameter": sharing_a_parameter,
    "a view of its memory": lambda model: _viewing(model),
}


def _viewing(model: nn.Module) -> nn.Module:
    other = make(Small)
    other.head.weight = nn.Parameter(model.head.weight.detach()[:])  # type: ignore[union-attr, index]
    return other


@pytest.mark.parametrize("swapped", [False, True], ids=["first", "second"])
@pytest.mark.parametrize("how", SAME)
def test_one_network_in_two_threads_is_refused(how: str, swapped: bool) -> None:
    model = make(Small)
    first, second = (SAME[how](model), model) if swapped else (model, SAME[how](model))
    batches, example = Held(data()), torch.zeros(1, 3, 6, 6)
    with elsewhere(lambda: rw.collect(first, batches, example=example)):
        assert batches.reached.wait(PATIENCE)
        try:
            with pytest.raises(OtherThreadError, match="a network that collect in thread 'elsewhere' is"):
                rw.find(second, example)
        finally:
            batches.release.set()
    assert len(rw.find(second, example)) >= 1  # free again


def test_a_network_that_waits_its_turn_is_taken_too() -> None:
    """The second of two threads waits for the first; a third may not have the second one's network."""
    busy, waiting = make(Small), make(Small, 1)
    batches = Held(data())
    with elsewhere(lambda: rw.collect(busy, batches)):
        assert batches.reached.wait(PATIENCE)
        with elsewhere(lambda: rw.find(waiting, torch.zeros(1, 3, 6, 6))):
            try:
                for _ in range(PATIENCE * 100):
                    if any(claim.words.startswith("find") for claim in exclusive._process.claims.values()):
                        break
                    threading.Event().wait(0.01)
                with pytest.raises(OtherThreadError, match="that find in thread"):
                    rw.find(waiting, torch.zeros(1, 3, 6, 6))
            finally:
                batches.release.set()


def test_waiting_is_announced(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(exclusive, "ANNOUNCED", 0.02)
    batches = Held(data())
    with elsewhere(lambda: rw.collect(make(Small), batches)):
        assert batches.reached.wait(PATIENCE)
        threading.Timer(0.2, batches.release.set).start()
        rw.find(make(Small, 1), torch.zeros(1, 3, 6, 6))
    assert "find in thread 'MainThread' has waited" in caplog.text
    assert "for collect in thread 'elsewhere'" in caplog.text


VERBS: dict[str, Callable[[nn.Module, Any], object]] = {
    "find": lambda model, run: rw.find(Calling(model, run), torch.zeros(1, 3, 6, 6)),
    "collect": lambda model, run: rw.collect(model, Interrupting(data(), run)),
    "forward_loop": lambda model, run: rw.collect(
        model, forward_loop=lambda model: (run(), model(data()[0])), example=torch.zeros(1, 3, 6, 6)
    ),
    "sequential": lambda model, run: rw.factorise(
        model, some_plan(model), data=Interrupting(data(), run), example=torch.zeros(1, 3, 6, 6), engine="hooks"
    ),
    "shrinkage": lambda model, run: rw.choose_shrinkage(
        model, some_plan(model), rw.collect(model, data()), Interrupting(data(1), run)
    ),
}


def some_plan(model: nn.Module) -> rw.Plan:
    return rw.choose(model, rw.collect(model, data()), keep={"macs": 0.6})


class Calling(nn.Module):
    """Calls a function in its forward."""

    def __init__(self, model: nn.Module, run: Callable[[], object]) -> None:
        super().__init__()
        self.model, self.run = model, run

    def forward(self, x: Tensor) -> Tensor:
        self.run()
        return self.model(x)


class Interrupting(list[Tensor]):
    """Batches before each of which a function is called."""

    def __init__(self, batches: list[Tensor], run: Callable[[], object]) -> None:
        super().__init__(batches)
        self.run = run

    def __iter__(self) -> Iterator[Tensor]:
        for batch in super().__iter__():
            self.run()
            yield batch


@pytest.mark.parametrize("verb", VERBS)
def test_a_network_that_another_thread_runs_is_refused(verb: str) -> None:
    model = make(Small)
    layer = model.conv

    def run() -> None:  # while hooks are in place; the forward itself must not suffer
        if layer._forward_hooks or layer._forward_pre_hooks:  # type: ignore[union-attr]
            with elsewhere(lambda: model(data(9)[0])):
                pass

    with pytest.raises(OtherThreadError, match=r"thread 'elsewhere' ran \w+.* of the network that \w+ in thread"):
        VERBS[verb](model, run)
    assert not layer._forward_hooks  # type: ignore[union-attr]
    stats = rw.collect(model, data())  # nothing is left of it
    assert torch.equal(stats["head"].mean_GD, rw.collect(copy.deepcopy(model), data())["head"].mean_GD)


class Branches(nn.Module):
    """Runs two of its layers in threads of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        with ThreadPoolExecutor(2) as pool:
            one, two = pool.map(lambda layer: layer(x), (self.one, self.two))
        return self.head(one + two)


def test_a_network_with_threads_of_its_own_is_refused() -> None:
    model, batches = make(Branches), batches_of(8, 8)
    for verb in (lambda: rw.find(model, batches[0]), lambda: rw.compress(model, batches, keep={"macs": 0.5})):
        with pytest.raises(ValueError, match=r"ran Linear \('(one|two)'\).* in threads of its own cannot be worked on"):
            verb()


def test_a_callback_calls_rankwise_again() -> None:
    model, batches = make(Small), data()
    stats = rw.collect(model, batches)
    visited: list[str] = []

    def evaluate(plan: rw.Plan) -> float:
        visited.append("evaluate")
        return 1 - rw.evaluate.agreement(rw.factorise(model, plan, stats), model, batches) / 100

    def step(site: str) -> None:
        visited.append(site)
        rw.find(model, batches[0][:1])

    plan = rw.choose(model, stats, keep={"macs": 0.6}, rule="sensitivity", evaluate=evaluate)
    rw.factorise(model, plan, data=batches, step=step)
    assert {"evaluate"} < set(visited)


def test_other_networks_run_while_one_is_traced() -> None:
    """`torch.fx` replaces calls and attributes of all modules while it traces."""
    other, x, stop = make(Residual), torch.randn(2, 3, 6, 6), threading.Event()
    with torch.no_grad():
        wanted = other(x)

    def forwards() -> None:
        while not stop.is_set():
            with torch.no_grad():
                assert torch.equal(other(x), wanted)

    def traced() -> None:
        for _ in range(20):
            graph = tracing.traced(Sharing(make(Small)), "")
            assert next(str(node.target) for node in graph.nodes if node.op == "call_module") == "body"

    with elsewhere(forwards):
        try:
            traced()
        finally:
            stop.set()


def test_the_child_of_a_fork_is_free() -> None:
    if not hasattr(os, "fork"):
        pytest.skip("no fork on this system")
    batches = Held(data())
    with elsewhere(lambda: rw.collect(make(Small), batches)):
        assert batches.reached.wait(PATIENCE)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # newer Pythons warn of forks beside threads, which this is about
            child = os.fork()
        if child == 0:  # no other thread lives here that could give the lock back
            free = exclusive._process.turn.acquire(timeout=5)
            os._exit(0 if free and not exclusive._process.claims else 1)
        status = os.waitpid(child, 0)[1]
        batches.release.set()
    assert os.waitstatus_to_exitcode(status) == 0


# They run and change nothing that another thread can see.
FREE = {
    *("get_rule", "inputs_only", "augmentation", "low_rank_linear", "trainable", "verify"),
    *("measure", "predicts_next", "measure_of_plans", "measures_for", "shown", "sparse_bytes"),
    *("mean_interval", "perplexity_ratio", "windows", "method_set", "similarity", "regularised_perplexity"),
}


def test_every_public_function_takes_its_turn() -> None:
    homes = (rw, rw.evaluate, rw.export, rw.kernels, rw.training)
    functions = {name: getattr(home, name) for home in homes for name in home.__all__}
    functions = {name: value for name, value in functions.items() if inspect.isfunction(value)}
    taking = {name for name, value in functions.items() if _takes_turns(value)}
    assert functions.keys() - taking == FREE


def _takes_turns(function: Any) -> bool:
    while hasattr(function, "__wrapped__"):
        if function.__code__.co_name == "taking_turns":
            return True
        function = function.__wrapped__
    return False
