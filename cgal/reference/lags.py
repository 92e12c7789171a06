"""Whether the sampling that a reference asks for has room for the lags that it is analysed with."""

from cgal.benchmark.lag import require_lag
from cgal.errors import BadParams, Refusals
from cgal.params import Params
from cgal.units import whole_frames

__all__ = ["require_lags"]


def require_lags(params: Params) -> None:
    """Raise BadParams or BadTrajectory, or Refused with several, when what will be sampled is too short or too little.

    Those of the Markov model must be shorter than a trajectory of the swarm, the benchmark's must fit the reference,
    which is the swarm thinned to `reference.frames`.
    """
    plan, refusals = params.reference, Refusals()
    with refusals.gathered():
        if plan.trajectories < 2:
            raise BadParams("reference.trajectories: the floor is between two halves of them; raise it to 2 or more")
    segments = max(1, round(plan.trajectory_ns * 1000 / plan.segment_ps))
    frames = int(segments * plan.segment_ps / plan.spacing_ps * (1 + 1e-9))
    for name in ("tica_lag_ps", "lag_ps"):
        lag_ps = getattr(plan, name)
        with refusals.gathered():
            if frames <= max(1, whole_frames(lag_ps, plan.spacing_ps)):
                raise BadParams(
                    f"reference.{name}: {lag_ps:g} ps is not shorter than a trajectory of the swarm "
                    f"({frames * plan.spacing_ps:g} ps); lower it or raise reference.trajectory_ns"
                )
    stride = -(-plan.trajectories * frames // plan.frames)
    with refusals.gathered():
        require_lag(params.benchmark.tica_lag_ps, stride * plan.spacing_ps, frames // stride)
    refusals.tell()
