"""Numerical kernels on plain tensors; nothing here knows layers or data."""
