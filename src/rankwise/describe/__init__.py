"""Formats and layers described in plain values, for tables, pages and pictures."""
