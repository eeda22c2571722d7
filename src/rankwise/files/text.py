"""Short forms of any value, for messages."""

from __future__ import annotations

import reprlib

LONGEST = 80
LONGEST_MESSAGE = 900


# Reads only a few items and levels: a nest of a billion items costs no more than a small one.
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxtuple, _SHORT.maxdict, _SHORT.maxset = 3, 5, 5, 5, 5
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = LONGEST


def shown(value: object, longest: int = LONGEST) -> str:
    """`repr(value)`, cut to `longest` characters; only the type if `repr` fails.

    Example:
        >>> shown("a" * 10**6, longest=12)
        "'aaaaaa…aaa'"
    """
    try:
        text = _SHORT.repr(value)
    except Exception:  # an integer with more digits than Python prints, or an object whose repr fails
        text = f"<{type(value).__name__}>"
    return cut(text, longest)


def cut(text: str, longest: int = LONGEST_MESSAGE) -> str:
    """The text, or the start and the end, where the fix is, of a longer one.

    Example:
        >>> cut("0123456789", 7)
        '0123…89'
    """
    if len(text) <= longest:
        return text
    end = longest // 3
    return f"{text[: longest - end - 1]}…{text[-end:]}"
