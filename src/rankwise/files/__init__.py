"""Replace files as a whole, read them from one open handle, and check them by digest; only `tensors` needs torch."""

from __future__ import annotations

from .digests import digest, sha256_of
from .plain import is_count, is_finite, is_text, parse_json, parse_yaml
from .reading import read_bytes, read_text, told
from .replace import Stream, make_folder, replacing, replacing_several
from .schema import built
from .temporary import is_temporary, locked, sibling, target_of, temporary_folder
from .text import cut, shown

__all__ = [
    "Stream",
    "built",
    "cut",
    "digest",
    "is_count",
    "is_finite",
    "is_temporary",
    "is_text",
    "locked",
    "make_folder",
    "parse_json",
    "parse_yaml",
    "read_bytes",
    "read_text",
    "replacing",
    "replacing_several",
    "sha256_of",
    "shown",
    "sibling",
    "target_of",
    "temporary_folder",
    "told",
]
