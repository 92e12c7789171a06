"""Ground truth from unbiased all-atom sampling: a swarm of trajectories and the Markov state model that weighs it.

Import from the modules: `sampling` runs in worker processes, which need not wait for deeptime.
"""
