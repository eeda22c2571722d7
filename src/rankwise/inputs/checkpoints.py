"""Load weights from disk, safetensors or a checkpoint of tensors: all of them or none."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

# Training scripts wrap a state_dict in these; data parallelism and torch.compile put these before every name.
WRAPPERS = ("state_dict", "model")
PREFIXES = ("module.", "_orig_mod.")
SHOWN = 4
SHOWN_BYTES = 32


def load_weights(model: nn.Module, path: Path, spec: str = "the model") -> None:
    """Load the weights in `path` into `model`; a model that they do not fit stays unchanged.

    Args:
        model: receives the weights.
        path: a `.safetensors` file, or a checkpoint that `torch.load(weights_only=True)` reads. `state_dict` and
            `model` wrappers and `module.` and `_orig_mod.` prefixes are removed.
        spec: what the user called the model, for messages.

    Raises:
        ValueError: if the file cannot be read, or names or shapes differ.
    """
    from ..running.state import set_state

    state = read_weights(path)
    own = model.state_dict(keep_vars=True)
    pairs = {name: (value, own[name]) for name, value in state.items() if name in own}
    shapes = [
        f"{name}: {tuple(new.shape)} in the file, {tuple(old.shape)} in the model"
        for name, (new, old) in pairs.items()
        if new.shape != old.shape
    ]
    kinds = [
        f"{name}: {new.dtype} in the file, {old.dtype} in the model"
        for name, (new, old) in pairs.items()
        if _number(new) != _number(old)
    ]
    problems = (
        _few("missing in the file", _missing(own, state)),
        _few("not in the model", [name for name in state if name not in own]),
        _few("other shape", shapes, separator="; "),
        _few("other kind of number", kinds, separator="; "),
    )
    if found := "; ".join(filter(None, problems)):
        raise ValueError(f"{path} does not fit {spec}: {found}. Nothing was loaded. {_advice(own, state, shapes)}")
    set_state(model, state, strict=False)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file by name, without wrappers and prefixes."""
    if not path.is_file():
        raise ValueError(f"there is no weights file {path}")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else read_checkpoint(path)
    return _without_prefixes(_unwrapped(content, path))


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file, or is cut short: {error}") from error


def read_checkpoint(path: Path) -> Any:
    """The tensors and plain values that `torch.save` wrote.

    Raises:
        ValueError: if the file is not a checkpoint, is cut short, or holds objects.
    """
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # foreign bytes are read as instructions, which can end in anything
        if fault := _no_checkpoint(path):
            raise ValueError(f"{path} is not a checkpoint: {fault}; download it again") from error
        if not isinstance(error, pickle.UnpicklingError):
            raise ValueError(
                f"{path} is not a checkpoint that torch can read, or is cut short: "
                f"{str(error).strip() or type(error).__name__}; download it again"
            ) from error
        raise ValueError(
            f"{path} holds more than tensors, and unpickling objects can run any code, so it was not opened. "
            "If you trust it, save its tensors: "
            "torch.save(torch.load(path, weights_only=False).state_dict(), 'weights.pt')"
        ) from error


def _no_checkpoint(path: Path) -> str | None:
    """What is in a file that is neither a zip archive nor a pickle; None if it may be one."""
    with path.open("rb") as file:
        head = file.read(SHOWN_BYTES)
    if not head:
        return "it is empty"
    if head.startswith(b"PK\x03\x04") or (head[0] == 0x80 and head[1:2] <= bytes([pickle.HIGHEST_PROTOCOL])):
        return None
    return f"it begins with {head.decode('latin-1')!r}"


def _unwrapped(content: Any, path: Path) -> dict[str, Tensor]:
    import torch

    while isinstance(content, Mapping):
        inner = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{path} holds a {type(content).__name__}, not a dictionary of named tensors")
    others = [str(name) for name, value in content.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise ValueError(
            f"{path} is not a dictionary of tensors: {', '.join(others[:SHOWN])} are something else. "
            f"Rankwise removes the wrappers {' and '.join(repr(key) for key in WRAPPERS)}; "
            "save the inner dictionary of tensors alone"
        )
    return {str(name): value for name, value in content.items()}


def _without_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    while prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in state)), None):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _missing(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """Names the file should have. A tied tensor needs one of its names; batch norm counters are absent in old files."""
    present = {id(own[name]) for name in state if name in own}
    return [
        name
        for name, tensor in own.items()
        if name not in state and id(tensor) not in present and not name.endswith("num_batches_tracked")
    ]


def _number(tensor: Tensor) -> str:
    """The kind of number that a tensor holds; copied into another kind, values would be cut off silently."""
    return "complex" if tensor.is_complex() else "floating" if tensor.is_floating_point() else "whole"


def _few(title: str, names: list[str], separator: str = ", ") -> str:
    if not names:
        return ""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{len(names)} {title}: {separator.join(names[:SHOWN])}{more}"


def _advice(own: Mapping[str, Tensor], state: Mapping[str, Tensor], shapes: list[str]) -> str:
    if not set(own) & set(state):
        return "No name matches: these are the weights of another network, or their names were changed."
    if shapes:
        return (
            "Name the network the weights were trained in: a FILE.py:FUNCTION that builds it with the same widths and "
            "number of classes, such as torchvision.models.resnet18(num_classes=10)."
        )
    return "Name the network the weights were trained in, as a FILE.py:FUNCTION that builds it."
