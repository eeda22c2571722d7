from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.walks import COUNT, flat, network, trained

from rankwise.subspace import Checkpoints, Recorder, averaging, dldr


@pytest.mark.parametrize("make", [dldr, averaging])
@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_directions_are_orthonormal(make: object, scale: float) -> None:
    model = network()
    space = make(model, trained(model, scale=scale), COUNT - 1, dtype=torch.float64)  # type: ignore[operator]
    P_DN = torch.cat(list(space.directions.values()), 1)
    assert (P_DN @ P_DN.mT - torch.eye(COUNT - 1)).abs().max() < 1e-10


def test_all_directions_span_every_centred_checkpoint() -> None:
    model = network()
    states = trained(model)
    space = dldr(model, states, COUNT - 1, start="mean", dtype=torch.float64)
    for state in states:
        difference = {name: state[name].double() - space.start[name].double() for name in space.start}
        back = space.project(difference) @ torch.cat(list(space.directions.values()), 1)
        assert torch.allclose(back, flat(difference, list(space.start)), atol=1e-6)


def test_directions_are_principal_components() -> None:
    """Against a singular value decomposition of the centred checkpoints."""
    model = network()
    states = trained(model)
    names = [name for name, _ in model.named_parameters()]
    X_TN = torch.stack([flat(state, names) for state in states])
    _, s, Vt = torch.linalg.svd(X_TN - X_TN.mean(0), full_matrices=False)
    space = dldr(model, states, 3, dtype=torch.float64)
    P_DN = torch.cat([space.directions[name] for name in names], 1)
    assert torch.allclose((P_DN @ Vt[:3].mT).abs(), torch.eye(3).double(), atol=1e-8)
    assert torch.allclose(space.energies.double(), s[:3].square() / s.square().sum(), atol=1e-6)


def test_more_directions_explain_no_less() -> None:
    model = network()
    states = trained(model)
    last = {name: states[-1][name] - states[0][name] for name, _ in model.named_parameters()}
    held = [float(dldr(model, states, dim).project(last).norm()) for dim in range(1, COUNT)]
    assert held == sorted(held)


def test_averaging_starts_at_the_mean_and_holds_every_average() -> None:
    model = network()
    states = trained(model, 4)
    space = averaging(model, states, dtype=torch.float64)
    names = list(space.start)
    mean = torch.stack([flat(state, names) for state in states]).mean(0)
    assert torch.allclose(flat(dict(space.start), names), mean, atol=1e-6)
    wanted = 0.7 * flat(states[0], names) + 0.3 * flat(states[3], names)
    v_D = torch.cat(list(space.directions.values()), 1) @ (wanted - mean)
    assert torch.allclose(flat(space.at(v_D), names), wanted, atol=1e-5)


def test_equal_checkpoints_add_no_direction() -> None:
    model = network()
    states = trained(model, 3)
    space = averaging(model, [*states, states[1], states[1]])
    assert space.dim == 3
    assert all(torch.isfinite(P).all() for P in space.directions.values())


def test_files_and_state_dicts_give_the_same(tmp_path: Path) -> None:
    model = network()
    states = trained(model, 4)
    recorder = Recorder(model, tmp_path / "run")
    for state in states:
        model.load_state_dict(state)
        recorder()
    one, other = dldr(model, tmp_path / "run", 3), dldr(model, states, 3)
    assert all(torch.equal(one.directions[name], other.directions[name]) for name in one.directions)
    assert len(Checkpoints(model, sorted((tmp_path / "run").iterdir()))) == 4


def test_recording_goes_on_after_what_is_there(tmp_path: Path) -> None:
    model = network()
    Recorder(model, tmp_path)()
    assert Recorder(model, tmp_path)().name == "00001.safetensors"
    with pytest.raises(ValueError, match="holds 2 checkpoints, the most"):
        Recorder(model, tmp_path, most=2)()


def test_starts() -> None:
    model = network()
    states = trained(model, 3)
    for start, number in (("first", 0), ("last", -1)):
        space = dldr(model, states, 2, start=start)
        assert all(torch.equal(space.start[name], states[number][name]) for name in space.start)
    with pytest.raises(ValueError, match="start is 'middle'"):
        dldr(model, states, 2, start="middle")


def test_too_few_and_equal_checkpoints(tmp_path: Path) -> None:
    model = network()
    states = trained(model, 5)
    with pytest.raises(ValueError, match="5 checkpoints span 4 directions: choose 1 to 4"):
        dldr(model, states, 40)
    with pytest.raises(ValueError, match="there are 1 checkpoints"):
        dldr(model, states[:1], 1)
    with pytest.raises(ValueError, match="are all the same"):
        dldr(model, states[:1] * 3, 1)
    with pytest.raises(ValueError, match="there is no folder"):
        dldr(model, tmp_path / "nothing", 1)


def test_checkpoints_of_another_network(tmp_path: Path) -> None:
    model = network()
    states = trained(model, 3)
    with pytest.raises(ValueError, match=r"checkpoint 2 has no '3.bias'"):
        dldr(model, [*states[:2], {name: t for name, t in states[2].items() if name != "3.bias"}], 1)
    with pytest.raises(ValueError, match=r"checkpoint 1 has '0.weight' as \[8, 5\], this network as \[8, 6\]"):
        dldr(model, [states[0], {**states[1], "0.weight": torch.zeros(8, 5)}], 1)
    with pytest.raises(ValueError, match=r"checkpoint 1 has numbers in '0.bias' that are not finite"):
        dldr(model, [states[0], {**states[1], "0.bias": torch.full((8,), torch.nan)}], 1)
    (tmp_path / "00000.safetensors").write_bytes(b"no")
    (tmp_path / "00001.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        dldr(model, tmp_path, 1)


def test_memory_is_announced_before_it_is_taken() -> None:
    model = network()
    with pytest.raises(ValueError, match=r"2 directions of 99 parameters take 0.0 GB, more than memory_gb = 1e-09"):
        dldr(model, trained(model, 4), 2, memory_gb=1e-9)
