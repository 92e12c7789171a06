"""Does a longer step of the coarse-grained dynamics change what a model's ensemble is? Decision 08.

    python -m study.time_step

The rung by populations of chignolin (all data, seed 0) is simulated from both starts with steps of several lengths, the
first twice with other noise. Printed is W1 to the first run, mode exact, and what was lost.
"""

import numpy as np
import pandas as pd

from cgal.benchmark.observables import OBSERVABLES
from cgal.benchmark.suite import observe
from cgal.benchmark.tica import fit_tica
from cgal.benchmark.wasserstein import estimators
from cgal.params import DynamicsParams
from cgal.simulation.run import run_from, to_trajectory
from study.learning_curves import REPLICAS, Task, benchmark_params, draw, halves, model_of, share, stretched

STEPS_ps = (0.005, 0.005, 0.01, 0.015, 0.02)
LENGTH_ps, SAVES = 960.0, 100


def main() -> None:
    """Train, simulate and print."""
    task = Task("chignolin", 0.0, "linear_populations", 0)
    parts = halves(task.system)
    model = model_of(parts, draw(parts, task), task)
    tica, settings = fit_tica(parts.truth, benchmark_params().tica_lag_ps), benchmark_params()
    table = estimators(settings.maximum_frames)["exact"]
    home = np.repeat(np.stack([parts.swarm.native, stretched(len(model.sequence))]), REPLICAS, axis=0)
    samples, rows = [], []
    for seed, step_ps in enumerate(STEPS_ps):
        steps = round(LENGTH_ps / step_ps)
        params = DynamicsParams(replicas=len(home), steps=steps, stride=steps // SAVES, timestep_ps=step_ps)
        record = run_from(model, home, params, temperature_K=parts.bed.temperature_K, seed=seed)
        whole = to_trajectory(model.sequence, record, params, "cpu")
        late = whole.take(np.flatnonzero(whole.time_ps > LENGTH_ps / 2))
        samples.append(observe(late, tica, np.zeros(len(late), dtype=np.int64)))
        found = {
            each.heading: table[each.geometry].value(samples[-1][name], samples[0][name]) * each.scale
            for name, each in OBSERVABLES.items()
        }
        lost = sum(fate.cause != "completed" for fate in whole.fates)
        rows.append({"step [fs]": 1000 * step_ps} | found | {"folded": share(parts, late.positions), "lost": lost})
    print(pd.DataFrame(rows).to_string(index=False, float_format="%.3g"))


if __name__ == "__main__":
    main()
