"""One process, many threads: verbs take turns, and nothing that another thread runs is taken for theirs.

Random states, precision, thread counts and what tracing replaces in PyTorch belong to the whole process. Whoever runs a
network or touches such a state holds the one lock of this file (`exclusive`). Plain forward passes of other threads
need no lock; where they reach a hook of the verb that runs, the verb ends with an error (`own_thread`).
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, NamedTuple, ParamSpec, TypeVar

from torch import Tensor, nn

from .state import storage_of

logger = logging.getLogger("rankwise")

P = ParamSpec("P")
R = TypeVar("R")

ANNOUNCED = 60.0  # seconds between two words about waiting
_Key = tuple[str, int]


class OtherThreadError(ValueError):
    """Two threads work on one network."""


class _Claim(NamedTuple):
    """What works on a part of a network."""

    thread: int
    words: str


class _Process:
    """What all threads share."""

    def __init__(self) -> None:
        self.turn = threading.RLock()
        self.table = threading.Lock()  # of the claims
        self.claims: dict[_Key, _Claim] = {}
        self.running: list[_Claim] = []  # verbs that hold the lock, one inside the other
        self.intruders: dict[str, nn.Module] = {}  # thread, in words -> the module of ours that it ran


_process = _Process()


def _after_fork() -> None:
    """In a child no other thread is left that could give the lock back; the one that forked goes on holding it."""
    global _process
    if not (_process.running and _process.running[0].thread == threading.get_ident()):
        _process = _Process()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def exclusive(verb: Callable[P, R]) -> Callable[P, R]:
    """Let a function have the process's state, and the networks among its arguments, to itself.

    Calls from several threads follow one another; calls from within, as of a user's callback, go on at once. Networks
    of one call, with all that share a module or memory with them, cannot be given to another thread's call.

    Args:
        verb: any function. Networks are seen that are arguments themselves, stand in a list, tuple or dictionary that
            is one, or are the `model` of one.

    Returns:
        The same function. It raises `OtherThreadError`, a `ValueError`, where another thread has, or runs, a network.

    Example:
        >>> @exclusive
        ... def count(model: nn.Module) -> int:
        ...     return len(list(model.parameters()))
        >>> count(nn.Linear(2, 2))
        2
    """

    @wraps(verb)
    def taking_turns(*args: P.args, **kwargs: P.kwargs) -> R:
        models = list(_models((*args, *kwargs.values())))
        claim = _Claim(threading.get_ident(), f"{verb.__qualname__} in thread {threading.current_thread().name!r}")
        with _claimed(models, claim), _turn(models, claim):
            return verb(*args, **kwargs)

    return taking_turns


def own_thread(hook: Callable[..., Any]) -> Callable[..., Any]:
    """A hook of a module that does nothing in another thread than the one that made it.

    The verb that runs ends with an `OtherThreadError` then: inputs that another thread feeds to the network are no
    calibration data, and what a network runs in threads of its own is not seen as a whole.
    """
    thread = threading.get_ident()

    @wraps(hook)
    def kept(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() == thread:
            return hook(module, *args, **kwargs)
        if _process.running and _process.running[0].thread == thread:
            _process.intruders.setdefault(threading.current_thread().name, module)
        return None

    return kept


def _models(values: Iterable[Any]) -> Iterator[nn.Module]:
    """The networks among some arguments."""
    for value in values:
        if type(value) is dict:
            parts = list(value.values())
        elif type(value) in (list, tuple):  # a user's own class may compute what it is iterated for
            parts = list(value)
        else:
            parts = [value, getattr(value, "__dict__", {}).get("model")]
        yield from (part for part in parts if isinstance(part, nn.Module))


def _parts(model: nn.Module) -> Iterator[tuple[_Key, str]]:
    """What another network must not share with this one: modules, parameters and buffers, each with its name."""
    seen: set[int] = set()
    left = [("", model)]
    while left:
        path, module = left.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        yield ("module", id(module)), path
        # Each list is made at once: the thread that has the network may change these tables.
        inside = [(name, part) for name, part in list(module._modules.items()) if part is not None]
        left += [(f"{path}.{name}".lstrip("."), part) for name, part in inside]
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None and (key := _memory(tensor)):
                yield key, f"{path}.{name}".lstrip(".")


def _memory(tensor: Tensor) -> _Key | None:
    if type(tensor) not in (Tensor, nn.Parameter):  # lazy or sharded: refused later, with words of its own
        return ("tensor", id(tensor))
    return ("memory", place) if (place := storage_of(tensor)) else None


@contextmanager
def _claimed(models: Iterable[nn.Module], claim: _Claim) -> Iterator[None]:
    """Have the parts of networks for one thread."""
    process, parts = _process, dict(part for model in models for part in _parts(model))
    with process.table:
        for key, name in parts.items():
            other = process.claims.get(key, claim)
            if other.thread != claim.thread:
                raise OtherThreadError(
                    f"{claim.words} was given a network that {other.words} is working on"
                    f"{f' (both have {name!r})' if name else ''}; wait until that has ended, or give each thread a "
                    "network of its own: copy.deepcopy(model)"
                )
        own = parts.keys() - process.claims.keys()
        process.claims.update(dict.fromkeys(own, claim))
    try:
        yield
    finally:
        with process.table:
            for key in own:
                process.claims.pop(key, None)


@contextmanager
def _turn(models: Iterable[nn.Module], claim: _Claim) -> Iterator[None]:
    """Hold the lock; where another thread ran a network meanwhile, end with an error."""
    process = _process
    while not process.turn.acquire(timeout=ANNOUNCED):
        held = next(iter(process.running), None)
        logger.warning("%s has waited %.0f s for %s", claim.words, ANNOUNCED, held.words if held else "its turn")
    process.running.append(claim)
    try:
        yield
    except OtherThreadError:
        raise
    except Exception as error:
        if process.intruders:  # which is why it failed
            raise _intruded(models) from error
        raise
    else:
        if process.intruders:
            raise _intruded(models)
    finally:
        process.running.pop()
        if not process.running:
            process.intruders.clear()
        process.turn.release()


def _intruded(models: Iterable[nn.Module]) -> OtherThreadError:
    thread, module = next(iter(_process.intruders.items()))
    names = {id(part): name for model in models for name, part in model.named_modules()}
    name = names.get(id(module))
    what = f"{type(module).__name__}{f' ({name!r})' if name else ''}"
    verb = _process.running[0].words
    return OtherThreadError(
        f"thread {thread!r} ran {what} of the network that {verb} was running; nothing of that was recorded. Let other "
        "threads leave the network alone until then, or give them copy.deepcopy(model); a network whose "
        "forward runs parts of it in threads of its own cannot be worked on, have it run them one after another"
    )
