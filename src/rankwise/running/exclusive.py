"""One process, many threads: verbs take turns, and never record a forward pass of another thread.

Random states, precision, thread counts and PyTorch functions patched by tracing belong to the whole process. Whoever
runs a network or changes such state holds the one lock of this file (`exclusive`). Plain forward passes of other
threads need no lock; if they reach a hook of the running verb, the verb ends with an error (`own_thread`).
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any, NamedTuple, ParamSpec, TypeVar

from torch import Tensor, nn

from .state import storage_of

logger = logging.getLogger("rankwise")

P = ParamSpec("P")
R = TypeVar("R")

ANNOUNCED = 60.0  # seconds between two messages about waiting
_Key = tuple[str, int]


class OtherThreadError(ValueError):
    """Two threads work on one network."""


class _Claim(NamedTuple):
    """Who works on a part of a network."""

    thread: int
    words: str


class _Process:
    """State shared by all threads."""

    def __init__(self) -> None:
        self.turn = threading.RLock()
        self.table = threading.Lock()  # of the claims
        self.claims: dict[_Key, _Claim] = {}
        self.running: list[_Claim] = []  # verbs that hold the lock, one inside the other
        self.intruders: dict[str, nn.Module] = {}  # name of another thread -> the verb's module that it ran


_process = _Process()


def _after_fork() -> None:
    """Drop the lock in a child process: the thread that would release it exists only in the parent.

    A fork from inside a verb keeps it: the forking thread goes on in the child and releases it itself.
    """
    global _process
    if not (_process.running and _process.running[0].thread == threading.get_ident()):
        _process = _Process()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def exclusive(verb: Callable[P, R]) -> Callable[P, R]:
    """Give a function sole use of the process's state and of the networks among its arguments.

    Calls from several threads run one after another; nested calls, as from a user's callback, run at once. While a call
    has a network, another thread's call cannot have it, or one that shares a module or memory with it.

    Args:
        verb: any function. Its networks are arguments, items of a list, tuple or dictionary argument, or the `model`
            attribute of an argument. It then raises `OtherThreadError`, a `ValueError`, where another thread has, or
            runs, one of them.

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
    """A hook of a module that does nothing in other threads than the one that made it.

    If another thread reaches it, the running verb ends with an `OtherThreadError`: that thread's inputs are not
    calibration data, and a network that runs its parts in threads cannot be recorded as a whole.
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


def hooked(model: nn.Module, before: Callable[..., None], after: Callable[..., None]) -> ExitStack:
    """Hook every module's own call, for this thread; closing the stack removes the hooks.

    Args:
        before: called with module, args and kwargs.
        after: called with module, args, kwargs and output, which is None if the module raised. It runs before the
            user's hooks, so that their work does not count as the module's.
    """
    stack, before, after = ExitStack(), own_thread(before), own_thread(after)
    for module in model.modules():
        stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
        hook = module.register_forward_hook(after, prepend=True, with_kwargs=True, always_call=True)
        stack.callback(hook.remove)
    return stack


def _models(values: Iterable[Any]) -> Iterator[nn.Module]:
    """The networks among some arguments."""
    for value in values:
        if type(value) is dict:
            parts = list(value.values())
        elif type(value) in (list, tuple):  # iterating over a user's own class may start work
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
        # Each list is copied at once: the thread that has the network may change these tables.
        inside = [(name, part) for name, part in list(module._modules.items()) if part is not None]
        left += [(f"{path}.{name}".lstrip("."), part) for name, part in inside]
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None and (key := _memory(tensor)):
                yield key, f"{path}.{name}".lstrip(".")


def _memory(tensor: Tensor) -> _Key | None:
    if type(tensor) not in (Tensor, nn.Parameter):  # lazy or sharded: refused later, with a message of its own
        return ("tensor", id(tensor))
    return ("memory", place) if (place := storage_of(tensor)) else None


@contextmanager
def _claimed(models: Iterable[nn.Module], claim: _Claim) -> Iterator[None]:
    """Reserve the parts of networks for one thread."""
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
    """Hold the lock; raise if another thread ran one of the networks meanwhile."""
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
        if process.intruders:  # the likely cause of the error
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
