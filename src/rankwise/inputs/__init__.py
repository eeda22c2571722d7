"""What a command line reads: models, weights, samples, pictures and arrays."""
