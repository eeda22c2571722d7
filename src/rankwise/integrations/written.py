"""What a compressed network is on disk: `config.json` with the chains under a type of its own, and plain safetensors.

Without Rankwise the type is unknown, so `AutoModel` fails. A class of the family does not look at the type: it would
build dense layers and leave them random. It looks for the weights, whose place says what to import.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import cached_file

from ..artifact.manifest import StoredChain, plain_chains
from ..artifact.structure import chains_of
from ..files import replacing
from ..surgery.folding import folds_of
from .ordinary import as_ordinary, ordinary_form
from .rebuilding import VERSION

MODEL_TYPE = "rankwise"
# An error of transformers repeats it.
_PLACE = "import rankwise.integrations.transformers first, then load this"


# Files that say how inputs are made.
_PREPARING = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
    *("preprocessor_config.json", "processor_config.json"),
)


class Family(PreTrainedConfig):
    """Stands for the configurations of all compressed networks: what is read is the one of the family."""

    model_type = MODEL_TYPE

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **others: Any) -> Any:
        try:
            family = config_dict["quantization_config"]["family"]
            known = CONFIG_MAPPING[family]
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"config.json has model_type {MODEL_TYPE!r}, but no known family in quantization_config ({error}); "
                f"save it again, or install a newer transformers"
            ) from error
        return known.from_dict({**config_dict, "model_type": family}, **others)


def save(model: PreTrainedModel, method: str, *args: Any, **options: Any) -> Any:
    """Call a method of transformers that saves, so that what it writes gives the network back.

    Args:
        model: with chains.
        method: "save_pretrained" or "push_to_hub".

    Raises:
        ValueError: if batch norms are folded, or a chain cannot be built again.
    """
    own = getattr(type(model), method)
    # push_to_hub calls save_pretrained, and with adapters only these are saved
    if method != "save_pretrained" or getattr(model, "_hf_peft_config_loaded", False):
        return own(model, *args, **options)
    if form := ordinary_form(model):
        return as_ordinary(model, form, options.pop("state_dict", None)).save_pretrained(*args, **options)
    with _private(model):
        return own(model, *args, **options)


def write_config(model: PreTrainedModel, folder: Path) -> None:
    """Write all but the weights, which are there already: configurations, and the model's tokenizer."""
    with _private(model):
        model.config.architectures = [type(model).__name__]
        model.config.dtype = str(model.dtype).removeprefix("torch.")
        model.config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
    copy_tokenizer(model, folder)


def is_private(folder: Path) -> bool:
    """Whether reading a folder needs Rankwise."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return bool(config["model_type"] == MODEL_TYPE)


def copy_tokenizer(model: PreTrainedModel, folder: Path) -> None:
    """Copy the files of the tokenizer, or of what prepares pictures and sounds, from where the model was read."""
    place = model.name_or_path
    for name in _PREPARING if place else ():
        found = cached_file(str(place), name, local_files_only=True, _raise_exceptions_for_missing_entries=False)
        if found is not None and Path(found).resolve() != (folder / name).resolve():
            shutil.copyfile(found, folder / name)


@contextmanager
def _private(model: PreTrainedModel) -> Iterator[None]:
    """Inside, the configuration of a network is written with its chains."""
    if folds := folds_of(model):
        raise ValueError(
            f"batch norm {min(folds)!r} is folded, and from_pretrained builds it again; compress without folding, or "
            f"use rankwise.save(model, folder)"
        )
    structure = chains_of(model)
    config: Any = model.config

    def save_pretrained(folder: Any, **options: Any) -> None:
        del config.save_pretrained
        _write(config, Path(folder), structure, options)

    config.save_pretrained = save_pretrained
    try:
        yield
    finally:
        config.__dict__.pop("save_pretrained", None)


def _write(config: Any, folder: Path, structure: tuple[StoredChain, ...], options: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as aside:
        config.save_pretrained(aside, **options)
        plain = json.loads((Path(aside) / "config.json").read_text(encoding="utf-8"))
    told = {
        "quant_method": MODEL_TYPE,
        "version": VERSION,
        "family": config.model_type,
        "structure": plain_chains(structure),
    }
    written = {**plain, "model_type": MODEL_TYPE, "transformers_weights": _PLACE, "quantization_config": told}
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "config.json") as path:
        path.write_text(json.dumps(written, indent=2, sort_keys=True) + "\n", encoding="utf-8")
