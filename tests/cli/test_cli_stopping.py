"""Commands that are stopped: one line, an exit code, nothing half written; a closed pipe ends them quietly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rankwise.cli.stopping import Kept, Stopped, stoppable
from rankwise.training.checkpoint import read_checkpoint

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals are those of Unix")

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 120

SLOW = """
import time
from pathlib import Path
from torch import nn
import nets


class Slow(nn.Sequential):
    def forward(self, x):
        Path("running").touch()
        time.sleep(0.3)
        return super().forward(x)


def build():
    return Slow(*nets.build())
"""


@pytest.fixture
def start(project: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a command in a process of its own, with a folder of its own for temporary files."""
    (project / "slow.py").write_text(SLOW)
    (project / "tmp").mkdir()
    begun: list[subprocess.Popen[str]] = []

    def run(*arguments: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "TMPDIR": str(project / "tmp"), "PYTHONPATH": f"{ROOT / 'src'}:{project}"}
        begun.append(
            subprocess.Popen(
                [sys.executable, "-c", "from rankwise.cli.app import main; main()", *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
            )
        )
        return begun[-1]

    yield run
    for process in begun:
        process.kill()
        process.communicate()


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if "__pycache__" not in path.parts}


@pytest.mark.parametrize(
    "number, name, code",
    [
        pytest.param(signal.SIGINT, "Ctrl-C", 130, marks=pytest.mark.slow),
        (signal.SIGTERM, "SIGTERM", 143),
    ],
)
def test_compress_is_stopped(
    number: signal.Signals, name: str, code: int, project: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    arguments = (
        "slow.py:build",
        "data.npz",
        "--weights",
        "net.pt",
        "--keep",
        "macs=0.5",
        "--engine",
        "none",
        "--engines",
        "none",
    )
    before = files(project)
    process = start("compress", *arguments, "-o", "out")
    deadline = time.monotonic() + PATIENCE
    while not Path("running").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == code, errors
    kept = "nothing was written; with --checkpoint FOLDER a run that is stopped can be resumed"
    assert errors.splitlines()[-1] == f"stopped by {name}: {kept}"
    assert "Traceback" not in errors
    assert files(project) - before == {"running"}


def test_heal_is_stopped_and_tells_of_its_checkpoint(
    project: Path, cli: Callable[..., Any], start: Callable[..., subprocess.Popen[str]]
) -> None:
    common = ("data.npz", "--weights", "net.pt")
    made = cli(
        "compress", "nets.py:build", *common, "--keep", "macs=0.5", "--engine", "none", "--engines", "none", "-o", "out"
    )
    assert made.exit_code == 0, made.output
    training = ("--artifact", "out", "-o", "healed", "--epochs", "500", "--batch", "8", "--checkpoint", "heal.pt")
    process = start("heal", "nets.py:build", *common, *training)
    assert process.stdout is not None
    looks = 0
    for line in process.stdout:
        looks += line.startswith("distillation")
        if looks == 2:  # the first is before any step
            break
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 143, errors
    step = read_checkpoint(Path("heal.pt"))["step"]
    assert step > 0
    told = f"checkpoint heal.pt holds step {step}; the same command with --resume resumes from there"
    assert errors.splitlines()[-1] == f"stopped by SIGTERM: {told}"
    assert not Path("healed").exists()
    assert files(project / "tmp") == set()
    assert not [name for name in files(project) if ".tmp-" in name]


@pytest.mark.parametrize("more", [(), pytest.param(("--json", "-"), marks=pytest.mark.slow)], ids=["table", "json"])
def test_a_closed_pipe_is_no_error(more: tuple[str, ...], start: Callable[..., subprocess.Popen[str]]) -> None:
    process = start("inspect", "nets.py:build", "--weights", "net.pt", "--input-shape", "3,8,8", *more)
    assert process.stdout is not None
    process.stdout.close()  # before anything is written, as by `| head -0`
    assert process.stderr is not None
    errors = process.stderr.read()
    assert process.wait(PATIENCE) == 141
    assert not [line for line in errors.splitlines() if "rror" in line or "Traceback" in line or "Broken" in line]


def test_what_was_written_before_is_told(
    project: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise Stopped(signal.SIGTERM)

    monkeypatch.setattr("rankwise.cli.results.measure", stopped)
    result = cli("compress", "nets.py:build", "data.npz", "--weights", "net.pt", "--keep", "macs=0.5", "-o", "out")
    assert result.exit_code == 143
    assert "stopped by SIGTERM: out was written before that and can be used" in result.stderr
    assert {file.name for file in Path("out").iterdir()} == {
        "rankwise.json",
        "model.safetensors",
        "plan.yaml",
        "run.yaml",
    }


def test_training_without_a_checkpoint_is_told_of_it(
    project: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rankwise.inputs.models.load_model", stopped)
    for command in ("heal", "train"):
        artifact = ("--artifact", "out") if command == "heal" else ()
        result = cli(command, "nets.py:build", "data.npz", *artifact, "-o", "out")
        assert result.exit_code == 130
        assert "stopped by Ctrl-C: nothing was written; with --checkpoint FILE a run" in result.stderr


def test_targets_are_compared_with_what_they_were(tmp_path: Path) -> None:
    folder, file = tmp_path / "out", tmp_path / "plan.yaml"
    folder.mkdir()
    (folder / "model").write_text("old")
    kept = Kept([folder, file, None])
    assert "nothing was written" in kept.told(KeyboardInterrupt())
    kept.further = lambda: "all is well"
    assert kept.told(Stopped(signal.SIGTERM)) == "stopped by SIGTERM: all is well"
    (folder / "new").write_text("new")
    os.replace(folder / "new", folder / "model")
    assert f"{folder} was written" in kept.told(KeyboardInterrupt())


def test_signals_are_taken_from_the_main_thread_alone_and_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen: list[object] = []

    def inside() -> None:
        with stoppable():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    inside()
    ignored = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        inside()
    finally:
        signal.signal(signal.SIGTERM, ignored)
    assert seen[0] == before == signal.getsignal(signal.SIGTERM)
    assert callable(seen[1])
    assert seen[2] == signal.SIG_IGN
