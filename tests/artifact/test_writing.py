"""Writing is all or nothing."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from support.artifact_nets import Net, assert_same, compressed, images
from torch import nn

from rankwise import compress
from rankwise.artifact import load, read, save


def test_an_artifact_is_replaced_and_other_files_stay(artifact: Path, tmp_path: Path) -> None:
    (artifact / "plan.yaml").write_text("mine")
    other = compressed(Net().eval(), {"conv": ("svd", (2,))})
    save(other, artifact)
    assert_same(load(Net().eval(), artifact), other, images())
    assert (artifact / "plan.yaml").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_directory_of_something_else_is_not_touched(small: nn.Module, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    save(small, home)  # empty: welcome
    (home / "rankwise.json").unlink()
    with pytest.raises(ValueError, match=r"home is not empty and holds no rankwise\.json"):
        save(small, home)
    assert [path.name for path in home.iterdir()] == ["model.safetensors"]
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        save(small, tmp_path / "file")


def test_a_link_to_a_directory_is_followed(small: nn.Module, artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(artifact)
    save(small, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert_same(load(Net().eval(), tmp_path / "link"), small, images())


@pytest.mark.parametrize(
    "failing", ["safetensors.torch.save_file", "pathlib.Path.write_text", "os.fsync", "os.replace"]
)
def test_a_full_disk_leaves_the_old_artifact(
    failing: str, small: nn.Module, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(failing, full)
        with pytest.raises(OSError, match=r"cannot write the artifact: No space left on device: '.*out'") as caught:
            save(compressed(Net(), {}), artifact)
    assert caught.value.errno == 28
    assert_same(load(Net().eval(), artifact), small, images())
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_what_fails_says_which_artifact_is_there(
    renames: int, small: nn.Module, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, done = os.replace, []

    def fail(old: Path, new: Path) -> None:
        if len(done) == renames:
            raise PermissionError(13, "Permission denied")
        done.append(new)
        replace(old, new)

    other = compressed(Net().eval(), {"conv": ("svd", (2,))})
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", fail)
        told = "was replaced, but the disk did not confirm it" if renames == 2 else "cannot write the artifact"
        with pytest.raises(PermissionError, match=f"{told}: Permission denied"):
            save(other, artifact)
    there = other if renames == 2 else small
    assert_same(load(Net().eval(), artifact), there, images())
    assert read(artifact).tensors_sha256 == hashlib.sha256((artifact / "model.safetensors").read_bytes()).hexdigest()
    save(small, artifact)
    assert_same(load(Net().eval(), artifact), small, images())
    assert sorted(path.name for path in artifact.iterdir()) == ["model.safetensors", "rankwise.json"]


def test_a_rankwise_json_of_somebody_else_is_no_artifact(small: nn.Module, tmp_path: Path) -> None:
    for text in ("{}", "[1]", "my notes", '{"format_version": 4}'):
        (tmp_path / "rankwise.json").write_text(text)
        with pytest.raises(ValueError, match=r"rankwise\.json was not written by Rankwise, or is damaged"):
            save(small, tmp_path)
        assert (tmp_path / "rankwise.json").read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == ["rankwise.json"]


def test_the_folder_that_one_is_in(small: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        save(small, ".")
        assert_same(load(Net().eval(), "."), small, images())
    assert sorted(os.listdir()) == ["model.safetensors", "rankwise.json"]


def test_links_that_lead_in_a_circle(small: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(OSError, match=r"cannot write the artifact: .*symbolic links"):
        save(small, tmp_path / "a")


def test_permissions_of_replaced_files_stay(small: nn.Module, artifact: Path) -> None:
    for name, mode in (("rankwise.json", 0o640), ("model.safetensors", 0o600)):
        (artifact / name).chmod(mode)
    save(small, artifact)
    assert oct((artifact / "rankwise.json").stat().st_mode) == "0o100640"
    assert oct((artifact / "model.safetensors").stat().st_mode) == "0o100600"


def test_a_name_as_long_as_names_can_be(small: nn.Module, tmp_path: Path) -> None:
    out = tmp_path / ("n" * 255)
    for _ in range(2):
        save(small, out)
    assert_same(load(Net().eval(), out), small, images())


def test_disk_errors_of_the_tensor_writer_are_os_errors(
    small: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        save(small, tmp_path / "out")
    assert caught.value.errno == 28
    assert list(tmp_path.iterdir()) == []


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x))


class LeavesOut(Plain):
    def state_dict(self, *args: Any, **options: Any) -> Any:
        return {name: value for name, value in super().state_dict(*args, **options).items() if name[0] != "b"}


class Renames(Plain):
    def state_dict(self, *args: Any, **options: Any) -> Any:
        return {f"model.{name}": value for name, value in super().state_dict(*args, **options).items()}


class Rounds(Plain):
    def state_dict(self, *args: Any, **options: Any) -> Any:
        return {name: value.half() for name, value in super().state_dict(*args, **options).items()}


class HasAHook(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.b._register_state_dict_hook(lambda module, state, prefix, meta: state.pop(prefix + "bias"))


class TakesNoOptions(Plain):
    def state_dict(self) -> Any:  # type: ignore[override]
        return super().state_dict()


@pytest.mark.parametrize(
    "build, told",
    [
        (LeavesOut, r"leaves out 'b\.weight'.* remove the state_dict of LeavesOut \(the model itself\)"),
        (Renames, r"holds 'a\.0\.weight' as 'model\.a\.0\.weight'"),
        (Rounds, r"holds other values than the network under 'a\.0\.weight'"),
        (HasAHook, r"leaves out 'b\.bias'.* remove the state_dict hook of Linear \(b\)"),
        (TakesNoOptions, r"does not take keep_vars=True"),
    ],
)
def test_a_state_dict_that_could_not_be_loaded_is_refused(build: type[nn.Module], told: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, data = build().eval(), [torch.randn(8, 4) for _ in range(2)]
    result, _ = compress(model, data, keep={"macs": 0.9}, pin={"a": "svd:1"})  # the network itself is right
    with pytest.raises(ValueError, match=told):
        save(result, tmp_path / "out")
    assert not (tmp_path / "out").exists()
