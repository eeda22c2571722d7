"""Ordinary checkpoints: a network whose hidden layers only became narrower, all alike, is one of its family.

Which number of the configuration is the width is found by trying: networks without memory are built with each number
changed, and the one whose shapes are those of the narrow network is right.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from ..layers.kinds import Role
from ..layers.low_rank import LowRank
from ..layers.modules import Kept

Shapes = dict[str, tuple[int, ...]]
# A number of a configuration: the names that lead to it, such as ("text_config", "intermediate_size").
Place = tuple[str, ...]


@dataclass(frozen=True)
class Form:
    """How a network with narrow hidden layers is written as an ordinary one.

    Attributes:
        renamed: a tensor of a chain -> its name in the ordinary network, and whether it is transposed there.
        config: of the ordinary network.
    """

    renamed: Mapping[str, tuple[str, bool]]
    config: PreTrainedConfig

    def state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state dict by the names of the ordinary network."""
        made = {}
        for name, tensor in state.items():
            own, transposed = self.renamed.get(name, (name, False))
            if own:
                made[own] = (tensor.mT if transposed else tensor).detach().clone()
        return made


def ordinary(model: PreTrainedModel) -> PreTrainedModel:
    """A compressed network as an ordinary one of its family, which needs nothing of Rankwise.

    Args:
        model: only its hidden layers are narrower, and all of one width (`uniform=True` of `choose`).

    Returns:
        A new network of the same class and with the same outputs. `save_pretrained` writes an ordinary checkpoint.

    Raises:
        ValueError: if other layers are factorised, hidden layers differ, a bias was added that the family does not
            have, or the configuration holds no number for their width.

    Example:
        >>> ordinary(small).save_pretrained("narrow/")  # doctest: +SKIP
    """
    form = _form(model)
    if isinstance(form, str):
        raise ValueError(f"this {type(model).__name__} is no ordinary one of its family: {form}")
    return as_ordinary(model, form)


def ordinary_form(model: PreTrainedModel) -> Form | None:
    """How the network is written as an ordinary one; None if it cannot be."""
    form = _form(model)
    return None if isinstance(form, str) else form


def as_ordinary(model: PreTrainedModel, form: Form, state: Mapping[str, Tensor] | None = None) -> PreTrainedModel:
    """The ordinary network, with another state of the compressed one if it is given."""
    reader: Any = type(model)
    made, told = reader.from_pretrained(
        None,
        config=copy.deepcopy(form.config),
        state_dict=form.state(model.state_dict() if state is None else state),
        dtype=model.dtype,
        output_loading_info=True,
    )
    if lost := sorted([*told["missing_keys"], *told["unexpected_keys"]]):
        raise ValueError(f"{type(model).__name__} cannot be built from its state: {lost[0]!r} does not fit")
    if model.can_generate():
        made.generation_config = copy.deepcopy(model.generation_config)
    ordinary_one: PreTrainedModel = made.to(model.device).train(model.training)
    return ordinary_one


def _form(model: PreTrainedModel) -> Form | str:
    """How the network is written as an ordinary one, or why it cannot be."""
    chains = {name: part for name, part in model.named_modules(remove_duplicate=False) if isinstance(part, LowRank)}
    if not chains:
        return "it has no factorised layer"
    for name, chain in chains.items():
        if chain.role not in (Role.HIDDEN, Role.FEEDER):
            return f"layer {name!r} is factorised by {chain.format.name}; plan with uniform=True"
    renamed: dict[str, tuple[str, bool]] = {}
    for name, chain in chains.items():
        renamed |= _renamed(name, chain)
    narrow: Shapes = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        own, transposed = renamed.get(name, (name, False))
        if own:
            narrow[own] = tuple(tensor.mT.shape if transposed else tensor.shape)
    widths = {(_kept(chain).of, len(_kept(chain).places)) for chain in chains.values() if chain.role is Role.HIDDEN}
    config = _found(model, narrow, widths)
    if isinstance(config, str):
        return config
    return Form(renamed, config)


def _renamed(name: str, chain: LowRank) -> Iterator[tuple[str, tuple[str, bool]]]:
    for index, layer in enumerate(chain):
        if isinstance(layer, Kept):
            yield f"{name}.{index}.places", ("", False)
        else:
            yield f"{name}.{index}.weight", (f"{name}.weight", chain.kind == "conv1d_hf")
            if layer.bias is not None:
                yield f"{name}.{index}.bias", (f"{name}.bias", False)


def _kept(chain: LowRank) -> Kept:
    return next(layer for layer in chain if isinstance(layer, Kept))


def _found(model: PreTrainedModel, narrow: Shapes, widths: set[tuple[int, int]]) -> PreTrainedConfig | str:
    """The configuration of the narrow network, or why there is none."""
    dense = _shapes(model, model.config)
    if added := sorted(narrow.keys() - dense.keys()):
        return f"the family has no {added[0]!r}; fit with metric='without_bias', which adds no bias"
    made: PreTrainedConfig | None = model.config
    rest = {name for name in dense if narrow.get(name) != dense[name]}
    for of in {of for of, _ in widths}:
        kept = [kept for each, kept in widths if each == of]
        # Where a number is left out, the family computes it from others (GPT-2: four times the width).
        places = [place for place in _places(model.config) if _at(model.config, place) == of]
        places = places or [place for place in _places(model.config) if _at(model.config, place) is None]
        for place, number in product(places, kept) if len(kept) <= len(places) else ():
            shapes = _shapes(model, _with(model.config, place, number))
            differs = {name for name in dense if shapes.get(name) != dense[name]}
            if differs and shapes.keys() == dense.keys() and all(shapes[name] == narrow[name] for name in differs):
                made, rest = made and _with(made, place, number), rest - differs
    if rest or made is None or _shapes(model, made) != narrow:
        sizes = ", ".join(f"{kept} of {of}" for of, kept in sorted(widths))
        which = f"no numbers of {type(model.config).__name__} make the hidden layers {sizes} wide"
        return f"{which}; plan with uniform=True, or keep the chains, as save_pretrained of this network does"
    return made


def _places(config: PreTrainedConfig) -> Iterator[Place]:
    """The numbers of a configuration and of those inside it, and what is left out."""
    general = vars(PreTrainedConfig())
    for name, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            yield from ((name, *inner) for inner in _places(value))
        elif name not in general and (value is None or type(value) is int):
            yield (name,)


def _at(config: PreTrainedConfig, place: Place) -> int | None:
    found: Any = config
    for name in place:
        found = getattr(found, name)
    number: int | None = found
    return number


def _with(config: PreTrainedConfig, place: Place, number: int) -> PreTrainedConfig | None:
    """A copy with another number; None if the configuration does not take it."""
    made = copy.deepcopy(config)
    inner = made
    for name in place[:-1]:
        inner = getattr(inner, name)
    try:
        setattr(inner, place[-1], number)
    except Exception:  # whatever a configuration says about a number that is none of its own
        return None
    return made


def _shapes(model: PreTrainedModel, config: PreTrainedConfig | None) -> Shapes:
    """The shapes of all tensors of a network with this configuration; none if it cannot be built."""
    if config is None:
        return {}
    try:
        with torch.device("meta"):
            built = type(model)(copy.deepcopy(config))
    except Exception:  # whatever a network says about a number that is none of its own
        return {}
    return {name: tuple(tensor.shape) for name, tensor in built.state_dict().items()}
