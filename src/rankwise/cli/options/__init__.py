"""The options that commands share, in groups: the same name means the same everywhere."""
