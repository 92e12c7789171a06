"""Noise of the labels that `params.yaml` asks for, for the all-atom steps that they take."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.harness import Result
from cgal.frames import AtomFrames
from cgal.params import load_params
from study.label_noise import HELD_LOOK_STEPS, dynamics, noise, noise_times_steps

ROOT = Path(__file__).parents[1]
RUNS, LOOKS, STRIDE = 12, 1280, 4
EARLIER_STEPS = 48


def results() -> Iterator[Result]:
    """Noise variance across the bonds times steps, from runs with held C-alpha of frames of the bundled seed."""
    params = load_params(ROOT / "params.yaml")
    seed = AtomFrames.load(ROOT / "data" / "chignolin" / "seed.h5")
    held = dynamics(seed.take(np.arange(RUNS) * len(seed) // RUNS), LOOKS, STRIDE, held=True)
    residuals = noise(seed, held, params.mapping.force_map)
    ours = noise_times_steps(residuals, params.oracle.free_stride // HELD_LOOK_STEPS)
    before = noise_times_steps(noise(seed, held, "local_frames"), EARLIER_STEPS // HELD_LOOK_STEPS)
    note = (
        f"chignolin, {RUNS} runs of {LOOKS * STRIDE} steps with held C-alpha, correlation between labels in it; ours: "
        f"{params.mapping.force_map} every {params.oracle.free_stride} steps, as params.yaml has it; peer: "
        f"local_frames every {EARLIER_STEPS} steps; lower is better"
    )
    yield Result("label_noise_times_steps", ours, before, before / ours, "kJ²/mol²/nm² steps", note)
