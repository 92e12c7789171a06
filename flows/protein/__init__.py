"""A protein's data: structure, seed, reference."""
