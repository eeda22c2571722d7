from __future__ import annotations

import copy
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import rankwise as rw
from rankwise.inputs.torchvision_shim import import_torchvision
from rankwise.network.find import find
from rankwise.running.batches import Batches, inputs_only
from rankwise.running.calling import call, first_samples, samples_in, to_device
from rankwise.running.pristine import pristine
from rankwise.training import Samples

# ---- data


@pytest.mark.parametrize(
    "data, batches, samples",
    [
        (torch.zeros(4, 3), 1, 4),
        ([torch.zeros(4, 3), torch.zeros(2, 3)], 2, 6),
        ((torch.zeros(4, 3), torch.zeros(2, 3)), 2, 6),
        ({"x": torch.zeros(4, 3)}, 1, 4),
        ([{"flag": True, "x": torch.zeros(4, 3)}], 1, 4),
        ([(torch.zeros(4, 3), torch.zeros(4))], 1, 4),
        (DataLoader(torch.zeros(7, 3), batch_size=3), 3, 7),  # type: ignore[arg-type]
        (DataLoader(torch.zeros(7, 3), batch_size=3, drop_last=True), 2, 6),  # type: ignore[arg-type]
    ],
)
def test_any_re_iterable_is_taken(data: Any, batches: int, samples: int) -> None:
    taken = Batches.of(data)
    assert (len(taken), taken.samples) == (batches, samples)
    assert len(list(taken)) == len(list(taken)) == batches
    assert Batches.of(taken) is taken


def test_a_generator_is_kept_in_memory_and_said_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "rankwise"):
        taken = Batches.of(torch.full((2, 3), float(i)) for i in range(4))
    assert "kept 4 calibration batches (96 bytes)" in caplog.text
    assert [batch[0, 0].item() for batch in taken] == [0, 1, 2, 3]
    assert (len(taken), taken.samples) == (4, 8)


def test_a_generator_over_the_cap_is_refused() -> None:
    with pytest.raises(ValueError, match=r"one-shot iterator of more than 50 bytes.*pass a list or a DataLoader"):
        Batches.of((torch.zeros(2, 3) for _ in range(4)), cache_limit=50)


@pytest.mark.parametrize("data", [None, [], (), iter([])])
def test_no_batch_is_refused(data: Any) -> None:
    with pytest.raises(ValueError, match="the calibration data holds no batch"):
        Batches.of(data)


def test_data_that_runs_out_is_noticed() -> None:
    class Once:
        def __init__(self) -> None:
            self.left = iter([torch.zeros(1, 2)])

        def __iter__(self) -> Iterator[torch.Tensor]:
            return self.left

    taken = Batches.of(Once())
    assert [batch.shape for batch in taken] == [(1, 2)]
    with pytest.raises(ValueError, match="Once given as calibration data yields batches only once"):
        taken.first()


def test_data_without_a_length_is_counted_by_walking() -> None:
    class Stream(IterableDataset[torch.Tensor]):
        def __iter__(self) -> Iterator[torch.Tensor]:
            return iter(torch.zeros(5, 2))

    taken = Batches.of(DataLoader(Stream(), batch_size=2))
    assert (len(taken), taken.samples) == (3, 5)


@pytest.mark.parametrize(
    "data, message",
    [
        (3, "must be an iterable of batches, got int"),
        ("batches", "got str"),
        (lambda: None, "call the function"),
        (TensorDataset(torch.zeros(4, 3)), "single samples.*DataLoader"),
    ],
)
def test_what_is_no_data_is_refused(data: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Batches.of(data)


def test_a_batch_without_a_tensor_is_refused() -> None:
    with pytest.raises(ValueError, match="a batch must hold a tensor, got int"):
        Batches.of([1, 2]).samples  # noqa: B018


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_name_the_batch(bad: float) -> None:
    data = [{"x": torch.zeros(2, 3)}, {"x": torch.full((2, 3), bad)}]
    with pytest.raises(ValueError, match=r"batch 1 \{x: \(2, 3\)\} holds values that are not finite"):
        list(Batches.of(data))


class Raising:
    """A loader that fails at one batch."""

    def __init__(self, at: int) -> None:
        self.at = at

    def __iter__(self) -> Iterator[torch.Tensor]:
        for number in range(3):
            if number == self.at:
                raise KeyError("sample")
            yield torch.ones(4, 3)


@pytest.mark.parametrize("at", [0, 2])
@pytest.mark.parametrize(
    "run",
    [
        lambda net, data: rw.collect(net, data),
        lambda net, data: rw.compress(net, data, keep={"params": 0.9}),
        lambda net, data: rw.factorise(net, rw.Plan(rows=()), data=data),
        lambda net, data: rw.heal(net, net, data, train="all"),
        lambda net, data: rw.training.train(net, data, torch.zeros(12, dtype=torch.long)),
        lambda net, data: rw.evaluate.agreement(net, net, data),
        lambda net, data: rw.evaluate.relative_error(net, net, data),
        lambda net, data: rw.evaluate.accuracy(net, data),
        lambda net, data: rw.evaluate.cosine(net, net, data),
        lambda net, data: rw.collect(net, iter(data)),
    ],
)
def test_a_loader_that_raises_names_the_batch(run: Callable[[nn.Module, Any], Any], at: int) -> None:
    net, data = nn.Linear(3, 3), Raising(at)
    pairs: Any = data
    if "accuracy" in run.__code__.co_names:
        pairs = ((batch, torch.zeros(4, dtype=torch.long)) for batch in data)
    with pytest.raises(ValueError, match=rf"batch {at} could not be made: .*KeyError: 'sample'; repair") as caught:
        run(net, pairs)
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_data_set_that_raises_names_the_sample() -> None:
    class Broken(Dataset[torch.Tensor]):
        def __len__(self) -> int:
            return 12

        def __getitem__(self, number: int) -> torch.Tensor:
            if number == 7:
                raise OSError("no such file")
            return torch.ones(3)

    with pytest.raises(ValueError, match="sample 7 of Broken could not be read: OSError: no such file"):
        rw.heal(nn.Linear(3, 3), nn.Linear(3, 3), Broken(), train="all", epochs=1)


class Changing:
    """A loader of other sizes in later passes; the last ones stay."""

    def __init__(self, *passes: list[int]) -> None:
        self.passes = list(passes)

    def __iter__(self) -> Iterator[torch.Tensor]:
        sizes = self.passes.pop(0) if len(self.passes) > 1 else self.passes[0]
        return (torch.randn(size, 3) for size in sizes)


@pytest.mark.parametrize(
    "later, message",
    [
        ([4, 4], r"batch 2 is missing: .*the pass before \(3 batches, 12 samples\).*list\(data\)"),
        ([4, 4, 4, 4], "batch 3 is one more than the pass before"),
        ([4, 2, 4], "batch 1 holds 2 samples, but 4 in the pass before"),
    ],
)
def test_a_loader_that_changes_between_passes_is_found(later: list[int], message: str) -> None:
    taken = Batches.of(Changing([4, 4, 4], later))
    assert taken.samples == 12
    with pytest.raises(ValueError, match=message):
        list(taken)
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 8))
    plan = rw.choose(net, rw.collect(net, torch.randn(32, 3)), keep={"params": 0.9})
    for engine in ("graph", "hooks"):
        # passes before the sites are visited: the first batch, and one that counts the samples
        with pytest.raises(ValueError, match=message):
            rw.factorise(net, plan, data=Changing([4], [4, 4, 4], later), engine=engine)


def test_passes_in_another_order_are_fine() -> None:
    taken = Batches.of(Changing([4, 4, 2], [2, 4, 4], [4, 2, 4]))
    assert [sum(map(len, taken)) for _ in range(3)] == [10, 10, 10]


class Reusing:
    """A loader that fills the same tensor again and again."""

    def __init__(self) -> None:
        self.batches = [torch.full((4, 3), float(number)) for number in range(1, 4)]

    def __iter__(self) -> Iterator[torch.Tensor]:
        buffer = torch.empty(4, 3)
        for batch in self.batches:
            yield buffer.copy_(batch)


def test_a_loader_may_fill_the_same_tensor_again() -> None:
    loader, net = Reusing(), nn.Sequential(nn.Linear(3, 3))
    expected = rw.collect(net, loader.batches)["0"].mean_GD
    for data in (loader, iter(loader)):
        assert torch.equal(rw.collect(net, data)["0"].mean_GD, expected)
    assert torch.equal(Samples.of(loader).batch(torch.arange(12))[0], torch.cat(loader.batches))


def test_a_generator_for_trials_loses_no_batch() -> None:
    net, batches = nn.Linear(3, 3), [torch.randn(4, 3) for _ in range(3)]
    generator = (batch for batch in batches)
    trials = rw.evaluate.Trials(net, lambda plan: net, generator, lambda model, data: len(list(data)))
    assert trials.reference == trials.reference == 3


@pytest.mark.parametrize("bad", [None, "text", 3, {}, ()])
def test_what_is_no_batch_is_named_by_its_number(bad: Any) -> None:
    with pytest.raises(ValueError, match=r"calibration batch 1: a batch must hold a tensor, got"):
        rw.collect(nn.Linear(3, 3), [torch.ones(4, 3), bad])


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_constant_inputs_work(value: float) -> None:
    net = nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12))
    small, _ = rw.compress(net, [torch.full((8, 12), value)] * 2, keep={"params": 0.7})
    assert small(torch.full((1, 12), value)).isfinite().all()


def test_inputs_that_are_not_finite_are_blamed_for_scores() -> None:
    data = [torch.ones(4, 3), torch.full((4, 3), float("nan"))]
    with pytest.raises(ValueError, match=r"batch 1: .*The inputs \(4, 3\) hold NaN or infinity themselves"):
        rw.evaluate.agreement(nn.Linear(3, 3), nn.Linear(3, 3), data)


def test_labels_are_stripped_again_and_again() -> None:
    loader = DataLoader(TensorDataset(torch.randn(5, 3), torch.arange(5)), batch_size=2)
    taken = Batches.of(inputs_only(loader))
    assert (len(taken), taken.samples, taken.first().shape) == (3, 5, (2, 3))
    assert Batches.of(inputs_only(b for b in loader)).samples == 5  # still seen to be one-shot, and kept
    with pytest.raises(ValueError, match="batch 0 is a Tensor, not \\(inputs, labels\\)"):
        list(inputs_only([torch.zeros(1)]))


# ---- one batch


class Add(nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a + b


class Pair(NamedTuple):
    a: torch.Tensor
    b: torch.Tensor


def test_a_batch_is_what_the_model_is_called_with() -> None:
    one = torch.ones(2)
    for batch in ((one, one), [one, one], {"a": one, "b": one}, Pair(one, one)):
        assert call(Add(), batch).tolist() == [2, 2]
    assert torch.equal(call(nn.Identity(), one), one)


def test_packed_sequences_are_one_input() -> None:
    packed = pack_sequence([torch.randn(3, 2), torch.randn(1, 2)])
    output, _ = call(nn.GRU(2, 4), packed)
    assert output.data.shape == (4, 4)
    assert find(nn.Sequential(nn.GRU(2, 4)), packed).total_macs == 4 * 12 * 6


def test_a_rejected_batch_names_everything() -> None:
    with pytest.raises(
        ValueError, match=r"Linear rejects batch 7 \[\(2, 4\), \(2\,\)\]: TypeError.*inputs_only"
    ) as info:
        call(nn.Linear(4, 4), (torch.zeros(2, 4), torch.zeros(2)), index=7)
    assert isinstance(info.value.__cause__, TypeError)


def test_half_precision_models_get_inputs_of_their_dtype() -> None:
    model = nn.Sequential(nn.Linear(4, 4)).bfloat16()
    assert call(model, torch.zeros(1, 4)).dtype is torch.bfloat16
    with pytest.raises(ValueError, match="Double"):  # full-precision models: dtypes are the caller's
        call(nn.Linear(4, 4), torch.zeros(1, 4, dtype=torch.float64))


def test_first_sample_and_to_device() -> None:
    batch = {
        "x": torch.zeros(8, 3),
        "nested": [torch.zeros(8), torch.tensor(1.0)],
        "table": torch.zeros(5),
        "flag": True,
    }
    one = first_samples(batch)
    assert (one["x"].shape, one["nested"][0].shape, one["nested"][1].shape) == ((1, 3), (1,), ())
    assert (one["table"].shape, one["flag"]) == ((5,), True)
    assert isinstance(first_samples(Pair(torch.zeros(2), torch.zeros(2))), Pair)
    assert to_device(batch, "meta")["nested"][0].is_meta


# ---- pristine


def settings() -> list[Any]:
    backends = torch.backends
    return [
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_float32_matmul_precision(),
        backends.cuda.matmul.allow_tf32,
        backends.cudnn.allow_tf32,
        backends.mha.get_fastpath_enabled(),
    ]


class Noisy(nn.Module):
    """Everything that a forward may leave behind: buffers, dropout, a buffer replaced, a counter."""

    seen: torch.Tensor
    last: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout()
        self.fc = nn.Linear(4, 4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.register_buffer("seen", torch.zeros(1))
        self.register_buffer("last", torch.zeros(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += 1
        self.last = x.mean(0)
        return self.frozen(self.fc(self.drop(self.norm(x))) + torch.rand(4))


@pytest.mark.parametrize("run", ["find", "pristine", "raise"])
def test_a_model_is_handed_back_as_it_was(run: str) -> None:
    model = Noisy().train()
    model.norm.eval()
    calls: list[int] = []
    model.fc.register_forward_hook(lambda *_: calls.append(1))
    state = copy.deepcopy(model.state_dict())
    training = {name: module.training for name, module in model.named_modules()}
    hooks = {name: list(module._forward_hooks) for name, module in model.named_modules()}
    wants = {name: p.requires_grad for name, p in model.named_parameters()}
    torch.manual_seed(3)
    rng, before = torch.get_rng_state(), settings()

    if run == "find":
        find(model, torch.randn(8, 4))
        rng_now = torch.get_rng_state()
        torch.manual_seed(3)
        torch.randn(8, 4)  # made outside
        assert torch.equal(rng_now, torch.get_rng_state())
    else:
        try:
            with pristine(model) as same:
                assert same is model
                assert not any(module.training for module in model.modules())
                assert not torch.is_grad_enabled()
                model.fc.register_forward_hook(lambda *_: calls.append(2))
                model(torch.randn(8, 4)).sum()
                model.requires_grad_(True)
                if run == "raise":
                    raise KeyError
        except KeyError:
            pass
        assert torch.equal(rng, torch.get_rng_state())
        assert calls == [1, 2]

    assert settings() == before
    assert {name: module.training for name, module in model.named_modules()} == training
    assert {name: list(module._forward_hooks) for name, module in model.named_modules()} == hooks
    assert {name: p.requires_grad for name, p in model.named_parameters()} == wants
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def test_pristine_switches_shortcuts_off_and_on_again() -> None:
    model = nn.Linear(4, 4)
    matmul, tf32 = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
            before = settings()
            with pristine(model):
                assert settings() == [False, False, False, "highest", False, False, False]
                assert model(torch.zeros(1, 4)).dtype is torch.float32
                assert not nn.Linear(2, 2).weight.is_inference()
            assert settings() == before
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = tf32


def test_handles_made_before_still_remove_their_hooks() -> None:
    model = nn.Linear(4, 4)
    handle = model.register_forward_hook(lambda *_: None)
    with pristine(model):
        model(torch.zeros(1, 4))
    handle.remove()
    assert not model._forward_hooks


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_cuda_device() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.rnn = nn.Conv2d(3, 8, 3, groups=1), nn.LSTM(8, 5, bidirectional=True)
            self.layer = nn.TransformerEncoderLayer(10, 2, 20, batch_first=True)
            self.bare = nn.Parameter(torch.randn(4, 10))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.rnn(self.conv(x).flatten(2).permute(2, 0, 1))[0]
            return self.layer(torch.nn.functional.dropout(x)) @ self.bare.t()

    batch = torch.randn(2, 3, 6, 6)  # on the CPU: call moves it
    model = Net()
    on_cpu = find(model, batch)
    torch.manual_seed(3)
    states, before = (torch.get_rng_state(), torch.cuda.get_rng_state()), settings()
    on_cuda = find(model.cuda(), batch)
    assert on_cuda.total_macs == on_cpu.total_macs
    assert dict(on_cuda) == dict(on_cpu)
    assert on_cuda.other_macs == on_cpu.other_macs
    assert torch.equal(states[0], torch.get_rng_state())
    assert torch.equal(states[1], torch.cuda.get_rng_state())
    assert settings() == before
    half = find(model.half(), batch)
    assert (half.total_macs, half["conv"].dtype) == (on_cpu.total_macs, "float16")


# ---- torchvision


def test_torchvision_imports_beside_any_build_of_pytorch() -> None:
    try:
        torchvision = import_torchvision()
    except ImportError:
        pytest.skip("torchvision is not installed")
    assert import_torchvision() is torchvision
    assert hasattr(torchvision.models, "resnet18")
    assert hasattr(torchvision.transforms, "Compose")


def test_a_missing_torchvision_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match=r"rankwise\[vision\]"):
        import_torchvision()


@pytest.mark.parametrize(
    "wrap", [lambda pictures, targets: (pictures, targets), lambda p, t: {"images": p, "targets": t}]
)
def test_lists_of_pictures_are_samples(wrap: Callable[..., Any]) -> None:
    pictures = [torch.zeros(3, 8, 8), torch.ones(3, 6, 9), torch.ones(3, 5, 5)]
    batch = wrap(pictures, [{"boxes": torch.zeros(1, 4)}] * 3)
    assert Batches.of([batch, batch]).samples == 6
    first = first_samples(batch, 2)
    images, targets = first.values() if isinstance(first, dict) else first
    assert [image.shape for image in images] == [(3, 8, 8), (3, 6, 9)]
    assert len(targets) == 2
    maps = ([torch.zeros(4, 8, 5, 5), torch.zeros(4, 16, 3, 3)],)  # feature maps of four samples
    assert samples_in(maps) == 4
