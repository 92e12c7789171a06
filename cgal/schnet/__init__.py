"""SchNet on C-alpha beads, and what makes it fast."""
