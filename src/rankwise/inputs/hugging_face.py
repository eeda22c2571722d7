"""MODEL as `hf:NAME_OR_FOLDER`: a network of transformers and its tokenizer, from a folder or the local cache.

Nothing is downloaded, and no code that comes with a model is run.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..network.patterns import near

if TYPE_CHECKING:
    from types import ModuleType

    from torch import nn

HUGGING_FACE = "hf:"
# Files that weights are stored in.
_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")


def is_hugging_face(spec: str) -> bool:
    """Whether the spec names a model of transformers."""
    return spec.startswith(HUGGING_FACE)


def is_pretrained(model: nn.Module) -> bool:
    """Whether a network is one of transformers, known without importing that."""
    known = sys.modules.get("transformers")
    return known is not None and isinstance(model, known.PreTrainedModel)


def hugging_face_model(name: str) -> nn.Module:
    """The network in a folder, or of that name in the local cache, as the class that its configuration names.

    Raises:
        ValueError: if transformers is missing, there is no such model, or it needs code of its own.
    """
    transformers = _library()
    place = _place(name)
    config = _read(name, transformers.AutoConfig.from_pretrained, place)
    classes = [getattr(transformers, each, None) for each in config.architectures or ()]
    if not classes:
        classes = [transformers.AutoModel]
    if classes[0] is None:
        raise ValueError(
            f"hf:{name} is a {config.architectures[0]}, which transformers {transformers.__version__} does not have; "
            f"install a newer one"
        )
    model: nn.Module = _read(name, classes[0].from_pretrained, place, config=config, dtype="auto")
    return model


def hugging_face_tokenizer(name: str) -> Any:
    """The tokenizer of a model, from the same place.

    Raises:
        ValueError: if there is none.
    """
    return _read(name, _library().AutoTokenizer.from_pretrained, _place(name))


def _library() -> ModuleType:
    from .torchvision_shim import allow_torchvision

    allow_torchvision()  # transformers imports it for some networks
    try:
        import transformers
    except ImportError as error:
        raise ValueError("hf: models need transformers: pip install 'rankwise[transformers]'") from error
    transformers.utils.logging.disable_progress_bar()
    return transformers


def _place(name: str) -> str:
    """A folder with a configuration, or the name of a model in the cache."""
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ValueError(f"hf:{name}: the folder has no config.json; give the folder that save_pretrained wrote")
        if not any(any(folder.glob(pattern)) for pattern in _WEIGHTS):
            raise ValueError(f"hf:{name}: the folder has no weights (model.safetensors)")
        return str(folder)
    if name.startswith((".", "/", "~")) or name.endswith("/"):
        siblings = [each.name for each in folder.parent.iterdir() if each.is_dir()] if folder.parent.is_dir() else []
        raise ValueError(f"hf:{name}: there is no such folder; near names are: {near(folder.name, siblings)}")
    return name


def _read(name: str, reader: Any, place: str, **options: Any) -> Any:
    before = os.environ.get("HF_HUB_OFFLINE")
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        return reader(place, local_files_only=True, trust_remote_code=False, **options)
    except (OSError, ValueError, ImportError, KeyError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"hf:{name} cannot be read: {first}; it must be a folder that save_pretrained wrote, or a model in the "
            f"local cache (hf download {name}) without code of its own"
        ) from error
    finally:
        if before is None:
            del os.environ["HF_HUB_OFFLINE"]
        else:
            os.environ["HF_HUB_OFFLINE"] = before
