"""Moments collected from a running network, against the inputs that its layers really saw."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.nets import Residual, batches_of, make, unchanged
from support.reads import Reads
from torch import Tensor, nn

from rankwise import Moments, Statistics, collect


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 3), nn.Linear(5, 3)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.left(a) + self.right(input=b)


class Twice(nn.Module):
    """One layer called twice in a forward."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.fc(x).relu())


def second_of(found: Moments) -> Tensor:
    if found.second_GDD is not None:
        return found.second_GDD
    assert found.rows_GND is not None
    rows = found.rows_GND.double()
    return rows.mT @ rows / rows.shape[1]


def assert_equal(found: Moments, expected: Moments, exact: bool = True) -> None:
    tolerance: dict[str, Any] = {"atol": 0, "rtol": 0} if exact else {"atol": 1e-5, "rtol": 1e-5}
    assert found.count == expected.count
    torch.testing.assert_close(found.mean_GD, expected.mean_GD, **tolerance)
    torch.testing.assert_close(second_of(found), second_of(expected), **tolerance)


def same(found: Statistics, expected: Statistics, exact: bool = True) -> None:
    assert list(found) == list(expected)
    for name in found:
        assert_equal(found[name], expected[name], exact)


def test_every_site_has_the_moments_of_what_it_saw() -> None:
    model, batches = make(Residual), batches_of(4, 3, 8, 8)
    stats = collect(model, batches, positions="all")
    x = F.unfold(F.relu(model.stem(torch.cat(batches))), 3, padding=1).transpose(1, 2).reshape(-1, 108).double()
    found = stats["block1.conv1"]
    assert found.count == len(x) == 16 * 64
    torch.testing.assert_close(found.mean_GD[0], x.mean(0), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(found.second_GDD[0], (x.mT @ x / len(x)).detach(), rtol=1e-5, atol=1e-6)
    assert list(stats) == [name for name, site in stats.sites.items() if not site.dense_because]
    assert stats.samples == 16


def test_a_forward_loop_equals_data() -> None:
    model, batches = make(Residual), batches_of(4, 3, 8, 8)

    def loop(m: nn.Module) -> None:
        for batch in batches:
            m(batch)

    looped = collect(model, forward_loop=loop, example_input=batches[0][:1], positions="all")
    same(looped, collect(model, batches, positions="all"))
    assert looped.sites.to_dict() == collect(model, batches).sites.to_dict()


def test_tokens_equal_the_same_vectors_without_sequence() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    tokens = batches_of(3, 7, 6)
    flat = [batch.reshape(-1, 6) for batch in tokens]
    same(collect(model, tokens, positions="all"), collect(model, flat, positions="all"), exact=False)


@pytest.mark.parametrize("form", [lambda a, b: (a, b), lambda a, b: [a, b], lambda a, b: {"b": b, "a": a}])
def test_tuples_lists_and_mappings(form: Callable[[Tensor, Tensor], Any]) -> None:
    a, b = batches_of(6, 4), batches_of(6, 5, seed=1)
    stats = collect(TwoInputs(), [form(x, y) for x, y in zip(a, b, strict=True)])
    torch.testing.assert_close(stats["left"].mean_GD[0], torch.cat(a).double().mean(0))
    torch.testing.assert_close(stats["right"].mean_GD[0], torch.cat(b).double().mean(0))
    assert stats["right"].count == 24


def test_a_site_that_is_called_twice_sums_both_calls() -> None:
    model, batches = Twice(), batches_of(5, 4)
    found = collect(model, batches)["fc"]
    x = torch.cat(batches)
    rows = torch.cat([x, model.fc(x).relu()]).detach().double()
    assert found.count == 40
    torch.testing.assert_close(found.mean_GD[0], rows.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(second_of(found)[0], rows.mT @ rows / 40, rtol=1e-5, atol=1e-6)


def test_autocast_does_not_reach_the_moments() -> None:
    model, batches = make(Residual), batches_of(4, 3, 8, 8)
    expected = collect(model, batches)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        same(collect(model, batches), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models(dtype: torch.dtype) -> None:
    batches = batches_of(4, 3, 8, 8)
    exact = collect(make(Residual), batches)
    half = collect(make(Residual).to(dtype), batches)
    for name, found in half.items():
        assert found.mean_GD.dtype == torch.float64
        close = float((found.mean_GD - exact[name].mean_GD).norm() / exact[name].mean_GD.norm())
        assert close < (0.005 if dtype == torch.float16 else 0.05)


def test_sites_that_stay_dense_have_no_moments() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Flatten(), nn.Linear(16, 3))
    stats = collect(model, batches_of(6, 4, 4, 4))
    assert stats.sites["0"].dense_because is not None
    assert list(stats) == ["2"]
    assert "0" not in stats
    assert "1 sites" in repr(stats)


def test_only_the_named_sites() -> None:
    stats = collect(make(Residual), batches_of(4, 3, 8, 8), only={"head", "block2.conv1"})
    assert list(stats) == ["block2.conv1", "head"]


def test_fewer_positions_are_fewer_rows_and_the_same_every_time() -> None:
    model, batches = make(Residual), batches_of(4, 3, 8, 8)
    first = collect(model, batches, positions=5)
    assert {name: found.count for name, found in first.items() if name != "head"} == {
        name: 5 * 16 for name in first if name != "head"
    }
    assert first["head"].count == 16
    same(collect(model, batches, positions=5), first)
    everything = collect(model, batches, positions="all")["stem"]
    assert not torch.equal(first["stem"].mean_GD, everything.mean_GD)
    spread = float((first["stem"].mean_GD - everything.mean_GD).abs().max())
    assert spread < 5 / (5 * 16) ** 0.5


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_found(training: bool) -> None:
    model = make(Residual).train(training)
    model.block1.eval()
    model.head.requires_grad_(False)
    torch.manual_seed(5)
    with unchanged(model):
        collect(model, batches_of(4, 3, 8, 8))


def test_the_model_is_left_as_found_when_it_fails() -> None:
    model = make(Residual).train()
    batches = batches_of(4, 3, 8, 8)
    with unchanged(model):
        with pytest.raises(ValueError, match=r"rejects batch 2 \(4, 5, 8, 8\)"):
            collect(model, [*batches[:2], torch.zeros(4, 5, 8, 8)])
        with pytest.raises(RuntimeError, match="my own"):
            collect(model, forward_loop=_fails, example_input=batches[0])


def _fails(model: nn.Module) -> None:
    model(torch.zeros(1, 3, 8, 8))
    raise RuntimeError("my own")


def test_either_data_or_a_forward_loop() -> None:
    model = nn.Linear(3, 2)
    with pytest.raises(ValueError, match=r"either data .* or forward_loop"):
        collect(model)
    with pytest.raises(ValueError, match=r"either data .* or forward_loop"):
        collect(model, [torch.zeros(1, 3)], forward_loop=lambda m: None)
    with pytest.raises(ValueError, match="needs example="):
        collect(model, forward_loop=lambda m: None)


def test_no_data() -> None:
    with pytest.raises(ValueError, match="no batch"):
        collect(nn.Sequential(nn.Linear(3, 2)), [])


def test_a_loop_that_never_runs_the_model() -> None:
    with pytest.raises(ValueError, match="never reached site '0'"):
        collect(nn.Sequential(nn.Linear(3, 2)), forward_loop=lambda m: None, example_input=torch.zeros(1, 3))


class Divides(nn.Module):
    """Fine for every input but a zero."""

    def forward(self, x: Tensor) -> Tensor:
        return 1 / x


def test_activations_that_are_not_finite_name_site_and_batch() -> None:
    model = nn.Sequential(Divides(), nn.Linear(3, 2))
    batches = batches_of(2, 3)
    batches[2][1, 1] = 0
    with unchanged(model), pytest.raises(ValueError, match=r"site '1', batch 2: the input holds NaN or infinity"):
        collect(model, batches)


def test_data_that_is_not_finite_names_the_batch() -> None:
    batches = batches_of(2, 3)
    batches[1][0, 0] = float("nan")
    with pytest.raises(ValueError, match="calibration batch 1"):
        collect(nn.Sequential(nn.Linear(3, 2)), batches)


def test_progress_wraps_the_batches() -> None:
    seen: list[str] = []

    def progress(batches: Any, description: str) -> Any:
        for batch in batches:
            seen.append(description)
            yield batch

    model, batches = nn.Sequential(nn.Linear(3, 2)), batches_of(2, 3)
    same(collect(model, batches, progress=progress), collect(model, batches))
    assert seen == ["statistics"] * 4


def test_an_activation_that_is_overwritten_in_place() -> None:
    """The layer's input is changed right after the call; the moments are those of before."""

    class Overwrites(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            h = x * 1
            y = self.fc(h)
            h.zero_()
            return y

    batches = batches_of(1, 4, count=3)  # fewer rows than inputs: the rows themselves are kept
    found = collect(Overwrites(), batches)["fc"]
    torch.testing.assert_close(found.rows_GND[0], torch.cat(batches))


MEASURED = """
import sys, torch, rankwise as rw
from rankwise.statistics.collection import memory_needed

D, T, N = map(int, sys.argv[1:])
torch.set_num_threads(1)
model = torch.nn.Sequential(torch.nn.Linear(D, T))

class Loader:
    def __iter__(self):
        return (torch.randn(256, D, generator=torch.Generator().manual_seed(i)) for i in range(N // 256))

def peak():
    (line,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]  # of this program alone
    return int(line.split()[1]) * 1024

torch.linalg.eigh(torch.randn(64, 64)), model(torch.randn(256, D))
begin = peak()
stats = rw.collect(model, Loader())
collected = peak() - begin
plan = rw.choose(model, stats, keep={"params": 0.3})
rw.factorise(model, plan, stats)
print(collected, peak() - begin, *memory_needed(list(stats.sites.values()), N, "auto"))
"""


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="reads the process's memory as Linux reports it")
@pytest.mark.parametrize(
    "sizes",
    [
        "5000 256 5120",
        # Eigenvectors of 12,000 inputs take half a minute; they are most of what is held.
        pytest.param("12000 256 12288", marks=pytest.mark.slow),
        pytest.param("12000 1536 5120", marks=pytest.mark.slow),
    ],
)
def test_the_announced_memory_is_what_is_used(sizes: str) -> None:
    """In a process of its own, which gives freed memory back at once, with 100 MB for code and buffers of first use."""
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", MEASURED, *sizes.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    collected, fitted, held, fitting = map(int, done.stdout.split())
    assert collected < held + 100e6
    assert fitted < held + fitting + 100e6
    assert held + fitting < 2 * fitted


def test_the_host_reads_at_most_once_per_site_and_batch() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * 36, 10), nn.ReLU(), nn.Linear(10, 4))
    batches = [torch.randn(6, 3, 6, 6, generator=torch.Generator().manual_seed(seed)) for seed in range(8)]
    counts = []
    for few in (2, 8):
        with Reads() as reads:
            collect(net.eval(), batches[:few])
        counts.append(reads.count)
    assert counts[1] - counts[0] <= 6 * (3 + 2)  # more batches; of each three sites, the batch and the output
