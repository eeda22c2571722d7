"""Fixtures that every test can use."""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from rankwise.inputs.torchvision_shim import import_torchvision

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure() -> None:
    """Two workers share two cores: one thread each; a single process may use both."""
    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)
    if importlib.util.find_spec("torchvision"):  # before transformers imports it, whose operators may not load
        import_torchvision()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that take many seconds come first: at the end one of them would run alone, beside a worker without work."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """After every file, memory that networks had goes back to the system, which has 3 GB for both workers."""
    if nextitem is None or nextitem.path != item.path:
        gc.collect()
        if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # of glibc
            trim(0)


@pytest.fixture(scope="session", autouse=True)
def known_machine(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A cache of times that knows what torch and onnxruntime compute at once, so that plans are the same everywhere."""
    from support.machine import store_grid

    os.environ["RANKWISE_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    store_grid(16)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Threads only wait for each other on sizes as small as those of a module that uses this."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder with trained networks and their data: RANKWISE_DATA, or ../shared/data beside the checkout.

    Tests that need it are skipped where it is absent, and fail there under RANKWISE_REQUIRE_DATA=1.
    """
    folder = Path(os.environ.get("RANKWISE_DATA") or ROOT.parent / "shared" / "data")
    if not (folder / "networks.py").is_file():
        reason = f"no trained networks: {folder / 'networks.py'} does not exist; point RANKWISE_DATA at the folder"
        if os.environ.get("RANKWISE_REQUIRE_DATA") == "1":
            pytest.fail(f"{reason} (RANKWISE_REQUIRE_DATA=1 forbids skipping)")
        pytest.skip(reason)
    return folder


@pytest.fixture(scope="session")
def networks(data_folder: Path) -> ModuleType:
    """The module `networks`: loaders of trained networks and data, conventions of their inputs, evaluation."""
    if "networks" in sys.modules:
        return sys.modules["networks"]
    spec = importlib.util.spec_from_file_location("networks", data_folder / "networks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their own module up by name while the body runs.
    sys.modules["networks"] = module
    spec.loader.exec_module(module)
    return module
