"""How good a model is: Wasserstein-1 to a reference over TICA, reaction coordinate, bonds, angles and dihedrals."""
