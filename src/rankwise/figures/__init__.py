"""Figures of networks on the data of a command line: counts, latency, what judges them, and what it was judged on."""
