"""Weights that are trained as bases and a core between them, or as singular vectors and values."""

from __future__ import annotations

from .dynamical import Cored, Dynamical
from .sparse_spectrum import SparseSpectrum, Spectrum

__all__ = ["Cored", "Dynamical", "SparseSpectrum", "Spectrum"]
