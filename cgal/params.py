"""Every number that a run depends on: `params.yaml`, typed, bounded and documented.

Sections are frozen and refuse unknown keys, so that a typo fails at load. `dvc.yaml` names, for each stage, the
sections that it depends on; `execution` is in none of them, since it decides how fast a run goes and never what it
finds.
"""

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_serializer,
    model_validator,
)

from cgal.errors import BadFile, BadParams
from cgal.files import read_yaml

__all__ = [
    "BackmappingParams",
    "BenchmarkParams",
    "CampaignParams",
    "DynamicsParams",
    "ExecutionParams",
    "ForceFieldParams",
    "ForcesAndNoiseParams",
    "ForcesAndPopulationsParams",
    "MappingParams",
    "MarkovParams",
    "NetworkParams",
    "OracleParams",
    "PaiNNParams",
    "Params",
    "PriorParams",
    "ReferenceParams",
    "RelativeEntropyParams",
    "SchNetParams",
    "SelectionParams",
    "SimulationParams",
    "TrainingParams",
    "WaterParams",
    "check_params",
    "load_params",
    "merged",
    "protein_names",
    "section_models",
]

LARGEST = 1e12
"""Bound of numbers that have no other: a form knows no infinity, but a maximum."""

Positive = Annotated[float, Field(gt=0, le=LARGEST, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, le=LARGEST, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(gt=0, le=10**12)]
Name = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$",
        json_schema_extra={"pattern": r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}(?!\n)$"},  # `$` alone lets a last newline pass
    ),
]


def _names_differ(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(names) < 2:
        raise ValueError("a list is of two proteins or more; write the name of one alone")
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"{', '.join(sorted(twice))} is named twice")
    if taken := RESERVED & set(names):
        raise ValueError(f"{', '.join(sorted(taken))}: give that folder of data/ another name, metrics are called so")
    return names


RESERVED = {"value", "low", "high"}
"""Parts of a metric, beside which those of several proteins stand."""

Names = Annotated[tuple[Name, ...], Field(strict=False), AfterValidator(_names_differ)]


def _how_many(content: Any) -> str:
    return "several" if isinstance(content, list | tuple) else "one"


def protein_names(protein: str | Sequence[str]) -> tuple[str, ...]:
    """Names in a `protein:` of `params.yaml`, which is one or a list.

    >>> protein_names("a"), protein_names(["a", "b"])
    (('a',), ('a', 'b'))
    """
    return (protein,) if isinstance(protein, str) else tuple(protein)


class Section(BaseModel):
    """Base of all sections: frozen, strict about keys and types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class CampaignParams(Section):
    """What a campaign is called and how long it goes on."""

    name: Name = "demo"
    rounds: int = Field(
        2, ge=0, description="acquisition rounds at most; a closing round, without acquisition, follows"
    )
    budget_steps: int = Field(
        0,
        ge=0,
        description="limit on the all-atom steps spent on labels, not counting the seed's; 0: the largest of "
        "cut_steps, or no limit",
    )
    cut_steps: tuple[int, ...] = Field(
        (),
        strict=False,
        description="budgets of all-atom label steps: a round is cut short at each, so that every budget has a model. "
        "A cut is skipped when less than a tenth of it is left to spend, and ignored beyond budget_steps",
    )
    stop_below: Fraction = Field(
        0.02,
        description="converged when at most this fraction of the simulated frames is uncovered, dropped ones included; "
        "0: never",
    )
    stop_rounds: Count = Field(
        2, description="consecutive rounds for which that must hold, with no measurable change of TICA W1 in the last"
    )
    continued_md_steps: int = Field(
        0,
        ge=0,
        description="control without active learning: all-atom steps of plain dynamics before round 0",
    )
    plain_md: Literal["continued", "parallel", "least_counts"] = Field(
        "continued",
        description="how continued_md_steps are run. continued: one trajectory from the seed's last frame; parallel: "
        "selection.frames trajectories from the ends of the seed's runs; least_counts: batches of selection.frames "
        "runs of oracle.average_steps, restarted from all-atom frames of the least visited cells (adaptive restarts)",
    )

    @property
    def limit_steps(self) -> int:
        """All-atom steps that labels may take in all; 0: no limit."""
        return self.budget_steps or max(self.cut_steps, default=0)


class WaterParams(Section):
    """The box of explicit water about a protein: as many molecules in every frame, whatever the chain's shape."""

    box_nm: float = Field(
        4.0, gt=2.0, le=50, description="edge of the cube; the largest distance between two atoms and 1 nm must fit in"
    )
    minimise_steps: Count = Field(
        100, description="iterations in which the energy of new water is lowered first, some four times over"
    )
    settling_steps: int = Field(
        5000, ge=0, description="steps of 2 fs with held CA that new water settles for then, at constant volume"
    )


class ForceFieldParams(Section):
    """The all-atom physics that reference and oracle share."""

    name: Literal["ff96", "ff14SB", "amber14"] = "ff96"
    solvent: Literal["obc2", "gbn2", "tip3pfb"] = Field(
        "obc2", description="implicit OBC2 or GBn2, or explicit TIP3P-FB water"
    )
    ph: float = Field(7.0, ge=0, le=14)
    timestep_ps: float = Field(0.004, gt=0, le=0.005)
    hydrogen_mass_amu: float = Field(
        4.0, ge=1, le=5, description="taken from the bonded heavy atom; with steps of 4 fs and more at most 4.25"
    )
    friction_per_ps: Positive = 1.0
    platform: Literal["auto", "CPU", "CUDA", "OpenCL", "Reference"] = "auto"
    water: WaterParams = Field(WaterParams(), description="of solvent tip3pfb alone")

    @property
    def physics(self) -> str:
        """Force field and solvent, as "ff96 + obc2": what all frames of a campaign have in common."""
        return f"{self.name} + {self.solvent}"

    @property
    def explicit(self) -> bool:
        """Whether the solvent is water molecules."""
        return self.solvent == "tip3pfb"

    @property
    def water_steps(self) -> int:
        """All-atom steps that a run takes for its water before it begins, about.

        OpenMM minimises anew under stiffer constraints until they hold: in new water four times, 100 iterations each.
        """
        return 4 * self.water.minimise_steps + self.water.settling_steps if self.explicit else 0

    @property
    def without_water(self) -> "ForceFieldParams":
        """The same protein force field in an implicit solvent, in which atoms are rebuilt before water comes."""
        return self.model_copy(update={"solvent": "obc2"}) if self.explicit else self

    @model_validator(mode="after")
    def _methyl_carbons_are_heavy_enough(self) -> "ForceFieldParams":
        if self.timestep_ps >= 0.004 and self.hydrogen_mass_amu > 4.25:
            raise ValueError(
                "hydrogen_mass_amu above 4.25 makes the carbon of a methyl group so light that runs with a timestep_ps "
                "of 0.004 and more diverge: lower one of them"
            )
        return self

    @model_validator(mode="after")
    def _protein_and_water_go_together(self) -> "ForceFieldParams":
        if self.explicit and self.name == "ff96":
            raise ValueError("solvent tip3pfb goes with name ff14SB or amber14, not with ff96")
        return self

    @model_serializer(mode="wrap")
    def _water_where_there_is_any(self, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        content = handler(self)
        return content if self.explicit else {key: value for key, value in content.items() if key != "water"}


class MappingParams(Section):
    """How all-atom forces become bead forces (Xi_F)."""

    force_map: Literal["local_frames", "optimal", "constraint_aware", "slice"] = Field(
        "optimal",
        description="slice is the paper's, and biased when bonds are constrained; local_frames has the least noise",
    )
    ridge: NonNegative = Field(
        0.03,
        description="regularisation of the optimal map towards whole-residue sums, relative to the mean squared force",
    )


class PriorParams(Section):
    """The physical prior, fitted by Boltzmann inversion from the frames of all shards, anew each round."""

    bins: int = Field(60, ge=16, description="bins of a dihedral histogram")
    minimum_bond_sigma_nm: Positive = Field(0.003, description="lower limit on the fitted standard deviation of a bond")
    minimum_angle_sigma_rad: Positive = Field(
        0.2, description="lower limit on the fitted standard deviation of an angle, since a seed samples one basin"
    )
    dihedral_order: int = Field(3, ge=0, le=6)
    dihedral_scale: NonNegative = Field(0.5, description="factor on the Boltzmann-inverted dihedral potential")
    dihedral_floor: float = Field(
        2e-4,
        gt=0,
        le=1,
        description="probability added to each bin, so that an angle that no frame has is unlikely, not forbidden",
    )
    repulsion_kJ_per_mol: Positive = Field(1.0, description="prior energy at the repulsion radius")
    repulsion_quantile: Fraction = Field(
        0.001, description="quantile of the training distances that sets the repulsion radius"
    )
    maximum_repulsion_radius_nm: Positive = Field(
        0.45, description="upper limit on the radius: an extended seed must not forbid the contacts of a folded chain"
    )


class SchNetParams(Section):
    """SchNet: continuous filters between C-alpha beads, trained and simulated in compiled loops."""

    architecture: Literal["schnet"] = "schnet"
    features: Count = 64
    blocks: Count = 2
    radial_functions: int = Field(24, ge=2)
    cutoff_nm: Positive = 1.5


class PaiNNParams(Section):
    """PaiNN: vectors beside the scalars of a bead; by automatic differentiation alone, and so many times slower."""

    architecture: Literal["painn"] = "painn"
    features: Count = 32
    blocks: Count = 2
    radial_functions: int = Field(24, ge=2)
    cutoff_nm: Positive = 1.5


def _architecture(content: Any) -> str | None:
    """Tag of a network's params; those from before there was a choice are SchNet's."""
    if isinstance(content, Mapping):
        return str(content.get("architecture", "schnet"))
    return getattr(content, "architecture", None)


NetworkParams = Annotated[
    Annotated[SchNetParams, Tag("schnet")] | Annotated[PaiNNParams, Tag("painn")],
    Discriminator(
        _architecture, custom_error_type="architecture", custom_error_message="architecture must be schnet or painn"
    ),
]
"""Params of the network of one architecture, told apart by `architecture`."""


class DynamicsParams(Section):
    """Langevin dynamics of the coarse-grained model (BAOAB)."""

    replicas: Count = 32
    steps: Count = 3000
    stride: Count = 30
    timestep_ps: Positive = 0.005
    friction_per_ps: Positive = 1.0
    bead_mass_amu: Positive = 100.0
    maximum_bond_nm: Positive = Field(0.7, description="a replica with a longer CA-CA bond has exploded")
    minimum_distance_nm: NonNegative = Field(0.2, description="a replica with two beads closer than this has imploded")
    filter_intervals: int = Field(
        512,
        ge=32,
        le=16384,
        description="intervals of the tabulated filters; force error below 1e-5 at 512, eight times that at 256",
    )


class PopulationsRungParams(Section):
    """The linear rung, where relative entropy fits it: before the network, to the populations of the frames."""

    updates: Count = 1000
    average_updates: Count = Field(
        300, description="updates over which the coefficients are averaged: as long as replicas take to forget"
    )
    learning_rate: Positive = Field(0.2, description="share of Newton's step, at first")
    gradient_clip: Positive = Field(5.0, description="longest step, over its learning rate, in k_B T of energy")
    ridge: Positive = Field(
        1e-3, description="least variance of a coordinate that is believed, in units of the mean of all"
    )
    prior_frames: NonNegative = Field(
        70.0, description="frames that the prior counts as, so that few data move the model little"
    )


class RelativeEntropyParams(Section):
    """Relative entropy: what the network lowers in the data's frames, it raises in those of its own replicas."""

    updates: Count = 300
    learning_rate: Positive = 2e-3
    gradient_clip: Positive = 1.0
    energy_penalty: NonNegative = Field(
        5e-4, description="weight of the network's mean squared energy, in units of k_B T"
    )
    average_updates: Count = Field(
        100, description="updates over which the weights are averaged; the average is the model"
    )
    restarted_fraction: Fraction = Field(
        0.0,
        description="share of the replicas that begin anew from a training frame at each update: with one, populations "
        "that build up more slowly than replicas live are not learned",
    )
    look_updates: Count = Field(10, description="updates between two looks at the held-out frames")
    look_replicas: Count = Field(
        128, description="further replicas, which the updates never see: by them the held-out criterion is known"
    )
    look_steps: Count = Field(20, description="steps that these run after each update")
    settle_steps: Count = Field(
        12000, description="steps that these run first, to forget that they come from training frames"
    )
    held_out_frames: Count = Field(2000, description="held-out frames that are looked at, at most, evenly thinned")
    patience_updates: Count = 100
    rung: PopulationsRungParams = Field(PopulationsRungParams(), description="the linear rung, if there is to be one")
    dynamics: DynamicsParams = Field(
        DynamicsParams(replicas=64, steps=200, stride=50, timestep_ps=0.01),
        description="of the replicas between two updates",
    )


class ForcesAndNoiseParams(Section):
    """Forces and noise: frames are noised, and their labels mix the forces with those of the noise."""

    noise_nm: Positive = Field(
        0.005,
        description="standard deviation of the noise on each coordinate; the model is of the smeared density, whose "
        "bonds are wider: 0.005 is about as wide as they are",
    )


class ForcesAndPopulationsParams(Section):
    """Forces and populations: relative entropy, and force matching with a weight, by one optimiser."""

    force_weight: NonNegative = Field(
        1.0,
        description="weight of the forces; 1: minus the logarithm of their likelihood beside that of the frames, as if "
        "all components of all labels scattered independently",
    )
    frames: Count = Field(128, description="frames drawn at each update, whose forces are matched")


class MarkovParams(Section):
    """The Markov model that weighs frames."""

    lag_ps: Positive = Field(10.0, description="its lag time; runs of labels must be longer")
    memory_ps: Positive = Field(
        1000.0,
        description="mean time for which the distribution of the frames is propagated; longer: nearer equilibrium if "
        "there are enough runs, and more scatter if not",
    )
    states: int = Field(300, ge=2, description="k-means clusters, in ten components of TICA")


class TrainingParams(Section):
    """How the network is trained; what has no section of its own is of force matching, or of every objective."""

    objective: Literal["force_matching", "forces_and_noise", "forces_and_populations", "relative_entropy"] = Field(
        "force_matching", description="what is minimised: a module of cgal.training"
    )
    members: Count = Field(
        1, description="networks of a committee, trained one after the other, whose mean force is simulated"
    )
    linear_rung: bool = Field(
        False,
        description="first fit pair splines and dihedral couplings, where frames left out say that they help: to the "
        "populations for objectives that want frames in equilibrium, else to the forces; with several proteins there "
        "are none",
    )
    frame_weights: Literal["none", "markov"] = Field(
        "none",
        description="of frames in the prior's fit and in relative entropy; markov: by a reversible Markov model of all "
        "runs, which did not begin in equilibrium",
    )
    epochs: Count = 50
    batch_size: Count = Field(16, description="frames per batch; with few labels many small steps train best")
    learning_rate: Positive = 3e-3
    final_learning_rate_fraction: Fraction = 0.02
    weight_decay: NonNegative = Field(
        1e-3,
        description="logarithm of the factor by which decay alone would shrink the weights over all epochs, however "
        "many frames there are",
    )
    average_epochs: NonNegative = Field(
        0.0, description="epochs over which the weights are averaged (exponentially); the average is the model; 0: none"
    )
    gradient_clip: Positive = 10.0
    bond_weight: Fraction = Field(
        1.0,
        description="weight of force errors along CA-CA bonds, where labels are noisiest and the prior is stiff",
    )
    validation_fraction: float = Field(0.2, gt=0, lt=0.5)
    validation_block_frames: Count = Field(
        10, description="consecutive frames of a trajectory that are held out together"
    )
    patience_epochs: Count = 12
    warm_start: bool = Field(True, description="start from the last round's weights; false: train afresh")
    checkpoint_epochs: Count = Field(
        5, description="epochs between the checkpoints that a killed training resumes from"
    )
    preflight: bool = Field(
        True,
        description="stop the campaign when the network is no better on held-out frames than the prior alone; not "
        "looked at above a linear rung",
    )
    forces_and_noise: ForcesAndNoiseParams = ForcesAndNoiseParams()
    forces_and_populations: ForcesAndPopulationsParams = ForcesAndPopulationsParams()
    markov: MarkovParams = Field(MarkovParams(), description="of frame_weights: markov")
    relative_entropy: RelativeEntropyParams = RelativeEntropyParams()

    @property
    def by_replicas(self) -> bool:
        """Whether the objective runs replicas of the model, as relative entropy does."""
        return self.objective in ("relative_entropy", "forces_and_populations")


class SimulationParams(DynamicsParams):
    """Langevin dynamics of the coarse-grained model (BAOAB)."""

    starts: Literal["training", "native", "given"] = Field(
        "training",
        description="frames that replicas begin at: drawn from the training set, all at structure.pdb, or drawn from "
        "starts_file",
    )
    starts_file: str = Field(
        "",
        pattern=r"^([A-Za-z0-9][A-Za-z0-9_.-]*)?$",
        description="of starts: given, a file of C-alpha frames in data/<protein>/ that mdtraj reads with its topology "
        "(HDF5, PDB); DVC keeps it with the data, but stages do not watch it: give other frames another name",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="a CPU and a GPU draw different noise; the trajectory records which it was"
    )

    @model_validator(mode="after")
    def _a_file_goes_with_given(self) -> "SimulationParams":
        if (self.starts == "given") != bool(self.starts_file):
            raise ValueError("starts: given and starts_file go together; name a file, or leave it empty")
        return self


class SelectionParams(Section):
    """Which simulated frames are worth an oracle call."""

    strategy: Literal[
        "rmsd_histogram", "rmsd_proportional", "random", "coverage", "k_centre", "committee", "committee_coverage"
    ] = "rmsd_histogram"
    frames: Count = 20
    bins: Count = 40
    cutoff_nm: Positive = Field(
        1.0,
        description="a frame with a larger RMSD to structure.pdb is unphysical; 1.0 is the paper's, for ten beads: "
        "cgal init sets a third of the chain's length",
    )
    minimum_bond_nm: NonNegative = Field(0.27, description="a shorter CA-CA bond is unphysical (cis bonds have 0.29)")
    maximum_bond_nm: Positive = Field(0.47, description="a longer CA-CA bond is unphysical")
    minimum_distance_nm: NonNegative = Field(0.3, description="two unbonded beads closer than this overlap")
    novel_nm: Positive = Field(0.1, description="a frame with a larger RMSD to every training frame is uncovered")
    distinct_nm: NonNegative = Field(
        0.08,
        description="least RMSD between two picks of a batch; rmsd_histogram, rmsd_proportional and random ignore it",
    )
    committee: int = Field(
        4, ge=2, description="networks in the committee, trained afresh when the strategy needs them"
    )


class BackmappingParams(Section):
    """From C-alpha beads back to all atoms."""

    method: Literal["pulchra", "cgback"] = Field(
        "pulchra",
        description="module of cgal.all_atom.backmapping; cgback is installed by 'make setup' in the clone of cgal, or "
        "by pip install '/path/to/cgal[cgback]'",
    )
    second_method: Literal["none", "pulchra", "cgback"] = Field(
        "none", description="what a frame is rebuilt by that the first method could not rebuild"
    )
    steer_within_nm: NonNegative = Field(
        0.0,
        description="a pick with a stored all-atom frame (seed, label runs) in this CA RMSD starts from that: its CA "
        "are pulled onto the pick; 0: never, and label runs are not stored for it",
    )
    steer_steps: Count = Field(2000, description="steps of that pull, of warm_up_timestep_ps each")
    restraint_kJ_per_mol_nm2: Positive = Field(
        1e6, description="spring constant that holds each CA while the other atoms relax"
    )
    minimise_steps: Count = 500
    clash_nm: Positive = Field(0.08, description="two unbonded heavy atoms closer than this clash")
    warm_up_steps: Count = Field(
        100, description="steps of restrained dynamics with a short time step before the label is taken"
    )
    warm_up_timestep_ps: Positive = 0.001
    anneal_steps: int = Field(
        0,
        ge=0,
        description="hot dynamics with held CA that lets peptide planes turn over; cools in the second half; 0: none",
    )
    anneal_temperature_K: Positive = Field(
        1500.0, description="hot enough for peptide planes to turn over; at 600 K they do not"
    )
    anneal_timestep_ps: Positive = 0.002
    maximum_displacement_nm: Positive = Field(
        0.05, description="a frame whose CA moved further than this from the picked one is a failed label"
    )

    @property
    def steps(self) -> int:
        """All-atom steps that a frame takes, if it is steered or its minimisation goes once to its limit."""
        reached = max(self.minimise_steps, self.steer_steps) if self.steer_within_nm else self.minimise_steps
        return reached + self.warm_up_steps + self.anneal_steps


class OracleParams(Section):
    """How a backmapped frame is labelled with forces."""

    mode: Literal["mean_force", "free"] = "mean_force"
    timestep_ps: Positive = Field(
        0.003, description="time step of mean_force labels, whose CA are massless; shorter than force_field.timestep_ps"
    )
    burn_in_steps: int = Field(150, ge=0)
    average_steps: Count = Field(600, description="steps averaged per label (mean_force), or run per frame (free)")
    sample_stride: Count = Field(5, description="steps between force samples in an average")
    free_stride: Count = Field(100, description="steps between stored frames of free labels")
    quorum: Fraction = Field(
        0.5, description="fraction of a full round's picks that must be labelled; below it the campaign stops"
    )

    @property
    def steps(self) -> int:
        """All-atom steps of a label, after backmapping."""
        stride = self.sample_stride if self.mode == "mean_force" else self.free_stride
        return self.burn_in_steps + self.average_steps // stride * stride


class BenchmarkParams(Section):
    """The Wasserstein-1 distances of all observables to the reference."""

    mode: Literal["exact", "paper"] = Field(
        "exact", description="definition of the W1 that is shown; both are computed"
    )
    tica_lag_ps: Positive = Field(
        100.0,
        description="taken to the nearest whole number of the reference's frames; metrics.json and cgal rounds tell it",
    )
    discard_fraction: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="fraction of the run's time that is dropped at its start, the same time for every replica",
    )
    bootstrap: Count = Field(200, description="block-bootstrap resamples over replicas")
    maximum_frames: Count = Field(2000, description="frames per sample in the two-dimensional TICA transport problem")
    blocks: int = Field(
        10, ge=2, description="a single replica or reference trajectory is cut into this many blocks for the bootstrap"
    )
    folded_rmsd_nm: Positive = Field(0.2, description="a frame with a smaller RMSD to the native one counts as folded")
    rmsd_bins: Count = 50


class ReferenceParams(Section):
    """The ground truth: hot exploration, a swarm of unbiased all-atom trajectories, a Markov state model."""

    hot_temperature_K: Positive = Field(
        500.0, description="temperature of the exploration that finds start structures for the swarm"
    )
    hot_trajectories: Count = Field(8, description="exploration runs, all from the bundled structure")
    hot_ps: Positive = Field(300.0, description="length of each")
    hot_spacing_ps: Positive = Field(2.0, description="time between the frames that start structures are chosen from")
    equilibration_ps: NonNegative = Field(
        20.0, description="time that each start structure spends at temperature_K before the swarm"
    )
    trajectories: int = Field(32, ge=1, le=10**12, description="trajectories of the swarm; raising it adds more")
    trajectory_ns: Positive = Field(2.0, description="length of each; raising it extends them")
    segment_ps: Positive = Field(
        200.0, description="length of one file of a trajectory; a killed run loses at most this much of each"
    )
    spacing_ps: Positive = Field(2.0, description="time between stored frames")
    tica_lag_ps: Positive = Field(
        100.0, description="lag time of the TICA in which the Markov model's states are defined"
    )
    tica_dimensions: int = Field(4, ge=2, description="TICA coordinates")
    states: int = Field(100, ge=2, description="k-means clusters in them")
    lag_ps: Positive = Field(100.0, description="lag time of the Markov model; see the figure of implied timescales")
    samples: Count = Field(100, description="samples of the posterior, for the errors of timescales and probabilities")
    bootstrap: Count = Field(
        200, description="bootstrap resamples of trajectories, for the error of the folded fraction"
    )
    folded_nm: Positive = Field(0.15, description="CA RMSD to the native frame below which a frame is folded")
    unfolded_nm: Positive = Field(
        0.35, description="CA RMSD above which a frame is unfolded; between the two it is neither"
    )
    splits: Count = Field(8, description="random splits into halves, by trajectory, for the floor")
    frames: Count = Field(10000, description="frames of the reference that the benchmark uses at most, evenly thinned")


class ExecutionParams(Section):
    """How fast a run goes, never what it finds; no stage depends on it."""

    torch_threads: int = Field(0, ge=0, description="0: all available cores")
    oracle_workers: int = Field(2, ge=1, le=1024, description="all-atom runs (labels, reference) at a time")
    task_runner: Literal["processes", "threads", "dask", "dask_slurm", "dask_address"] = Field(
        "processes",
        description="where labels and references are made: this machine, or the Dask cluster of cluster.yaml",
    )
    transport: Literal["shared", "dvc"] = Field(
        "shared", description="how a worker of cgal-gpu gets files: it shares this folder, or through the DVC remote"
    )
    retries: int = Field(2, ge=0)
    retry_delay_s: NonNegative = 5.0
    timeout_s: Positive = Field(86400.0, description="a stage that takes longer is interrupted and tried again")


class Params(Section):
    """All of `params.yaml`."""

    protein: Annotated[Annotated[Name, Tag("one")] | Annotated[Names, Tag("several")], Discriminator(_how_many)] = (
        Field("chignolin", description="folder in data/; or a list of several, whose frames train one network")
    )
    seed: int = Field(1, ge=0, lt=2**31, description="same seed, same machine: same bytes")
    temperature_K: Positive = Field(350.0, description="of seed, reference, labels and simulation")
    campaign: CampaignParams = CampaignParams()
    force_field: ForceFieldParams = ForceFieldParams()
    mapping: MappingParams = MappingParams()
    prior: PriorParams = PriorParams()
    network: NetworkParams = SchNetParams()
    training: TrainingParams = TrainingParams()
    simulation: SimulationParams = SimulationParams()
    selection: SelectionParams = SelectionParams()
    backmapping: BackmappingParams = BackmappingParams()
    oracle: OracleParams = OracleParams()
    benchmark: BenchmarkParams = BenchmarkParams()
    reference: ReferenceParams = ReferenceParams()
    execution: ExecutionParams = ExecutionParams()

    @property
    def label_steps(self) -> int:
        """All-atom steps of a picked frame, from its beads to its forces."""
        return self.backmapping.steps + self.force_field.water_steps + self.oracle.steps

    @model_validator(mode="before")
    @classmethod
    def _device_of_earlier_versions(cls, content: Any) -> Any:
        """Take `execution.device`, where it stood in 0.1, as `simulation.device`, unless that is there."""
        execution = content.get("execution") if isinstance(content, Mapping) else None
        if not isinstance(execution, Mapping) or "device" not in execution:
            return content
        others = {key: value for key, value in execution.items() if key != "device"}
        return merged({"simulation": {"device": execution["device"]}}, {**content, "execution": others})

    @model_validator(mode="after")
    def _values_fit_together(self) -> "Params":
        for name, run in (
            ("simulation", self.simulation),
            ("training.relative_entropy.dynamics", self.training.relative_entropy.dynamics),
        ):
            if run.steps < run.stride:
                raise ValueError(f"{name}.steps must not be below {name}.stride, or no frame is saved")
        if self.oracle.average_steps < self.oracle.sample_stride:
            raise ValueError("oracle.average_steps must not be below oracle.sample_stride, or no force is averaged")
        if self.oracle.mode == "free" and self.oracle.average_steps < self.oracle.free_stride:
            raise ValueError("oracle.average_steps must not be below oracle.free_stride, or no frame is labelled")
        for length, spacing in (("hot_ps", "hot_spacing_ps"), ("segment_ps", "spacing_ps")):
            if getattr(self.reference, length) < getattr(self.reference, spacing):
                raise ValueError(f"reference.{length} must not be below reference.{spacing}, or no frame is kept")
        if len(protein_names(self.protein)) > 1 and self.training.by_replicas:
            raise ValueError(
                f"training.objective {self.training.objective} is for one protein, as its replicas are: set it to "
                "force_matching or forces_and_noise, or let protein name one"
            )
        return self


def load_params(path: Path) -> Params:
    """Read and check a `params.yaml`.

    Raises BadFile when the file is missing, no YAML mapping or has a key twice, BadParams when a key is unknown (with
    the nearest known one) or a value is of the wrong type or outside its bounds; one line for each fault.
    """
    try:
        content = read_yaml(path)
    except FileNotFoundError:
        raise BadFile(
            f"{path}: no such file; run from the project's folder, or give the path of its params.yaml"
        ) from None
    if not isinstance(content, dict):
        raise BadFile(f"{path}: must be a mapping of sections such as 'training:' to their values")
    return check_params(content, path)


def check_params(content: Mapping[str, Any], path: Path) -> Params:
    """Params from the content of a file; raises BadParams with one line for each fault, naming the file and key."""
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        raise BadParams("\n".join(f"{path}: {_explain(fault)}" for fault in error.errors())) from None


def _explain(fault: Any) -> str:
    location = [str(part) for part in fault["loc"]]
    if location[:1] in (["network"], ["protein"]):
        del location[1:2]  # the architecture that pydantic took it for; whether it took it for one or several
    key = ".".join(location)
    if fault["type"] == "extra_forbidden":
        near = get_close_matches(location[-1], _known_keys(location[:-1]), n=1)
        hint = f"did you mean {near[0]}?" if near else "remove it"
        return f"{key}: unknown key; {hint}"
    message = fault["msg"].removeprefix("Value error, ")
    return f"{key}: {message} (got {fault['input']!r})" if key else message


def _known_keys(section: list[str]) -> list[str]:
    models: tuple[type[Section], ...] = (Params,)
    for name in section:
        models = section_models(models[0].model_fields[name].annotation)
    return [key for model in models for key in model.model_fields]


def section_models(annotation: Any) -> tuple[type[Section], ...]:
    """Models that a key of `Params` may hold: one a section, one an architecture for `network`, none for a number."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return (annotation,)
    return tuple(model for part in get_args(annotation) for model in section_models(part))


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings, the second one's values first.

    >>> merged({"a": {"x": 1, "y": 2}}, {"a": {"x": 3}})
    {'a': {'x': 3, 'y': 2}}
    """
    both = dict(base)
    for key, value in changes.items():
        nested = isinstance(both.get(key), Mapping) and isinstance(value, Mapping)
        both[key] = merged(both[key], value) if nested else value
    return both
