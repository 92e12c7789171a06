"""From C-alpha beads back to all atoms."""
