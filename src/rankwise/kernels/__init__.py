"""Run a network faster: layouts for the CPU, fused kernels for GPUs."""

from __future__ import annotations

from .linear import low_rank_linear
from .optimise import Choice, RunReport, optimised

__all__ = ["Choice", "RunReport", "low_rank_linear", "optimised"]
