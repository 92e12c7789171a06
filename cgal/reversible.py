"""Reversible Markov chains of highest likelihood (Prinz et al., J. Chem. Phys. 134, 174105 (2011)), by deeptime."""

from deeptime.markov import TransitionCountModel
from deeptime.markov.msm import MarkovStateModel, MaximumLikelihoodMSM

__all__ = ["fit_reversible"]

FEWEST = (0.0, 2.0, 3.0, 5.0, 10.0, 100.0, float("inf"))


def fit_reversible(counts: TransitionCountModel) -> tuple[TransitionCountModel, MarkovStateModel | None]:
    """Fit to the largest set of states each of which is reached from every other; None where that is a single state.

    A state that is left hundreds of times for once that it is come to has hardly any stationary probability, and behind
    several such ones in a row there is none that numbers can hold: the estimator fails. Then a transition is taken for
    none, for what is connected, unless it was counted twice, three times and so on; states are left out by it.
    """
    for fewest in FEWEST:
        connected = counts.submodel_largest(connectivity_threshold=fewest)
        if connected.n_states == 1:  # deeptime asks for two
            break
        try:
            return connected, MaximumLikelihoodMSM(reversible=True).fit(connected).fetch_model()
        except RuntimeError:
            continue
    return connected, None
