"""How the free energy of a model changes while its weights change, from replicas that follow them.

Sequential Monte Carlo, or annealed importance sampling with resampling (Neal, Stat. Comput. 11, 125 (2001); Del Moral,
Doucet and Jasra, J. R. Stat. Soc. B 68, 411 (2006)). Replicas begin as a sample of the first model, with equal weights.
Whenever the model changes, each weight is multiplied by exp(-(U_new - U_old) / k_B T) where the replica stands, and the
replicas then run on under the new model. The mean weight estimates Z_new / Z_first without bias, however slowly they
follow (Jarzynski, Phys. Rev. Lett. 78, 2690 (1997)): what they lag behind costs effective replicas alone. When half of
these are gone, replicas are drawn anew in proportion to their weights.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32, Float64
from scipy.special import logsumexp

__all__ = ["Population"]

FEWEST = 0.5
"""Share of effective replicas below which they are drawn anew."""


@dataclass(frozen=True, eq=False)
class Population:
    """Replicas at `positions` [nm] with `log_weights`; what was known before they were drawn anew is in `past`.

    `past` and `past_variance` are the logarithm of Z_then / Z_first and its variance.
    """

    positions: Float32[np.ndarray, "replicas beads 3"]
    log_weights: Float64[np.ndarray, " replicas"]
    past: float = 0.0
    past_variance: float = 0.0

    @classmethod
    def begin(cls, positions: Float32[np.ndarray, "replicas beads 3"]) -> "Population":
        """Begin with equal weights, from an equilibrium of the first model."""
        return cls(positions, np.zeros(len(positions)))

    @property
    def effective(self) -> float:
        """Effective number of replicas, (sum w)^2 / sum w^2."""
        return math.exp(2 * logsumexp(self.log_weights) - logsumexp(2 * self.log_weights))

    @property
    def log_ratio(self) -> float:
        """Logarithm of Z_now / Z_first."""
        return self.past + float(logsumexp(self.log_weights)) - math.log(len(self.log_weights))

    @property
    def variance(self) -> float:
        """Variance of `log_ratio`, that of independent replicas: 1 / effective - 1 / replicas for each generation."""
        return self.past_variance + 1.0 / self.effective - 1.0 / len(self.log_weights)

    def weigh(self, rise: Float64[np.ndarray, " replicas"]) -> "Population":
        """Change the model: `rise` is that of each replica's energy [k_B T]; one that is no number weighs nothing."""
        return replace(self, log_weights=self.log_weights - np.nan_to_num(rise, nan=np.inf, posinf=np.inf))

    def move(self, positions: Float32[np.ndarray, "replicas beads 3"]) -> "Population":
        """Put the replicas where the dynamics of the model have brought them."""
        return replace(self, positions=positions)

    def draw_anew(self, generator: np.random.Generator) -> "Population":
        """Draw replicas in proportion to their weights, evenly spaced, if too few are effective."""
        count = len(self.log_weights)
        if self.effective >= FEWEST * count:
            return self
        shares = np.cumsum(np.exp(self.log_weights - logsumexp(self.log_weights)))
        drawn = np.searchsorted(shares / shares[-1], (np.arange(count) + generator.random()) / count)
        return Population(self.positions[drawn], np.zeros(count), self.log_ratio, self.variance)
