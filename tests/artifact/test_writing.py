"""Writing is all or nothing."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from artifact_nets import Net, assert_same, compressed, images
from safetensors import SafetensorError
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


@pytest.mark.parametrize("failing", ["rankwise.artifact.save_file", "pathlib.Path.write_text", "os.fsync"])
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


def test_a_rename_that_fails_puts_the_old_artifact_back(
    small: nn.Module, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if ".tmp-" in self.name:
            raise PermissionError(13, "Permission denied")
        return rename(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", fail)
        with pytest.raises(PermissionError, match="cannot write the artifact"):
            save(compressed(Net(), {}), artifact)
    assert_same(load(Net().eval(), artifact), small, images())
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_killed_run_loses_nothing(renames: int, tmp_path: Path) -> None:
    """The process dies before the first rename, between both, and after them."""
    script = textwrap.dedent(
        f"""
        import os
        from pathlib import Path
        from torch import nn
        from rankwise.artifact import save

        done, rename, unlink = [], Path.rename, Path.unlink

        def counted(self, target):
            if len(done) == {renames}:
                os._exit(9)
            done.append(target)
            return rename(self, target)

        def last(self):
            os._exit(9)

        save(nn.Sequential(nn.Linear(2, 1)), "out", figures={{"run": "old"}})
        Path("out/notes.txt").write_text("mine")
        Path.rename, Path.unlink = counted, last
        save(nn.Sequential(nn.Linear(2, 2)), "out", figures={{"run": "new"}})
        """
    )
    ended = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, timeout=120, check=False)
    assert ended.returncode == 9
    old = renames < 2
    fresh = nn.Sequential(nn.Linear(2, 1 if old else 2))
    load(fresh, tmp_path / "out")
    assert read(tmp_path / "out").figures == {"run": "old" if old else "new"}
    save(fresh, tmp_path / "out", figures={"run": "next"})
    assert read(tmp_path / "out").figures == {"run": "next"}
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    left = [path.name for path in tmp_path.iterdir() if path.name != "out"]
    assert all(name.startswith(".out.tmp-") for name in left)


def test_disk_errors_of_the_tensor_writer_are_os_errors(
    small: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("rankwise.artifact.save_file", full)
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
