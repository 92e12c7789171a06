"""From all atoms to beads: coordinates (Xi) and forces (Xi_F)."""
