"""MODEL as `timm:NAME_OR_FOLDER`: a network of timm, its weights from a folder or the local cache.

Nothing is downloaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..network.patterns import near
from .pixels import MODES

if TYPE_CHECKING:
    from types import ModuleType

    from torch import nn

TIMM = "timm:"
# Files of a repository that timm keeps weights in, the best first.
_WEIGHTS = (
    *("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth"),
    *("open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
)
_CROPS = ("center", "squash")


def is_timm(spec: str) -> bool:
    """Whether the spec names a model of timm."""
    return spec.startswith(TIMM)


def timm_model(name: str, trained: bool = True) -> nn.Module:
    """The network in a folder that `timm.models.save_for_hf` wrote, or of that name with weights in the local cache.

    Args:
        name: a folder, or a name of `timm.list_models()`, also with a tag (`vit_tiny_patch16_224.augreg_in21k`).
        trained: whether to read its weights; else they are random, to be loaded later.

    Raises:
        ValueError: if timm is missing, there is no such network, or its weights are not there.
    """
    timm = _library()
    folder = Path(name)
    given: dict[str, Any] = {"pretrained": trained}
    if folder.is_dir() or name.startswith((".", "/", "~")) or "/" in name:
        _check_folder(name, folder, trained)
        name = f"local-dir:{folder}"
    elif not timm.is_model(name):
        known = timm.list_models()
        raise ValueError(f"timm has no model {name!r}; near names: {near(name.partition('.')[0], known)}")
    elif trained:
        given["pretrained_cfg_overlay"] = {"file": str(_cached(timm, name))}
    try:
        model: nn.Module = timm.create_model(name, **given)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{TIMM}{name.removeprefix('local-dir:')} cannot be read: {first}") from error
    return model


def preparation(model: nn.Module) -> tuple[str, str]:
    """The steps of `--transform` and the numbers of `--normalise` that a network of timm was trained with.

    Raises:
        ValueError: if its configuration asks for steps that there are none of here.
    """
    config = _library().data.resolve_model_data_config(model)
    (_, height, width), how, mode = config["input_size"], config["interpolation"], config["crop_mode"]
    if how not in MODES or mode not in _CROPS:
        raise ValueError(
            f"the network's configuration asks for interpolation {how!r} and crop mode {mode!r}; known are "
            f"{', '.join(MODES)} and {', '.join(_CROPS)}: give --transform and --normalise"
        )
    # timm rounds down: 224 / 0.9 is 248.
    large = [int(side / config["crop_pct"]) for side in (height, width)]
    resize = str(large[0]) if mode == "center" and height == width else f"{large[0]}x{large[1]}"
    numbers = {each: ",".join(f"{value:g}" for value in config[each]) for each in ("mean", "std")}
    steps = f"resize={resize}:{how},crop={height}x{width}"
    return steps, f"mean={numbers['mean']};std={numbers['std']}"


def input_shape(model: nn.Module) -> str:
    """The shape of one input of a network of timm, as for `--input-shape`."""
    return ",".join(map(str, _library().data.resolve_model_data_config(model)["input_size"]))


def _library() -> ModuleType:
    from .torchvision_shim import allow_torchvision

    allow_torchvision()  # timm imports it
    try:
        import timm
        import timm.data
    except ImportError as error:
        raise ValueError(f"timm: models need timm ({error}): pip install 'rankwise[timm]'") from error
    return timm


def _check_folder(name: str, folder: Path, trained: bool) -> None:
    if not folder.is_dir():
        siblings = [each.name for each in folder.parent.iterdir() if each.is_dir()] if folder.parent.is_dir() else []
        raise ValueError(f"{TIMM}{name}: there is no such folder; near names are: {near(folder.name, siblings)}")
    if not (folder / "config.json").is_file():
        raise ValueError(f"{TIMM}{name}: the folder has no config.json; give one that timm.models.save_for_hf wrote")
    if trained and not any((folder / each).is_file() for each in _WEIGHTS):
        raise ValueError(f"{TIMM}{name}: the folder has no weights ({_WEIGHTS[0]})")


def _cached(timm: ModuleType, name: str) -> Path:
    """The file of a network's weights in the caches of the hub and of torch; a ValueError if it is in neither."""
    import torch
    from huggingface_hub import try_to_load_from_cache

    config = timm.get_pretrained_cfg(name)
    repository, url = getattr(config, "hf_hub_id", None), getattr(config, "url", None)
    if repository:
        own = config.hf_hub_filename
        repository, _, revision = repository.partition("@")
        for file in (own,) if own else _WEIGHTS:
            found = try_to_load_from_cache(repository, file, revision=revision or None)
            if isinstance(found, str):
                return Path(found)
    kept = Path(torch.hub.get_dir()) / "checkpoints" / str(url).rpartition("/")[2]
    if url and kept.is_file():
        return kept
    fetch = f"fetch them first (hf download {repository}), or give" if repository else "give"
    raise ValueError(
        f"{TIMM}{name}: its weights are not in the local cache, and nothing is downloaded; {fetch} --weights FILE, or "
        f"ask for random weights with --random-weights"
    )
