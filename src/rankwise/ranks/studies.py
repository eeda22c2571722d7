"""Optuna studies: a search for positive numbers with the least loss, stored in a file and resumed after a stop."""

from __future__ import annotations

import logging
import math
import random
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ..files import digest, shown, told

if TYPE_CHECKING:
    from optuna import Study

_SEAL, _LOSS = "sha256", "loss"  # the digest is of the study's identity, or of a trial's number, parameters and loss
# What Optuna raises for a file with rows that it did not write.
_BROKEN = (KeyError, TypeError, AttributeError, AssertionError, sqlite3.Error)
# Errors of the same candidates differ by rounding between machines and thread counts; other networks differ far more.
SAME = 1e-3

_log = logging.getLogger("rankwise")


@contextmanager
def open_study(path: str, identity: Mapping[str, Any]) -> Iterator[Study]:
    """A new study, or the one in a file; trials that a stop left unfinished do not count.

    Args:
        path: an SQLite file, created if missing; "" for a study in memory.
        identity: what the study is about, in plain values; stored with a new one.

    Raises:
        ValueError: for a file that is not a study, or a study of something else, naming what differs.
    """
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    broken = (SQLAlchemyError, optuna.exceptions.OptunaError, *_BROKEN)
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = None
    try:
        if path and not Path(path).absolute().parent.is_dir():
            raise ValueError(f"study {path!r}: there is no folder {str(Path(path).parent)!r}; make it first")
        with told(f"study {path!r} is not a study, or damaged", "name another", *broken):
            _check_pages(path)
            storage = optuna.storages.RDBStorage(f"sqlite:///{path}") if path else optuna.storages.InMemoryStorage()
            study = optuna.create_study(storage=storage, study_name="rankwise", load_if_exists=True)
            known = study.user_attrs.get("identity")
            if known is not None and study.user_attrs.get(_SEAL) != digest(known):
                raise ValueError("what it is about is not what its sha256 says")
            _settle(study)
        if known is None:
            study.set_user_attr("identity", dict(identity))
            study.set_user_attr(_SEAL, digest(study.user_attrs["identity"]))
        elif different := [name for name, value in identity.items() if not _same(known.get(name), value)]:
            raise ValueError(
                f"study {path!r} is of other {' and '.join(different)} than asked for; name another file, or ask for "
                f"the same"
            )
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

    Every proposal is seeded by the number of finished trials, so a resumed study equals one that was never stopped.

    Args:
        loss: function of numbers by name.
        most: the largest number.
        trials: number of finished trials at the end, with those of the study.
        startup: trials before the process proposes.
        seed: random seed of the proposals.

    Returns:
        The numbers with the least loss of all trials.

    Raises:
        ValueError: if a loss is not finite; the trial then counts as unfinished.
    """
    import optuna

    space: dict[str, Any] = {name: optuna.distributions.FloatDistribution(1 / most, most, log=True) for name in first}
    finished = len(study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,)))
    for number in range(finished, trials):
        own = random.Random(f"{seed} {number}").getrandbits(32)  # strings give the same seed on every machine
        study.sampler = optuna.samplers.GPSampler(seed=own, n_startup_trials=startup)
        if number == 0 and not study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.WAITING,)):
            study.enqueue_trial(dict(first))
        trial = study.ask(space)
        value = loss(trial.params)
        if not math.isfinite(value):
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            raise ValueError(f"the loss of trial {number} is {value}; evaluate must give finite numbers")
        trial.set_user_attr(_SEAL, digest([trial.number, trial.params, float(value)]))
        trial.set_user_attr(_LOSS, float(value))
        study.tell(trial, value)
        _log.info("trial %d of %d: loss %.4g, best %.4g", number + 1, trials, value, study.best_value)
    return dict(study.best_params)


def _check_pages(path: str) -> None:
    """Refuse a file that is not an intact database, before anything is written to it."""
    if path and Path(path).is_file() and Path(path).stat().st_size:
        with closing(sqlite3.connect(f"file:{quote(str(Path(path).absolute()))}?mode=ro", uri=True)) as database:
            (found,) = database.execute("PRAGMA integrity_check(1)").fetchone()
        if found != "ok":
            raise ValueError(f"SQLite says {shown(found)}")


def _settle(study: Study) -> None:
    """Check finished trials against their sha256; end trials that a stop left running, as failed if without a loss."""
    import optuna

    states = optuna.trial.TrialState
    for trial in study.get_trials(deepcopy=False):
        loss = trial.value if trial.state == states.COMPLETE else trial.user_attrs.get(_LOSS)
        if (loss is not None or trial.state == states.COMPLETE) and (
            trial.user_attrs.get(_SEAL) != digest([trial.number, trial.params, loss])
        ):
            raise ValueError(f"trial {trial.number} is not what its sha256 says")
        if loss is not None and trial.state == states.FAIL:
            raise ValueError(f"trial {trial.number} has a loss, and is said to have failed")
        if trial.state == states.RUNNING:
            study.tell(trial.number, loss, state=states.FAIL if loss is None else states.COMPLETE)


def _same(known: Any, value: Any) -> bool:
    """Whether a stored value is the one asked for; numbers up to rounding."""
    if isinstance(value, float) and isinstance(known, (int, float)):
        return math.isclose(known, value, rel_tol=SAME, abs_tol=SAME)
    if isinstance(value, list) and isinstance(known, list):
        return len(known) == len(value) and all(map(_same, known, value))
    if isinstance(value, dict) and isinstance(known, dict):
        return known.keys() == value.keys() and all(_same(known[name], each) for name, each in value.items())
    return bool(known == value)
