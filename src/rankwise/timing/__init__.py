"""Comparable times: turns and medians, and the load of the machine."""
