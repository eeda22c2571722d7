"""What this machine has: versions, extras, engines and devices."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import torch

from ..latency import ENGINES, get_engine

# Extra -> what a user needs it for; `all` and those for people who work on Rankwise itself are left out.
USES = {
    "vision": "pictures as data, torchvision models and data sets",
    "timm": "networks of timm (timm:NAME)",
    "transformers": "language models and other transformers (hf:NAME)",
    "onnx": "export to .onnx, times in onnxruntime",
    "executorch": "export to .pte for phones, times in ExecuTorch",
    "report": "rankwise report and scan: pages and pictures for people",
    "search": "--rule bayesian (Optuna)",
    "demo": "rankwise demo (scikit-learn's digits)",
}
CORE = ("rankwise", "torch", "safetensors", "pyyaml", "rich", "typer")


@dataclass(frozen=True, kw_only=True)
class Extra:
    """An extra of the package: what it is for, and which of its packages are missing here."""

    name: str
    use: str
    installed: dict[str, str]
    missing: tuple[str, ...]

    @property
    def fix(self) -> str:
        """The command that installs what is missing; "" if nothing is."""
        return f"pip install 'rankwise[{self.name}]'" if self.missing else ""


@dataclass(frozen=True, kw_only=True)
class Ready:
    """An engine, and why it cannot be used here; "" if it can."""

    name: str
    summary: str
    problem: str


def versions() -> dict[str, str]:
    """Versions of Python, the system, and the packages that Rankwise always needs.

    Example:
        >>> "torch" in versions()
        True
    """
    found = {"python": platform.python_version(), "system": platform.platform()}
    return {**{name: _version(name) or "missing" for name in CORE}, **found}


def extras() -> list[Extra]:
    """Every extra, from the metadata of the installed package."""
    listed: dict[str, list[str]] = {}
    for line in requires("rankwise") or ():
        if found := re.match(r"([\w.-]+).*;.*extra\s*==\s*['\"](\w+)['\"]", line):
            listed.setdefault(found[2], []).append(found[1])
    made = []
    for name in [each for each in USES if each in listed]:
        there = {package: _version(package) for package in listed[name]}
        installed = {package: number for package, number in there.items() if number is not None}
        missing = tuple(package for package, number in there.items() if number is None)
        made.append(Extra(name=name, use=USES[name], installed=installed, missing=missing))
    return made


def engines() -> list[Ready]:
    """Every engine, and why it cannot be used here."""
    return [Ready(name=name, summary=kind.summary, problem=_problem(name)) for name, kind in ENGINES.items()]


def devices() -> list[str]:
    """The processor with its cores and memory, and every GPU that torch finds."""
    cores = os.cpu_count() or 1
    memory = f", {gigabytes:.1f} GB memory" if (gigabytes := _memory() / 1e9) else ""
    found = [f"CPU: {_processor()}, {cores} core{'s' * (cores > 1)}{memory}"]
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        found.append(f"GPU {index}: {about.name}, {about.total_memory / 1e9:.1f} GB memory")
    return found


def _problem(engine: str) -> str:
    try:
        get_engine(engine)
    except (ValueError, ImportError) as error:
        return str(error).splitlines()[0]
    return ""


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """The processor's name, where the system tells it."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _memory() -> int:
    """Bytes of memory, 0 where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0
