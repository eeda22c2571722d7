"""Language models whose cache of keys and values is among the inputs and outputs of a file.

Letters: N samples, T new tokens, P tokens in the cache, H heads, D size
of a head.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..running.arguments import fresh
from .axes import Capture
from .compare import FIXED_BATCH, Arguments, first_line, outputs, tensors_in

Pair = tuple[Tensor, Tensor]
# What a forward must take for a cache to be passed from call to call.
_TAKEN = ("input_ids", "attention_mask", "past_key_values", "use_cache")
_PARTS = ("keys", "values")
STEPS = 3  # tokens that are generated one by one in the check


class Cached(nn.Module):
    """A causal language model whose cache is given and returned as tensors.

    Args:
        model: its forward takes and returns a cache that is a sequence of layers with keys and values.
        example: its arguments, with tokens N x T.

    Raises:
        ValueError: if the network has no such cache.
    """

    def __init__(self, model: nn.Module, example: Arguments) -> None:
        super().__init__()
        self.model = model
        parameters = inspect.signature(model.forward).parameters
        named = type(model).__name__
        if lost := [name for name in _TAKEN if name not in parameters]:
            raise ValueError(f"{named} has no cache, its forward takes no {lost[0]}; export it with cache=False")
        args, kwargs = example
        self.tokens_NT: Tensor = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        if self.tokens_NT.shape[1] < STEPS:
            raise ValueError(f"the example has {self.tokens_NT.shape[1]} tokens; give {STEPS} or more")
        self.placed = "position_ids" in parameters
        cache: Any = getattr(model(*args, **{**kwargs, "use_cache": True}), "past_key_values", None)
        if not isinstance(getattr(cache, "layers", None), Sequence) or not all(map(_is_plain, cache.layers)):
            raise ValueError(
                f"{named} has no cache of keys and values alone, but {type(cache).__name__}; export it with cache=False"
            )
        self.kind: Any = type(cache)
        self.layers = len(cache.layers)
        self.sizes = [(each.keys.shape[1::2], each.values.shape[1::2]) for each in cache.layers]  # H and D

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, past: Sequence[Pair], *position_ids: Tensor
    ) -> tuple[Tensor, list[Pair]]:
        """Logits N x T x words, and all keys and values, each N x H x (P + T) x D.

        Args:
            input_ids: N x T.
            attention_mask: N x (P + T).
            past: keys and values of each layer, N x H x P x D.
            position_ids: N x T, where the network takes them.
        """
        given = dict(zip(("position_ids",), position_ids, strict=False))
        found = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=self.kind(past),
            use_cache=True,
            **given,
        )
        return found.logits, [(layer.keys, layer.values) for layer in found.past_key_values.layers]

    @property
    def names(self) -> tuple[list[str], list[str]]:
        """Names of inputs and outputs, as other exporters of language models choose them."""
        layers = [f"{index}.{part}" for index in range(self.layers) for part in ("key", "value")]
        first = ["input_ids", "attention_mask"]
        return (
            [*first, *(f"past_key_values.{name}" for name in layers), *["position_ids"] * self.placed],
            ["logits", *(f"present.{name}" for name in layers)],
        )

    def given(self, tokens_NT: Tensor, past: Sequence[Pair] | None = None, hidden: int = 0) -> Arguments:
        """Arguments for new tokens after a cache, of whose first tokens some are hidden, as padding is."""
        if past is None:
            past = [self._empty(len(tokens_NT), sizes) for sizes in self.sizes]
        seen = past[0][0].shape[2]
        mask = torch.ones(len(tokens_NT), seen + tokens_NT.shape[1], dtype=torch.int64, device=tokens_NT.device)
        mask[0, :hidden] = 0
        places = (mask.cumsum(1) - 1).clamp_min(0)[:, seen:]
        return (tokens_NT, mask, list(past), *[places] * self.placed), {}

    def _empty(self, samples: int, sizes: tuple[Sequence[int], Sequence[int]]) -> Pair:
        like = next(each for each in self.model.parameters() if each.is_floating_point())
        keys, values = (like.new_empty(samples, heads, 0, size) for heads, size in sizes)
        return keys, values


def capture_cached(model: Cached, dynamic_batch: bool) -> Capture:
    """Capture a language model with its cache, open in N (if asked), T and P.

    The file is checked on the example without a cache, on tokens one by one after it, and on several at once after a
    padded start.

    Raises:
        ValueError: if the network cannot be captured.
    """
    tokens, auto = model.tokens_NT, torch.export.Dim.AUTO
    traced = tokens.repeat(2, 1) if dynamic_batch and len(tokens) == 1 else tokens  # 1 would be taken for a constant
    with torch.no_grad():
        _, past = model(*model.given(traced)[0])
    args, kwargs = fresh(model.given(traced[:, 1:], past))  # guards of views cannot be converted
    batch = {0: auto} if dynamic_batch else {}
    shapes = torch.export.ShapesCollection()
    for each in tensors_in(args):
        shapes[each] = {**batch, (2 if each.dim() == 4 else 1): auto}
    try:
        dynamic = shapes.dynamic_shapes(model, args, kwargs)
        program = torch.export.export(model, args, kwargs, dynamic_shapes=dynamic, strict=False)
    except Exception as error:
        raise ValueError(
            f"torch.export cannot capture {type(model.model).__name__} with its cache: {first_line(error)}; export it "
            f"with cache=False"
        ) from error
    return Capture(program=program, checks=tuple(_checks(model, dynamic_batch)), further=False)


def _checks(model: Cached, dynamic_batch: bool) -> Iterator[tuple[str, Arguments]]:
    tokens = model.tokens_NT
    given = model.given(tokens)
    yield f"{tokens.shape[1]} tokens and no cache", given
    for step in range(STEPS):
        given = model.given(tokens[:, step : step + 1], _present(model, given))
        yield f"one token and a cache of {tokens.shape[1] + step}", given
    more = tokens.repeat(2, 1) if dynamic_batch else tokens
    start = _present(model, model.given(more[:, :2], hidden=1))
    yield f"batch size {len(more)}, {STEPS} tokens and a cache of 2", model.given(more[:, :STEPS], start, hidden=1)


def _present(model: Cached, given: Arguments) -> list[Pair]:
    _, *halves = outputs(model, given, "the example", FIXED_BATCH)
    device = model.tokens_NT.device
    return [(keys.to(device), values.to(device)) for keys, values in zip(halves[::2], halves[1::2], strict=True)]


def _is_plain(layer: Any) -> bool:
    return all(isinstance(getattr(layer, part, None), Tensor) and getattr(layer, part).dim() == 4 for part in _PARTS)
