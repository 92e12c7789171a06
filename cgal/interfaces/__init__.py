"""A trained model for other programs: numpy arrays, ASE, OpenMM."""
