"""Networks changed as a whole: chains put in the place of layers, batch norms folded, graphs traced."""
