"""Figures of networks on a command line's data: counts, latency, what judges them, which samples were used."""
