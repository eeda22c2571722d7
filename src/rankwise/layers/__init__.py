"""The layers of networks: kinds of dense ones, and the chains of plain layers that take their place."""
