"""MODEL on the command line: `torchvision:NAME`, `timm:NAME`, `hf:NAME` or `FILE.py:FUNCTION`, and its weights."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..network.patterns import near
from .checkpoints import load_weights
from .hugging_face import HUGGING_FACE, hugging_face_model, is_hugging_face
from .timm_models import TIMM, is_timm, timm_model

if TYPE_CHECKING:
    from torch import nn

TORCHVISION = "torchvision:"


def load_model(spec: str, weights: Path | None = None, trained: bool = True) -> nn.Module:
    """Make the model that `spec` names, in eval mode, with `weights` loaded into it.

    Args:
        spec: `torchvision:resnet18`, `timm:vit_tiny_patch16_224`, `hf:folder`, or `path/file.py:function`: a function
            that takes nothing and returns a model.
        weights: a `.safetensors` file or a checkpoint of tensors.
        trained: whether a network of timm needs weights; else they are random.

    Raises:
        ValueError: if the spec names nothing that makes a model, or the weights do not fit.
    """
    from torch import nn

    if is_torchvision(spec):
        model = torchvision_model(spec.removeprefix(TORCHVISION))
    elif is_timm(spec):
        model = timm_model(spec.removeprefix(TIMM), trained and weights is None)
    elif is_hugging_face(spec):
        model = hugging_face_model(spec.removeprefix(HUGGING_FACE))
    else:
        model = call_function(spec, "MODEL", "torchvision:NAME (torchvision:resnet18), timm:NAME, hf:NAME_OR_FOLDER")
    if not isinstance(model, nn.Module):
        raise ValueError(f"{spec} returned a {type(model).__name__}, not a torch.nn.Module")
    if weights is not None:
        load_weights(model, weights, spec)
    return model.eval()


def load_artifact(spec: str, folder: Path) -> nn.Module:
    """The compressed network in `folder`, on a fresh model of `spec`; the artifact holds all weights."""
    from ..artifact import load

    return load(load_model(spec, trained=False), folder).eval()


def is_torchvision(spec: str) -> bool:
    """Whether the spec names a model of torchvision."""
    return spec.startswith(TORCHVISION)


def torchvision_model(name: str) -> nn.Module:
    """A torchvision model by name, with random weights: nothing is ever downloaded."""
    from .torchvision_shim import import_torchvision

    models = import_torchvision().models
    names = models.list_models()
    if name not in names:
        raise ValueError(f"torchvision has no model {name!r}; near names: {near(name, names)}")
    builder = models.get_model_builder(name)
    # Detection and segmentation models download the weights of their backbone unless told not to.
    accepted = inspect.signature(builder).parameters
    model: nn.Module = builder(**{key: None for key in ("weights", "weights_backbone") if key in accepted})
    return model


def load_function(spec: str, what: str, others: str) -> Callable[..., Any]:
    """The function that `FILE.py:FUNCTION` names; `what` is the argument it is for, `others` what else that may be."""
    file, _, name = spec.rpartition(":")
    if not file.endswith(".py") or not name:
        raise ValueError(f"{what} {spec!r} is neither {others} nor FILE.py:FUNCTION (nets.py:build)")
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"{what} {spec!r}: there is no file {path}")
    module = _run_file(path)
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if inspect.isfunction(value) and not key.startswith("_")]
        raise ValueError(f"{path} has no function {name!r}; it has: {near(name, known) or 'no functions at all'}")
    return function


def call_function(spec: str, what: str, others: str) -> Any:
    """Call the function that `FILE.py:FUNCTION` names and return its result; arguments as for `load_function`."""
    function = load_function(spec, what, others)
    try:
        return function()
    except Exception as error:
        raise ValueError(f"{what} {spec!r}: {spec.rpartition(':')[2]}() {_raised(error)}") from error


def _raised(error: Exception) -> str:
    """Error and place, in words."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"raised {type(error).__name__}: {error} ({Path(last.filename).name}, line {last.lineno})"


def _run_file(path: Path) -> Any:
    """Run a file as a module; its folder is importable meanwhile, as when Python runs the file."""
    from .torchvision_shim import allow_torchvision

    allow_torchvision()
    name = f"rankwise_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    sys.modules[name] = module  # dataclasses and pickling look up their module by name
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise ValueError(f"{path} is not valid Python: {error}") from error
    except Exception as error:
        raise ValueError(f"{path} cannot be run: it {_raised(error)}") from error
    finally:
        sys.path.remove(folder)
    return module
