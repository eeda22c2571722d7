"""Weights files: what is understood, and what is said about the rest."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from rankwise.inputs.checkpoints import load_weights


def network(width: int = 6) -> nn.Module:
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Linear(width, 3))


@pytest.fixture
def trained() -> nn.Module:
    torch.manual_seed(7)
    return network()


def assert_loaded(path: Path, trained: nn.Module) -> None:
    fresh = network()
    load_weights(fresh, path)
    for name, tensor in trained.state_dict().items():
        torch.testing.assert_close(fresh.state_dict()[name], tensor)


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_wrappers_and_prefixes_are_taken_off(
    tmp_path: Path, trained: nn.Module, wrapper: str | None, prefix: str
) -> None:
    state = {prefix + name: tensor for name, tensor in trained.state_dict().items()}
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "net.pt")
    assert_loaded(tmp_path / "net.pt", trained)


def test_safetensors(tmp_path: Path, trained: nn.Module) -> None:
    save_file(trained.state_dict(), tmp_path / "net.safetensors")
    assert_loaded(tmp_path / "net.safetensors", trained)


def test_batch_norm_counters_may_be_absent(tmp_path: Path, trained: nn.Module) -> None:
    state = {name: tensor for name, tensor in trained.state_dict().items() if "num_batches" not in name}
    torch.save(state, tmp_path / "old.pt")
    assert_loaded(tmp_path / "old.pt", trained)


def test_a_tied_weight_needs_one_of_its_names(tmp_path: Path) -> None:
    def tied() -> nn.Module:
        model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
        model[1].weight = model[0].weight
        return model

    save_file({"0.weight": torch.ones(4, 4)}, tmp_path / "tied.safetensors")
    model = tied()
    load_weights(model, tmp_path / "tied.safetensors")
    assert (model[1].weight == 1).all()


def test_what_differs_is_listed_and_nothing_is_loaded(tmp_path: Path, trained: nn.Module) -> None:
    state = trained.state_dict()
    state["head.weight"] = state.pop("2.weight")
    torch.save(state, tmp_path / "net.pt")
    model = network(width=8)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError) as caught:
        load_weights(model, tmp_path / "net.pt", "nets.py:build")
    message = str(caught.value)
    assert "does not fit nets.py:build" in message
    assert "1 missing in the file: 2.weight" in message
    assert "1 not in the model: head.weight" in message
    assert "0.weight: (6, 4) in the file, (8, 4) in the model" in message
    assert "and 2 more" in message
    assert "same widths and number of classes" in message
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_weights_of_another_network(tmp_path: Path) -> None:
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="weights of another network"):
        load_weights(network(), tmp_path / "other.pt")


def test_a_pickled_model_is_not_opened(tmp_path: Path, trained: nn.Module) -> None:
    torch.save(trained, tmp_path / "whole.pt")
    with pytest.raises(ValueError, match=r"was not opened.*state_dict\(\)"):
        load_weights(network(), tmp_path / "whole.pt")


@pytest.mark.parametrize("name", ["net.pt", "net.safetensors"])
def test_a_file_that_is_cut_short(tmp_path: Path, trained: nn.Module, name: str) -> None:
    path = tmp_path / name
    torch.save(trained.state_dict(), path) if name.endswith("pt") else save_file(trained.state_dict(), path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="cut short"):
        load_weights(network(), path)


@pytest.mark.parametrize(
    "content, fault",
    [
        (b"", "it is empty"),
        (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "it begins with '<!DOCTYPE html>"),
        (b"hello world\n", "it begins with 'hello world"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 3\n",
            "it begins with 'version https://git-lfs",
        ),
        *((random.Random(seed).randbytes(2000), "it begins with ") for seed in range(30)),
    ],
)
def test_what_is_no_checkpoint_is_to_be_downloaded_again(tmp_path: Path, content: bytes, fault: str) -> None:
    path = tmp_path / "net.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        load_weights(network(), path)
    assert f"{path} is not a checkpoint: {fault}" in str(caught.value)
    assert str(caught.value).endswith("; download it again")
    assert "weights_only=False" not in str(caught.value)


def test_a_checkpoint_without_tensors(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "lr": 0.1}, tmp_path / "log.pt")
    with pytest.raises(ValueError, match="epoch, lr are something else"):
        load_weights(network(), tmp_path / "log.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds a list"):
        load_weights(network(), tmp_path / "list.pt")
