"""Values on the command line as the library takes them: budgets, rules, ranks, shares."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from ..names import FORMATS, RULES, check_name, read_format

if TYPE_CHECKING:
    from ..ranks import Rule

BUDGETS = ("macs", "params", "linear", "bytes", "latency")
UNITS = {"k": 1e3, "m": 1e6, "g": 1e9}


def check_names(rule: str, floor_rule: str | None, formats: Iterable[str], pins: Mapping[str, str]) -> None:
    """Refuse rules and formats that do not exist, before torch is imported."""
    for option, name in (("--rule", rule), ("--floor-rule", floor_rule)):
        if name is not None:
            check_name("rule", name.partition(":")[0], sorted(RULES), f"{option} {name!r}: ")
    for name in formats:
        read_format(name, ["auto", *sorted(FORMATS)], f"--formats {','.join(formats)!r}: ")
    for pattern, wanted in pins.items():
        format = wanted.rpartition(":")[0] or wanted
        read_format(format, ["dense", *sorted(FORMATS)], f"--pin {pattern}={wanted}: ")


def parse_budgets(texts: Iterable[str] | None) -> dict[str, float | int] | None:
    """All budgets, each named once; None for none."""
    budgets: dict[str, float | int] = {}
    for text in texts or ():
        ((name, amount),) = parse_keep(text).items()
        if name in budgets:
            raise ValueError(f"--keep {text!r}: there is a {name} budget already; keep one of them")
        budgets[name] = amount
    return budgets or None


def parse_shares(along: str, at: str) -> list[dict[str, float | int]]:
    """`macs` and `0.5,0.7` as budgets, the largest first."""
    budgets = [parse_keep(f"{along}={share}") for share in parse_names(at, "--at")]
    if not all(isinstance(budget[along], float) for budget in budgets):
        raise ValueError(f"--at {at!r}: shares lie above 0 and are at most 1.0")
    return sorted(budgets, key=lambda budget: -budget[along])


def parse_rule(text: str) -> Rule:
    """The rule of a name with settings after a colon."""
    from ..ranks import get_rule

    try:
        return get_rule(text)
    except ValueError as error:
        raise ValueError(f"--rule {text!r}: {error}") from None


def parse_floor(text: str | None) -> Rule | None:
    """The rule of a name, which must be able to be a floor."""
    from ..ranks import get_floor

    try:
        return get_floor(text)
    except ValueError as error:
        raise ValueError(f"--floor-rule {text!r}: {error}") from None


def parse_keep(text: str) -> dict[str, float | int]:
    """`macs=0.5`, `macs=50%`, `params=1.5M`: a fraction of the dense count as a float, an absolute number as an int.

    `latency=8ms` becomes a number of microseconds.
    """
    name, _, value = text.partition("=")
    if name not in BUDGETS or not value:
        examples = ", ".join(f"{budget}=0.5" for budget in BUDGETS)
        raise ValueError(f"--keep {text!r}: write {examples} or an absolute number")
    return {name: (_time if name == "latency" else _amount)(text, value.strip().lower())}


def _time(text: str, value: str) -> float | int:
    from ..planning.units import microseconds

    if value.endswith("s"):
        try:
            return microseconds(value)
        except ValueError as error:
            raise ValueError(f"--keep {text!r}: {error}") from None
    if value.isdecimal():
        raise ValueError(f"--keep {text!r}: a latency is a fraction (0.6, 60%) or a time with its unit (8ms, 800us)")
    return _amount(text, value)


def _amount(text: str, value: str) -> float | int:
    try:
        if value.endswith("%"):
            amount: float | int = float(value[:-1]) / 100
        elif value[-1:] in UNITS:
            amount = round(float(value[:-1]) * UNITS[value[-1]])
        else:
            amount = float(value) if "." in value or "e" in value else int(value)
    except (ValueError, OverflowError):
        raise ValueError(f"--keep {text!r}: {value!r} is not a number such as 0.5, 50% or 1.5M") from None
    if not amount > 0 or (isinstance(amount, float) and amount > 1):
        raise ValueError(
            f"--keep {text!r}: a fraction lies above 0 and is at most 1.0; an absolute number has no decimal point"
        )
    if isinstance(amount, int) and amount <= 100:
        raise ValueError(
            f"--keep {text!r} is fewer than any network has; write {amount}% for a share"
            + (", or 1.0 for everything" if amount == 1 else "")
        )
    return amount


def parse_names(text: str, option: str) -> tuple[str, ...]:
    """`svd,tucker2` as a tuple."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise ValueError(f"{option} names nothing")
    return names


def parse_formats(text: str) -> tuple[str, ...]:
    """`svd,tt:outputs=8x16x6,inputs=4x16x12` as a tuple: a setting belongs to the format before it."""
    names: list[str] = []
    for part in parse_names(text, "--formats"):
        if names and re.fullmatch(r"\w+=[^:]*", part):
            names[-1] += ("," if ":" in names[-1] else ":") + part
        else:
            names.append(part)
    return tuple(names)


def parse_ranks(texts: Iterable[str] | None, option: str) -> dict[str, int | float]:
    """`layer4.*=32` as `{"layer4.*": 32}`, `layer4.*=0.5` as a fraction of the largest rank."""
    ranks: dict[str, int | float] = {}
    for text in texts or ():
        pattern, value = _assignment(text, option, "layer4.*=32, or layer4.*=0.5 for half of the largest rank")
        try:
            ranks[pattern] = float(value) if "." in value else int(value)
        except ValueError:
            raise ValueError(
                f"{option} {text!r}: {value!r} is not a rank such as 32, or a fraction such as 0.5"
            ) from None
    return ranks


def _assignment(text: str, option: str, example: str) -> tuple[str, str]:
    # A pattern may be a regular expression with "=" in it; a value never has one.
    pattern, _, value = text.rpartition("=")
    if not pattern or not value:
        raise ValueError(f"{option} {text!r}: write {example}")
    return pattern, value


def parse_pins(texts: Iterable[str] | None) -> dict[str, str]:
    """`fc=svd:64` as `{"fc": "svd:64"}`, `fc=stt:slices=4:8,8,4` as `{"fc": "stt:slices=4:8,8,4"}`."""
    return dict(map(_pin, texts or ()))


def _pin(text: str) -> tuple[str, str]:
    # A pattern and a format's settings may hold "=": the pin begins after the last one before dense or a format.
    known = "|".join(FORMATS)
    for form in (rf"(.+)=(dense|(?:{known}):.+)", r"(.+?)=(\w+:.+)"):  # an unknown format is told as such
        if found := re.fullmatch(form, text):
            return found[1], found[2]
    return _assignment(text, "--pin", "fc=svd:64, conv1=tucker2:16,16, fc=slr:k=64,sr=0.5,rr=0.5 or conv1=dense")


def parse_round_to(text: str) -> int | str:
    """A number, or `auto`."""
    if text == "auto":
        return text
    if not text.isdigit() or int(text) < 1:
        raise ValueError(f"--round-to {text!r} is neither auto nor a number of at least 1")
    return int(text)


def parse_shrink(text: str | None) -> float | str | None:
    """A share from 0 to 1, `auto`, or None."""
    if text is None or text == "auto":
        return text
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ValueError(f"--shrink {text!r} is neither auto nor a number from 0 (statistics) to 1 (weight metric)")
    return share
