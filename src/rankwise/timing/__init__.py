"""Times that can be compared: turns and medians, and how busy the machine is."""
