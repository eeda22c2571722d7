"""Studies of Optuna: a search for positive numbers with the least loss, kept in a file, gone on with after a stop."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna import Study

# Errors of the same candidates differ by rounding between machines and thread counts, between networks by far more.
SAME = 1e-3

_log = logging.getLogger("rankwise")


@contextmanager
def open_study(path: str, identity: Mapping[str, Any]) -> Iterator[Study]:
    """A new study, or the one in a file; trials that a stop left unfinished do not count.

    Args:
        path: an SQLite file, made where there is none; "" for a study in memory.
        identity: what the study is about, as plain values; stored with a new one.

    Raises:
        ValueError: for a file that is no study, or one with another identity, naming what differs.
    """
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = None
    try:
        if path and not Path(path).absolute().parent.is_dir():
            raise ValueError(f"study {path!r}: there is no folder {str(Path(path).parent)!r}; make it first")
        try:
            storage = optuna.storages.RDBStorage(f"sqlite:///{path}") if path else optuna.storages.InMemoryStorage()
            study = optuna.create_study(storage=storage, study_name="rankwise", load_if_exists=True)
            known = study.user_attrs.get("identity")
        except SQLAlchemyError as error:
            raise ValueError(f"study {path!r} is no study file: {str(error).splitlines()[0]}; name another") from error
        if known is None:
            study.set_user_attr("identity", dict(identity))
        elif different := [name for name, value in identity.items() if not _same(known.get(name), value)]:
            raise ValueError(
                f"study {path!r} is of other {' and '.join(different)} than asked for; name another file, or ask for "
                f"the same"
            )
        for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        yield study
    finally:
        optuna.logging.set_verbosity(verbosity)
        if path and storage is not None:
            storage.remove_session()


def minimise(
    study: Study,
    loss: Callable[[Mapping[str, float]], float],
    first: Mapping[str, float],
    *,
    most: float,
    trials: int,
    startup: int,
    seed: int,
) -> dict[str, float]:
    """`min loss(x)` over `1 / most <= x <= most`: a Gaussian process on `log x`, expected improvement.

    Every proposal is seeded by the number of finished trials, so that a study gone on with is the study without a stop.

    Args:
        study: holds the trials so far.
        loss: of numbers by name.
        first: the first trial.
        most: the largest number.
        trials: finished ones in all, those of the study included.
        startup: trials before the process proposes.
        seed: of the proposals.

    Returns:
        The numbers with the least loss of all trials.

    Raises:
        ValueError: if a loss is no finite number; the trial counts as unfinished.
    """
    import optuna

    space: dict[str, Any] = {name: optuna.distributions.FloatDistribution(1 / most, most, log=True) for name in first}
    finished = len(study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,)))
    for number in range(finished, trials):
        own = random.Random(f"{seed} {number}").getrandbits(32)  # a text seeds alike on every machine
        study.sampler = optuna.samplers.GPSampler(seed=own, n_startup_trials=startup)
        if number == 0 and not study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.WAITING,)):
            study.enqueue_trial(dict(first))
        trial = study.ask(space)
        value = loss(trial.params)
        if not math.isfinite(value):
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            raise ValueError(f"the loss of trial {number} is {value}; evaluate must give finite numbers")
        study.tell(trial, value)
        _log.info("trial %d of %d: loss %.4g, best %.4g", number + 1, trials, value, study.best_value)
    return dict(study.best_params)


def _same(known: Any, value: Any) -> bool:
    """Whether a stored value is the one asked for; numbers up to rounding."""
    if isinstance(value, float) and isinstance(known, (int, float)):
        return math.isclose(known, value, rel_tol=SAME, abs_tol=SAME)
    if isinstance(value, list) and isinstance(known, list):
        return len(known) == len(value) and all(map(_same, known, value))
    if isinstance(value, dict) and isinstance(known, dict):
        return known.keys() == value.keys() and all(_same(known[name], each) for name, each in value.items())
    return bool(known == value)
