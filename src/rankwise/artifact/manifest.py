"""The content of `rankwise.json`: untrusted input, in which every field is checked before it is used."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ..files import digest, is_finite, is_text, parse_json, shown
from ..layers.kinds import LAYERS, Role
from ..names import STORAGES
from ..plan import Plan
from ..running.seen import Seen
from .coding import Coded, coded_from, coded_text, is_coded

FORMAT_VERSION = 6
LARGEST = 64 << 20  # bytes; a manifest of ten thousand layers has 10 MB
# Fields that later versions added, with the values for older files. Before version 5 an embedding and its head are
# recognised by the factors that they share.
_SINCE_2: dict[str, Any] = {"storage": "plain", "coded": {}, "folds": {}, "plain_bytes": None, "largest_error": None}
_SINCE_3: dict[str, Any] = {"seen": {}}
_SINCE_5: dict[str, Any] = {"role": Role.LAYER.value, "site": ""}
_SINCE_6: dict[str, Any] = {"unfused": {}}
_CHECKSUM = "checksum"  # since version 4: the digest of all other fields
_DAMAGED = "it is cut off or damaged: copy or save the artifact again"
FLOATS = ("float64", "float32", "float16", "bfloat16")  # dtypes that layers compute in


@dataclass(frozen=True, kw_only=True)
class StoredChain:
    """A chain of the stored model.

    Attributes:
        names: all its qualified names.
        kind: of the dense layer it replaced, one of `layers.kinds.LAYERS`.
        weight_shape: of the dense weight, output first.
        format, ranks, bias: format name, ranks, and whether it has a bias.
        dtype: of its weights, such as "float32".
        role: how its site uses the weight, one of `layers.kinds.Role`.
        site: name of a layer of its site, the same for all chains that share factors; "" where it shares none.
    """

    names: tuple[str, ...]
    kind: str
    weight_shape: tuple[int, ...]
    format: str
    ranks: tuple[int, ...]
    bias: bool
    dtype: str
    role: str = Role.LAYER.value
    site: str = ""

    @property
    def dense(self) -> str:
        """The dense layer in words."""
        return described(self.kind, self.weight_shape)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of `rankwise.json`.

    Attributes:
        dense_fingerprint: sha256 of the dense network's `outline`.
        tensors_bytes, tensors_sha256: length and hash of `model.safetensors`.
        aliases: further name of a tied tensor -> the name that it is stored under.
        channels_last: names of tensors in that memory format.
        unsaved_buffers: dtypes of the floating-point buffers outside the state dict.
        provenance: versions, model class and time of saving.
        storage: one of `names.STORAGES`.
        coded: name of every tensor -> how it was coded; empty for plain storage.
        folds: name of every folded batch norm -> the layer that it was folded into.
        unfused: name of every module that calls its projections as layers -> these layers; none for attention.
        plain_bytes: length of `model.safetensors` without coding, None for plain storage.
        largest_error: largest `||V - W|| / ||W||` of the tensors rounded to 8 bits, None without rounding.
        seen: samples that the network was made from, by use; empty where unknown.
    """

    structure: tuple[StoredChain, ...]
    dense_fingerprint: str
    tensors_bytes: int
    tensors_sha256: str
    aliases: dict[str, str]
    channels_last: tuple[str, ...]
    unsaved_buffers: dict[str, str]
    plan: Plan | None = None
    figures: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, str]
    storage: str = "plain"
    coded: dict[str, Coded] = field(default_factory=dict)
    folds: dict[str, str] = field(default_factory=dict)
    unfused: dict[str, tuple[str, ...]] = field(default_factory=dict)
    plain_bytes: int | None = None
    largest_error: float | None = None
    seen: dict[str, Seen] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        """JSON text without spaces; `rankwise verify` says whether it is whole.

        Raises:
            ValueError: if figures or plan hold what JSON cannot.
        """
        plain = {item.name: getattr(self, item.name) for item in fields(self)}
        plain["structure"] = plain_chains(self.structure)
        plain["coded"] = {name: str(coded) for name, coded in self.coded.items()}
        plain["seen"] = {use: samples.text() for use, samples in self.seen.items()}
        plain["plan"] = None if self.plan is None else self.plan.to_dict()
        # The version comes first, where people and readers of other versions look for it.
        plain = {"format_version": plain.pop("format_version"), **plain}
        try:
            as_read = json.loads(json.dumps(plain, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"figures and plan must be numbers, strings, lists and dictionaries without NaN or infinity: {error}"
            ) from error
        return json.dumps({**as_read, _CHECKSUM: digest(as_read)}, separators=(",", ":"), ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """The inverse of `to_json`, for files of all versions.

        Raises:
            ValueError: naming the field that is missing, unknown or wrong.
        """
        try:
            plain = parse_json(text)
        except ValueError as error:
            raise ValueError(f"not valid JSON ({error}); {_DAMAGED}") from error
        if not isinstance(plain, dict):
            raise ValueError(f"a JSON object is needed, not {type(plain).__name__}")
        version = plain.get("format_version", 0)
        if not _is_int(version) or not 1 <= version <= FORMAT_VERSION:
            raise ValueError(
                f"format_version is {shown(version)}, this rankwise reads up to {FORMAT_VERSION}; install the version "
                f"that wrote the artifact, or save it again with this one"
            )
        checksum = plain.pop(_CHECKSUM, None) if version >= 4 else None
        content = digest(plain)
        if version == 1:
            plain = {**_SINCE_2, **plain}
        if version < 3:
            plain = {**_SINCE_3, **plain}
        elif isinstance(plain.get("coded"), dict):
            plain["coded"] = {name: coded_text(text) for name, text in plain["coded"].items()}
        if version < 6:
            plain = {**_SINCE_6, **plain}
        values = _checked(cls, plain, _MANIFEST, "")
        values["unfused"] = {name: tuple(layers) for name, layers in values["unfused"].items()}
        values["seen"] = {use: Seen.from_text(text) for use, text in values["seen"].items()}
        values["coded"] = {name: coded_from(item) for name, item in values["coded"].items()}
        chains = values.pop("structure")
        if version < 5:
            chains = [{**_SINCE_5, **chain} for chain in chains]
        structure = chains_from(chains)
        plan = None if values["plan"] is None else Plan.from_dict(values["plan"])
        if version >= 4 and checksum != content:
            raise ValueError(f"its content does not match its checksum; {_DAMAGED}")
        return cls(**{**values, "structure": structure, "plan": plan})


def plain_chains(structure: Sequence[StoredChain]) -> list[dict[str, Any]]:
    """Chains as JSON can hold them."""
    return [asdict(chain) for chain in structure]


def chains_from(plain: Sequence[dict[str, Any]]) -> tuple[StoredChain, ...]:
    """The inverse of `plain_chains`, for untrusted input.

    Raises:
        ValueError: naming the chain and the field that is missing, unknown or wrong.
    """
    return tuple(_checked_chain(chain, index) for index, chain in enumerate(plain))


def described(kind: str, weight_shape: Sequence[int]) -> str:
    """A dense layer in words: "linear [10, 64]"."""
    return f"{kind} {list(weight_shape)}"


def outline(shapes: Mapping[str, Sequence[int]], dense: Mapping[str, str]) -> dict[str, str]:
    """The dense network in words: the shape of every tensor outside the factorised layers, and these layers, by name.

    Args:
        shapes: of a state dict, of the dense or the compressed network.
        dense: name of every factorised layer -> the dense layer in words.
    """
    inside = tuple(f"{name}." for name in dense)
    lines = {name: str(list(shape)) for name, shape in shapes.items() if not name.startswith(inside)}
    return dict(sorted({**lines, **dense}.items()))


def fingerprint(lines: Mapping[str, str]) -> str:
    """sha256 of an outline."""
    return hashlib.sha256(json.dumps(dict(lines)).encode()).hexdigest()


_Test = Callable[[Any], bool]


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _list_of(test: _Test, least: int = 0) -> _Test:
    return lambda value: isinstance(value, list) and len(value) >= least and all(test(item) for item in value)


def _map_of(test: _Test) -> _Test:
    return lambda value: isinstance(value, dict) and all(test(item) for item in value.values())


# Field -> test of its plain value, and what it must be, in words.
_MANIFEST: dict[str, tuple[_Test, str]] = {
    "format_version": (_is_int, "an integer"),
    "structure": (_list_of(lambda value: isinstance(value, dict)), "a list of objects"),
    "dense_fingerprint": (is_text, "a string"),
    "tensors_bytes": (lambda value: _is_int(value) and value > 0, "a positive integer"),
    "tensors_sha256": (is_text, "a string"),
    "aliases": (_map_of(is_text), "a map of strings"),
    "channels_last": (_list_of(is_text), "a list of strings"),
    "unsaved_buffers": (_map_of(lambda value: value in FLOATS), f"a map of dtypes ({', '.join(FLOATS)})"),
    "plan": (lambda value: value is None or isinstance(value, dict), "an object or null"),
    "figures": (lambda value: isinstance(value, dict), "an object"),
    "provenance": (_map_of(is_text), "a map of strings"),
    "storage": (lambda value: value in STORAGES, f"one of {', '.join(STORAGES)}"),
    "coded": (_map_of(is_coded), "a map of dtype, shape, planes and int8"),
    "folds": (_map_of(is_text), "a map of strings"),
    "unfused": (_map_of(_list_of(is_text)), "a map of lists of strings"),
    "plain_bytes": (lambda value: value is None or (_is_int(value) and value > 0), "a positive integer or null"),
    "largest_error": (lambda value: value is None or is_finite(value), "a number or null"),
    "seen": (_map_of(is_text), "a map of strings"),
}
_ROLES = tuple(role.value for role in Role)
_CHAIN: dict[str, tuple[_Test, str]] = {
    "names": (_list_of(lambda value: isinstance(value, str) and value != "", least=1), "a list of module names"),
    "kind": (lambda value: value in LAYERS, f"one of {', '.join(LAYERS)}"),
    "weight_shape": (_list_of(lambda value: _is_int(value) and value > 0, least=2), "a list of positive integers"),
    "format": (is_text, "a string"),
    "ranks": (_list_of(lambda value: _is_int(value) and value >= 0, least=1), "a list of integers from 0"),
    "bias": (lambda value: isinstance(value, bool), "true or false"),
    "dtype": (lambda value: value in FLOATS, f"one of {', '.join(FLOATS)}"),
    "role": (lambda value: value in _ROLES, f"one of {', '.join(_ROLES)}"),
    "site": (is_text, "a string"),
}


def _checked(cls: type, plain: dict[str, Any], tests: dict[str, tuple[_Test, str]], where: str) -> dict[str, Any]:
    """The plain values after all tests, lists as tuples where the class has tuples."""
    if unknown := sorted(plain.keys() - tests.keys()):
        raise ValueError(f"{where}unknown field {shown(unknown[0])}; the fields are {', '.join(tests)}")
    if missing := [name for name in tests if name not in plain]:
        raise ValueError(f"{where}the field {missing[0]!r} is missing")
    for name, (test, wanted) in tests.items():
        if not _holds(test, plain[name]):
            raise ValueError(f"{where}{name} must be {wanted}, not {shown(plain[name])}")
    kinds = {item.name: str(item.type) for item in fields(cls)}
    return {name: tuple(value) if kinds[name].startswith("tuple") else value for name, value in plain.items()}


def _holds(test: _Test, value: Any) -> bool:
    try:
        return test(value)
    except TypeError:  # an unhashable list in place of a name
        return False


def _checked_chain(plain: dict[str, Any], index: int) -> StoredChain:
    names = plain.get("names")
    site = f" (site {shown(names[0])})" if isinstance(names, list) and names else ""
    return StoredChain(**_checked(StoredChain, plain, _CHAIN, f"structure[{index}]{site}: "))
