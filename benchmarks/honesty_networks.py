"""All networks of the honesty benchmark."""

from __future__ import annotations

from benchmarks import honesty_odd, honesty_ordinary, honesty_torchvision, honesty_transformers

CASES = (
    *honesty_ordinary.CASES,
    *honesty_odd.CASES,
    *honesty_transformers.CASES,
    *honesty_torchvision.CASES,
)
