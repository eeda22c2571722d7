"""Rankwise."""
