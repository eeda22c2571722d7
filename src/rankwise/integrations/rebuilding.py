"""Put chains into a network that `from_pretrained` is loading, between its construction and its weights.

transformers has one hook there, for quantised weights. It is used for this alone: the loaded network is not marked as
quantised, and its configuration is that of its family.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from torch import nn
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from ..artifact.manifest import StoredChain, chains_from
from ..artifact.restore import build_chains
from ..layers.low_rank import LowRank

VERSION = 1
_AGAIN = "save it again"


class Structure(QuantizationConfigMixin):
    """What `config.json` says about the chains, under the name that transformers reads before it loads weights.

    Args:
        family: its model_type, such as "llama"; transformers takes any part with a `model_type` for the whole.
        structure: the chains as plain values.
        version: of this form.
    """

    def __init__(self, *, family: str, structure: Sequence[dict[str, Any]], version: int, **others: Any) -> None:
        if version != VERSION:
            raise ValueError(
                f"config.json has version {version!r} of rankwise's structure, this rankwise reads {VERSION}; install "
                f"the version that wrote it"
            )
        self.quant_method = others.pop("quant_method", "rankwise")
        self.family, self.structure, self.version = family, structure, version
        if others:
            raise ValueError(f"config.json: unknown field {min(others)!r} of rankwise's structure; {_AGAIN}")


class Rebuilding(HfQuantizer):
    """Builds the chains of a `Structure`; no weight is quantised."""

    requires_calibration = True

    def update_attn_implementation(self, config: Any) -> Any:
        """The family's configuration, without what stands there for those who do not know of chains."""
        # A class of the family has taken the whole file as its own; the type is an attribute of its class.
        for name in ("transformers_weights", "quantization_config", "model_type"):
            config.__dict__.pop(name, None)
        return config

    def preprocess_model(self, model: Any, dtype: Any = None, **_: Any) -> None:
        told: Any = self.quantization_config
        build_chains(model, fitted(chains_from(told.structure), model))

        def tie_weights(missing_keys: set[str] | None = None, **options: Any) -> None:
            type(model).tie_weights(model, missing_keys=missing_keys, **options)
            _check_missing(model, missing_keys or ())

        model.tie_weights = tie_weights  # what is missing is told there, and nowhere else

    def postprocess_model(self, model: Any, **_: Any) -> None:
        del model.hf_quantizer, model.tie_weights

    def is_serializable(self, *_: Any, **__: Any) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True


def _check_missing(model: nn.Module, missing: Iterable[str]) -> None:
    """Raise for factors that were not among the weights: transformers leaves them random."""
    chains = tuple(f"{name}." for name, part in model.named_modules() if isinstance(part, LowRank))
    if lost := sorted(name for name in missing if name.startswith(chains)):
        raise ValueError(f"the weights lack {lost[0]!r}, which config.json asks for; {_AGAIN}")


def fitted(structure: Iterable[StoredChain], model: nn.Module) -> list[StoredChain]:
    """The chains by their names in this network, which may be the body of the one that was saved, or have another head.

    Raises:
        ValueError: for a chain that the network has no place for, unless it was outside the body.
    """
    prefix = f"{model.base_model_prefix}."
    names, is_body = dict(model.named_modules(remove_duplicate=False)), not hasattr(model, prefix[:-1])
    structure = tuple(structure)
    saved_whole = any(name.startswith(prefix) for chain in structure for name in chain.names)
    found = []
    for chain in structure:
        own = chain.names
        if is_body and saved_whole:
            if not any(name.startswith(prefix) for name in own):
                if chain.site and chain.site.startswith(prefix):
                    raise ValueError(
                        f"site {own[0]!r} shares its factors with {chain.site!r}; load the network with its head"
                    )
                continue  # a layer of the head
            own = tuple(name.removeprefix(prefix) for name in own if name.startswith(prefix))
        elif not is_body and not saved_whole:
            own = tuple(f"{prefix}{name}" for name in own if f"{prefix}{name}" in names) or own
        if own == chain.names:
            found.append(chain)
        else:
            moved = chain.site.removeprefix(prefix) if is_body else f"{prefix}{chain.site}"
            found.append(replace(chain, names=own, site=moved if chain.site else ""))
    return found
