"""What is saved is what is loaded."""

from __future__ import annotations

import copy
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.artifact_nets import CHAINS, Net, Ranks, Tied, assert_same, compressed, images
from torch import nn

from rankwise.artifact import load, read, save
from rankwise.formats import LowRank
from rankwise.formats.weights import read as read_weight
from rankwise.plan import Plan, PlanRow


@pytest.mark.parametrize(
    "chains",
    [
        {},
        {"conv": ("svd", (4,))},
        {"conv": ("spatial_svd", (4,))},
        {"conv": ("tucker2", (4, 3))},
        {"grouped": ("svd", (3,))},
        {"grouped": ("spatial_svd", (3,))},
        {"grouped": ("tucker2", (3, 2))},
        {"head.0": ("svd", (5,))},
        {"head.2": ("svd", (2,))},
        CHAINS,
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_round_trip(chains: dict[str, tuple[str, Ranks]], bias: bool, tmp_path: Path) -> None:
    small = compressed(Net().eval(), chains, bias)
    save(small, tmp_path / "out")
    loaded = load(Net().eval(), tmp_path / "out")
    assert_same(loaded, small, images())
    chain = {name: module for name, module in loaded.named_modules() if isinstance(module, LowRank)}
    assert {name: (each.format.name, each.ranks) for name, each in chain.items()} == chains


OTHERS: dict[str, tuple[Any, Any, str, tuple[int, ...]]] = {
    "conv1d": (lambda: nn.Conv1d(6, 8, 5, 2, 3, 2, groups=2), lambda: torch.randn(2, 6, 17), "tt", (2, 2)),
    "conv_transpose2d": (
        lambda: nn.ConvTranspose2d(6, 8, (4, 3), 2, 1, (0, 1), groups=2),
        lambda: torch.randn(2, 6, 5, 4),
        *("tucker2", (3, 2)),
    ),
    "embedding": (lambda: nn.Embedding(12, 8, padding_idx=2), lambda: torch.arange(12)[None], "svd", (3,)),
    "conv3d": (lambda: nn.Conv3d(6, 8, (3, 2, 1), padding="same"), lambda: torch.randn(2, 6, 5, 4, 3), "cp", (4,)),
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("bias", [True, False])
def test_layers_of_other_kinds(kind: str, bias: bool, tmp_path: Path) -> None:
    build, x, format, ranks = OTHERS[kind]
    small = compressed(nn.Sequential(build()), {"0": (format, ranks)}, bias)
    save(small, tmp_path / "out")
    (chain,) = read(tmp_path / "out").structure
    assert (chain.kind, chain.weight_shape) == (kind, tuple(read_weight(build()).shape))
    assert_same(load(nn.Sequential(build()), tmp_path / "out"), small, x())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_dtype_of_the_artifact_wins(small: nn.Module, dtype: torch.dtype, tmp_path: Path) -> None:
    small.to(dtype)
    save(small, tmp_path / "out")
    loaded = load(Net().eval(), tmp_path / "out")
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    assert loaded.scale.dtype == dtype  # no part of the state dict
    assert_same(loaded, small, images(dtype))


def test_a_mixed_precision_model_stays_mixed(small: nn.Module, tmp_path: Path) -> None:
    small.head.half()
    save(small, tmp_path / "out")
    loaded = load(Net(), tmp_path / "out")
    assert {name: t.dtype for name, t in loaded.state_dict().items()} == {
        name: t.dtype for name, t in small.state_dict().items()
    }


def test_memory_format_is_restored(small: nn.Module, tmp_path: Path) -> None:
    small.to(memory_format=torch.channels_last)
    save(small, tmp_path / "out")
    loaded = load(Net().eval(), tmp_path / "out")
    assert {n: t.stride() for n, t in loaded.state_dict().items()} == {
        n: t.stride() for n, t in small.state_dict().items()
    }
    assert_same(loaded, small, images().to(memory_format=torch.channels_last))
    save(compressed(Net().eval(), CHAINS), tmp_path / "plain")
    plain = load(Net().to(memory_format=torch.channels_last), tmp_path / "plain")
    assert plain.conv[1].weight.is_contiguous()


def test_tied_tensors_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    small = compressed(Tied(), {"block.0": ("svd", (3,))})
    save(small, tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert sorted(stored) == ["block.0.0.weight", "block.0.1.bias", "block.0.1.weight", "embedding.weight"]
    assert read(tmp_path / "out").structure[0].names == ("block.0", "again.0")
    loaded = load(Tied(), tmp_path / "out")
    assert loaded.head.weight is loaded.embedding.weight
    assert loaded.again[0] is loaded.block[0]
    assert_same(loaded, small, torch.arange(11))


def test_tensors_that_share_memory_without_being_one_object(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = nn.Parameter(model[0].weight.data)
    model[0].bias = nn.Parameter(model[0].weight.data[0])  # a view into a tensor that is stored as well
    save(model, tmp_path / "out")
    assert sorted(load_file(tmp_path / "out" / "model.safetensors")) == ["0.bias", "0.weight", "1.bias"]
    assert_same(load(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), tmp_path / "out"), model, torch.randn(2, 4))


def test_non_contiguous_tensors(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 6))
    model[0].weight = nn.Parameter(torch.randn(4, 6).T)
    save(model, tmp_path / "out")
    assert torch.equal(load(nn.Sequential(nn.Linear(4, 6)), tmp_path / "out")[0].weight, model[0].weight)


def test_a_parametrised_layer_is_replaced_whole(tmp_path: Path) -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6)), nn.ReLU(), nn.Linear(6, 2))

    small = compressed(build(), {"0": ("svd", (2,))})
    save(small, tmp_path / "out")
    fresh = build()
    before = copy.deepcopy(fresh.state_dict())
    assert_same(load(fresh, tmp_path / "out"), small, torch.randn(3, 6))
    # reading a spectrally normalised weight in training mode runs a power iteration: nobody may have read it
    assert all(torch.equal(value, before[name]) for name, value in fresh.state_dict().items())


def test_flags_and_randomness_are_the_callers(artifact: Path) -> None:
    fresh = Net().train()
    fresh.norm.eval()
    fresh.conv.requires_grad_(False)
    state = torch.get_rng_state()
    loaded = load(fresh, artifact)
    assert torch.equal(torch.get_rng_state(), state)
    assert loaded.conv[0].training
    assert loaded.grouped[0].training
    assert not loaded.norm.training
    assert not any(p.requires_grad for p in loaded.conv.parameters())
    assert all(p.requires_grad for p in loaded.head.parameters())
    assert isinstance(fresh.conv, nn.Conv2d)


def test_wrappers_are_looked_through(small: nn.Module, tmp_path: Path) -> None:
    save(nn.DataParallel(small), tmp_path / "out")
    assert_same(load(nn.DataParallel(Net().eval()), tmp_path / "out"), small, images())


def test_a_loaded_model_can_be_trained_and_saved_again(artifact: Path, tmp_path: Path) -> None:
    loaded = load(Net(), artifact)
    loaded(images()).square().mean().backward()
    torch.optim.SGD(loaded.parameters(), 0.1).step()
    save(loaded, tmp_path / "again")
    assert_same(load(Net(), tmp_path / "again").eval(), loaded.eval(), images())


def test_what_it_says_about_itself(small: nn.Module, tmp_path: Path) -> None:
    plan = Plan(rows=(PlanRow(site="conv", format="tucker2", ranks=(5, 2), params=1, macs=2, why="knapsack"),))
    out = save(small, tmp_path / "out", plan=plan, figures={"compressed": {"top1": 91.25}, "measured_on": "digits"})
    told = read(out)
    assert told.plan == plan
    assert told.figures == {"compressed": {"top1": 91.25}, "measured_on": "digits"}
    assert told.provenance["torch"] == torch.__version__
    conv = told.structure[0]
    assert (conv.names, conv.kind, conv.weight_shape) == (("conv",), "conv2d", (8, 3, 3, 3))
    assert told.structure[3].kind == "conv1d_hf"
    assert told.structure[3].weight_shape == (6, 10)
    assert sorted(path.name for path in out.iterdir()) == ["model.safetensors", "rankwise.json"]
    modes = {path.stat().st_mode for path in out.iterdir()}
    assert len(modes) == 1


@pytest.mark.parametrize(
    "chains",
    [
        {"0": ("tucker2", (5, 2)), "3": ("spatial_svd", (4,)), "5": ("svd", (3,))},
        {
            "0": ("kronecker:kernel=3x1", (2,)),
            "3": ("stt:slices=4", (2, 3, 2)),
            "5": ("tt:outputs=5x1,inputs=9x32", (3,)),
        },
        {"0": ("ht", (2, 3, 2, 3, 4)), "3": ("ht:tree=tc/q", (4, 2, 3)), "5": ("ht", (2, 3, 4))},
    ],
    ids=["plain", "settings", "trees"],
)
def test_a_new_process_gives_the_same_bits(chains: dict[str, tuple[str, Ranks]], tmp_path: Path) -> None:
    source = textwrap.dedent(
        """
        import torch
        from torch import nn

        def build():
            return nn.Sequential(
                nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(),
                nn.Linear(8 * 6 * 6, 5),
            ).eval()
        """
    )
    (tmp_path / "nets.py").write_text(source)
    scope: dict[str, Any] = {}
    exec(source, scope)
    small = compressed(scope["build"](), chains)
    save(small, tmp_path / "out")
    with torch.no_grad():
        torch.save({"x": images(), "y": small(images())}, tmp_path / "expected.pt")
    check = textwrap.dedent(
        f"""
        import torch
        from nets import build
        from rankwise.artifact import load
        torch.set_num_threads({torch.get_num_threads()})
        expected = torch.load("expected.pt", weights_only=True)
        with torch.no_grad():
            assert torch.equal(load(build(), "out")(expected["x"]), expected["y"])
        """
    )
    subprocess.run([sys.executable, "-c", check], cwd=tmp_path, check=True, timeout=120)
