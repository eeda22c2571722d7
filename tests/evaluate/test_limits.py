"""The machine's limits: what they mean and what is left behind; never the figures themselves."""

from __future__ import annotations

import pytest
import torch

from rankwise.evaluate import Limits, machine_limits


def test_the_slower_of_the_two_decides() -> None:
    limits = Limits(macs_per_second=100.0, bytes_per_second=10.0)
    assert limits.seconds(macs=1000, moved=10) == 10.0
    assert limits.seconds(macs=10, moved=1000) == 100.0


def test_limits_of_this_machine() -> None:
    before = torch.get_num_threads()
    limits = machine_limits(1)
    assert limits.macs_per_second > 0
    assert limits.bytes_per_second > 0
    assert torch.get_num_threads() == before


def test_threads_out_of_range() -> None:
    with pytest.raises(ValueError, match="threads is 0; it must be at least 1"):
        machine_limits(0)
