"""How fast language models read and write, side by side, and what their cache of keys and values takes.

Letters: N rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..latency import Latency, Ratio
from ..running.guards import unwrap
from ..running.pristine import evaluating
from ..running.verbs import verb
from ..timing.clock import synchronised, timed, torch_threads
from ..timing.load import watched

ROUNDS = 8
# Of objects within objects, where a cache is searched for tensors.
DEEPEST = 6


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds of one network, and the tokens that it read or wrote in them.

    Attributes:
        tokens: of all rows.
        seconds: for all of them.
    """

    tokens: int
    seconds: Latency

    @property
    def per_second(self) -> float:
        """Tokens per second, by the median."""
        return self.tokens / self.seconds.median


@dataclass(frozen=True, kw_only=True)
class Generation:
    """How fast one network reads a prompt (prefill), and writes token by token after it (decode).

    Attributes:
        cache_bytes: of keys and values after the prompt and all new tokens but the last, which is not read again.
    """

    prefill: Pace
    decode: Pace
    cache_bytes: int

    def faster(self, dense: Generation) -> tuple[Ratio, Ratio]:
        """How much faster than another network it reads and writes, from paired rounds of the same call."""
        return dense.prefill.seconds / self.prefill.seconds, dense.decode.seconds / self.decode.seconds


@verb
def generation(
    models: Mapping[str, nn.Module],
    prompt: Tensor,
    *,
    new: int = 16,
    threads: int = 1,
    rounds: int = ROUNDS,
) -> dict[str, Generation]:
    """Time the reading of a prompt and the greedy writing after it, the networks in turns.

    Every round runs each network once, first all read, then all write: the ratio stays right when the machine slows
    down. The cache that a network writes with is made anew before each of its turns, untimed.

    Args:
        models: language models of transformers by name, which take `use_cache` and `past_key_values`.
        prompt: tokens, N x T; the rows are read and written together.
        new: tokens to write in each row.
        threads: of the CPU; torch's own setting is restored.
        rounds: measured rounds, at least 1; intervals need six.

    Raises:
        ValueError: for sizes out of range, or a network that returns no cache.

    Example:
        >>> found = generation({"dense": model, "small": small}, tokens)  # doctest: +SKIP
        >>> print(found["small"].faster(found["dense"])[1])  # doctest: +SKIP
        1.70x faster (1.66 to 1.75)
    """
    if not models:
        raise ValueError("models is empty; name at least one model")
    for name, value in (("new", new), ("rounds", rounds), ("threads", threads)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    if prompt.dim() != 2 or not prompt.numel():
        raise ValueError(f"the prompt has shape {list(prompt.shape)}; it must be rows x tokens, at least one of each")
    writers = {name: _Writer(name, unwrap(model), prompt, new) for name, model in models.items()}
    with ExitStack() as stack:
        for model in models.values():
            stack.enter_context(evaluating(model))
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch_threads(threads))
        stack.enter_context(watched())
        reading = timed({name: each.run(each.read) for name, each in writers.items()}, rounds=rounds, warmup=1)
        runs = {name: each.run(each.write) for name, each in writers.items()}
        writing = timed(runs, rounds=rounds, warmup=1, before={name: each.read for name, each in writers.items()})
        return {
            name: Generation(
                prefill=Pace(tokens=prompt.numel(), seconds=reading[name]),
                decode=Pace(tokens=len(prompt) * new, seconds=writing[name]),
                cache_bytes=_held(each.cache),
            )
            for name, each in writers.items()
        }


@verb
def cache_bytes(model: nn.Module, tokens: Tensor) -> int:
    """Bytes of the keys and values that a language model keeps after it has read tokens, counted in its real cache.

    Args:
        model: of transformers; it takes `use_cache`.
        tokens: N x T.

    Raises:
        ValueError: if it returns no cache.
    """
    writer = _Writer(type(model).__name__, unwrap(model), tokens, 1)
    with evaluating(model), torch.no_grad():
        writer.read()
    return _held(writer.cache)


class _Writer:
    """One network on its way through a prompt and the tokens after it."""

    def __init__(self, name: str, model: nn.Module, prompt: Tensor, new: int) -> None:
        self.name, self.model, self.new = name, model, new
        self.device = next(model.parameters()).device
        self.prompt = prompt.to(self.device)
        self.cache: Any = None
        self.next = self.prompt[:, :1]

    def run(self, part: Callable[[], None]) -> Callable[[], object]:
        """A part that ends when its work is done."""
        return synchronised(part, self.device)

    def read(self) -> None:
        """Read the prompt into a new cache."""
        self.cache = None
        self._step(self.prompt)

    def write(self) -> None:
        """Write the new tokens, each after the one before."""
        for _ in range(self.new):
            self._step(self.next)

    def _step(self, tokens: Tensor) -> None:
        output = self.model(input_ids=tokens, past_key_values=self.cache, use_cache=True)
        self.cache = getattr(output, "past_key_values", None)
        if self.cache is None:
            raise ValueError(f"{self.name} returns no cache of keys and values; only networks that generate have one")
        self.next = output.logits[:, -1:].argmax(-1)


def _held(cache: Any) -> int:
    """Bytes of the memory blocks that the tensors of a cache lie in, each counted once."""
    blocks = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in _tensors(cache, DEEPEST)}
    return sum(blocks.values())


def _tensors(value: Any, deepest: int) -> Iterator[Tensor]:
    """Every tensor in containers and attributes; caches are objects of many classes."""
    if isinstance(value, Tensor):
        yield value
        return
    if deepest == 0 or isinstance(value, (str, bytes, int, float, type, nn.Module)):
        return
    if isinstance(value, Mapping):
        parts = list(value.values())
    elif isinstance(value, (tuple, list)):
        parts = list(value)
    else:
        parts = list(vars(value).values()) if hasattr(value, "__dict__") else []
    for part in parts:
        yield from _tensors(part, deepest - 1)
