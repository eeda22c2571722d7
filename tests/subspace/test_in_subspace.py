from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.walks import flat, network
from torch import Tensor, nn

from rankwise.subspace import InSubspace
from rankwise.training import Loop, LoopOptions, Samples

pytestmark = pytest.mark.usefixtures("one_thread")


def looped(model: nn.Module, technique: InSubspace, **options: Any) -> Loop:
    x = torch.randn(96, 6, generator=torch.Generator().manual_seed(0))
    y = x[:, :3].argmax(1)

    def loss(inputs: Tensor, labels: Tensor | None) -> Tensor:
        assert labels is not None
        return nn.functional.cross_entropy(model(inputs), labels)

    wanted = LoopOptions(epochs=10, batch=16, rate=0.05, optimiser="sgd", warmup=0.0, every=5)
    return Loop(model, loss, Samples.of(x, labels=y), wanted, techniques=[technique], **options)


@pytest.mark.parametrize("kind", ["dldr", "averaging"])
def test_the_second_part_stays_in_the_directions_of_the_first(kind: str) -> None:
    torch.manual_seed(0)
    model, technique = network(), InSubspace(dim=4, count=8, kind=kind)
    states: list[dict[str, Tensor]] = []

    def progress(look: Any) -> None:
        if technique.space is not None:
            states.append({name: parameter.detach().clone() for name, parameter in model.named_parameters()})

    loop = looped(model, technique, progress=progress)
    loop.run()
    assert technique.space is not None
    assert not technique.records
    names = list(technique.space.start)
    moved = flat(states[-1], names) - flat(dict(technique.space.start), names)
    P_DN = torch.cat([technique.space.directions[name] for name in names], 1).double()
    assert moved.norm() > 1e-4
    assert (moved - (moved @ P_DN.mT) @ P_DN).norm() < 1e-4 * moved.norm()
    assert loop.guard.loss < loop.guard.start


@pytest.mark.parametrize("stopped_at", [10, 40])
def test_resumed_in_either_part_is_as_never_stopped(tmp_path: Path, stopped_at: int) -> None:
    def run(file: str, stop: int | None, resume: bool) -> nn.Module:
        torch.manual_seed(0)
        model = network()

        def progress(look: Any) -> None:
            if look.step == stop:
                raise KeyboardInterrupt

        loop = looped(model, InSubspace(dim=4, count=8), checkpoint=tmp_path / file, resume=resume, progress=progress)
        if stop is None:
            loop.run()
        else:
            with pytest.raises(KeyboardInterrupt):
                loop.run()
        return model

    whole = run("one", None, False)
    run("two", stopped_at, False)
    again = run("two", None, True)
    for one, two in zip(whole.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-7)


def test_mistakes() -> None:
    for wrong, message in (
        ({"dim": 81}, "dim 81, count 81"),
        ({"after": 1.0}, "after is 1.0"),
        ({"kind": "pca"}, "kind is 'pca'"),
    ):
        with pytest.raises(ValueError, match=message):
            InSubspace(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="81 records of Sequential take"):
        InSubspace(memory_gb=1e-9).begin(network())
