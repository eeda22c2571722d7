"""Other libraries that Rankwise works inside of; importing a module here registers with its library, once."""
