"""The coarse-grained potential: a fitted prior plus a network, and the checkpoint that holds both."""
