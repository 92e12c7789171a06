#!/bin/sh
# Two peptides train one network, and a third that it has not seen is simulated and measured: about a quarter of an hour
# on two cores. `sh docs/results/several-proteins.sh FOLDER`; the numbers are told in docs/decisions/20.
set -eu
cgal init "$1" --sequence KEAYDG --protein first
cd "$1"
python - <<'END'
from pathlib import Path

from flows.campaign.opening import change_params

change_params(
    Path("params.yaml"),
    {
        "protein": ["first", "second"],
        "temperature_K": 450.0,
        "campaign": {"name": "both", "rounds": 2, "stop_below": 0.0},
        "network": {"features": 32, "blocks": 2},
        "training": {"epochs": 40, "batch_size": 16},
        "simulation": {"replicas": 16, "steps": 12000, "stride": 120},
        "selection": {"frames": 8, "novel_nm": 0.08, "distinct_nm": 0.05},
        "oracle": {"average_steps": 2400},
        "benchmark": {"tica_lag_ps": 4.0},
        "reference": {
            "hot_ps": 30.0, "hot_trajectories": 4, "equilibration_ps": 5.0, "trajectories": 12, "trajectory_ns": 0.1,
            "segment_ps": 50.0, "spacing_ps": 1.0, "tica_lag_ps": 4.0, "lag_ps": 4.0, "states": 20,
            "samples": 20, "bootstrap": 50,
        },
    },
)
END
cgal structure data/second/structure.pdb --sequence GWTKLEP
cgal structure data/third/structure.pdb --sequence DPETGTWY
for protein in first second third; do
    cgal seed "$protein" --runs 20 --length-ps 20
    cgal reference "$protein"
done
cgal run
cgal rounds
cgal production 2 --protein third --ns 0.06
cgal production 2 --protein third --ns 0.06 --prior-alone
for place in third third-prior; do
    python - "$place" <<'END'
import json
import sys
from pathlib import Path

metrics = json.loads(Path("production/both/round-002", sys.argv[1], "round/metrics.json").read_text())
for name, score in metrics["w1"].items():
    print(f"{sys.argv[1]:12} {name:20} {score['value']:.4f} [{score['low']:.4f}, {score['high']:.4f}] floor {metrics['floor'][name]:.4f}")
END
done
