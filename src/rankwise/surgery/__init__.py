"""Change whole networks: put chains in place of layers, fold batch norms, trace graphs."""
