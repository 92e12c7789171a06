"""Arms of acquisition where the oracle is a coarse-grained potential: exact ground truth, and labels in seconds."""
