"""Mutants of files: flipped bits, cuts, additions, and changes that know what the file consists of."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import yaml

ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 2**31, 2**63, 10**400, 1e308, 0.5, "", "x", "x" * 100_000, "\ud800", "../../etc/passwd"),
    *([], [[]], {}, {"a": 1}, [0] * 1000, "dense", "svd", "float64", "nan"),
)


def bits(content: bytes, chance: random.Random) -> bytes:
    """One bit the other way round."""
    made = bytearray(content)
    place = chance.randrange(len(made) * 8)
    made[place // 8] ^= 1 << place % 8
    return bytes(made)


def cut(content: bytes, chance: random.Random) -> bytes:
    return content[: chance.randrange(len(content))]


def spliced(content: bytes, chance: random.Random) -> bytes:
    """A piece left out, doubled, blanked, or replaced by noise."""
    start = chance.randrange(len(content))
    end = min(len(content), start + chance.choice((1, 2, 8, 64, 1000)))
    piece = content[start:end]
    new = chance.choice((b"", piece * 2, bytes(len(piece)), chance.randbytes(len(piece)), b"\xff" * len(piece)))
    return content[:start] + new + content[end:]


def extended(content: bytes, chance: random.Random) -> bytes:
    return content + chance.choice((b"\0", b"\n", b"{}", b"[" * 100_000, chance.randbytes(100), content))


def changed(value: Any, chance: random.Random) -> Any:
    """A value of JSON with one part of it replaced, left out, renamed or doubled; it is changed in place."""
    places = list(_places(value))
    if not places:
        return chance.choice(ODD)
    owner, key = chance.choice(places)
    what = chance.randrange(5)
    if what == 0:
        del owner[key]
    elif what == 1 and isinstance(owner, dict):
        owner[chance.choice((f"{key}x", "", "__class__", "x" * 10_000))] = owner.pop(key)
    elif what == 2 and isinstance(owner, list):
        owner.insert(key, owner[key])
    elif what == 3 and isinstance(owner[key], (int, float)) and not isinstance(owner[key], bool):
        owner[key] = chance.choice((-owner[key], owner[key] + 1, owner[key] * 10**9, float(owner[key]) + 0.5))
    else:
        owner[key] = chance.choice(ODD)
    return value


def of_json(content: bytes, chance: random.Random, seal: Callable[[dict[str, Any]], Any] = lambda plain: None) -> bytes:
    """A changed value, or a text that is JSON for careless readers alone."""
    plain = json.loads(content)
    if chance.random() < 0.2:
        return chance.choice(
            (
                b"[" * 200_000,
                b'{"a":' * 5000 + b"1" + b"}" * 5000,
                content.replace(b":", b": NaN,", 1),
                content[:1] + content[1:].replace(b",", b", " + content[1:60].split(b",")[0] + b",", 1),
                b"9" * 10_000,
                b"\xff\xfe" + content,
                b'"' + b"x" * 1_000_000 + b'"',
            )
        )
    plain = changed(plain, chance)
    if isinstance(plain, dict):
        seal(plain)
    return json.dumps(plain).encode("utf-8", "surrogatepass")


def of_yaml(content: bytes, chance: random.Random) -> bytes:
    plain = yaml.safe_load(content)
    if chance.random() < 0.2:
        lines = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9) if n else 'x'}]\n" for n in range(9))
        return chance.choice(
            (
                lines.encode(),
                b"[" * 50_000,
                b"&a [*a]",
                content + b"\nrows: []\n",
                b"!!python/object/apply:os.system ['true']",
                b"peak: .inf\nbandwidth: .nan\n",
                b"x: 0x" + b"f" * 100_000,
                b"? " * 500 + b"x",
                b"x: 2001-99-99",
            )
        )
    try:
        return yaml.safe_dump(changed(plain, chance)).encode("utf-8", "surrogatepass")
    except ValueError:  # an integer of more digits than Python writes
        return b"x: " + b"9" * 5000


def of_safetensors(content: bytes, chance: random.Random) -> bytes:
    """The same tensors under a changed header, its length right or wrong."""
    length = int.from_bytes(content[:8], "little")
    header = of_json(content[8 : 8 + length], chance)
    header += b" " * (-len(header) % 8)
    claimed = chance.choice((len(header), len(header), len(header), 0, 1, 2**40, 2**63 + 1))
    return claimed.to_bytes(8, "little") + header + content[8 + length :]


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items):
        yield value, key
        yield from _places(item)
