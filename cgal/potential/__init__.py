"""The coarse-grained potential: a fitted prior plus a SchNet network, and the checkpoint that holds both."""
