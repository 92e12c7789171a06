"""Every number that a run depends on: `params.yaml`, typed, bounded and documented.

Sections are frozen and refuse unknown keys, so that a typo fails at load. `dvc.yaml` names, for each stage, the
sections that it depends on; `execution` is in none of them, since it decides how fast a run goes and never what it
finds.
"""

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cgal.errors import BadFile, BadParams

__all__ = [
    "BackmappingParams",
    "BenchmarkParams",
    "CampaignParams",
    "ExecutionParams",
    "ForceFieldParams",
    "MappingParams",
    "NetworkParams",
    "OracleParams",
    "Params",
    "PriorParams",
    "ReferenceParams",
    "SelectionParams",
    "SimulationParams",
    "TrainingParams",
    "check_params",
    "load_params",
    "merged",
]

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(gt=0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]


class Section(BaseModel):
    """Base of all sections: frozen, strict about keys and types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class CampaignParams(Section):
    """What a campaign is called and how long it goes on."""

    name: Name = "demo"
    rounds: Annotated[int, Field(ge=0)] = Field(
        2, description="acquisition rounds at most; one closing round (no acquisition) follows"
    )
    budget_steps: Annotated[int, Field(ge=0)] = Field(
        0, description="all-atom steps to spend on labels at most, the seed's aside; 0: what the rounds ask for"
    )
    stop_below: Fraction = Field(
        0.02, description="converged when no more than this share of the simulated frames is uncovered; 0: never"
    )
    stop_rounds: Count = Field(2, description="for so many rounds, with no measurable change of TICA W1 in the last")
    continued_md_steps: Annotated[int, Field(ge=0)] = Field(
        0, description="a control: continue the seed's all-atom trajectory this far before the first round"
    )


class ForceFieldParams(Section):
    """The all-atom physics that reference and oracle share."""

    name: Literal["ff96", "ff14SB", "amber14"] = "ff96"
    solvent: Literal["obc2", "gbn2", "tip3pfb"] = Field("obc2", description="obc2 uses the native GBSAOBCForce")
    ph: Annotated[float, Field(ge=0, le=14)] = 7.0
    timestep_ps: Annotated[float, Field(gt=0, le=0.005)] = 0.004
    hydrogen_mass_amu: Annotated[float, Field(ge=1, le=5)] = 4.0
    friction_per_ps: Positive = 1.0
    platform: Literal["auto", "CPU", "CUDA", "OpenCL", "Reference"] = "auto"


class MappingParams(Section):
    """How all-atom forces become bead forces (Xi_F)."""

    force_map: Literal["local_frames", "optimal", "constraint_aware", "slice"] = "optimal"
    ridge: NonNegative = Field(
        0.03, description="draws the optimal map towards whole-residue sums; relative to the mean squared force"
    )


class PriorParams(Section):
    """The physical prior, fitted by Boltzmann inversion from the frames of all shards, anew each round."""

    bins: Annotated[int, Field(ge=16)] = Field(60, description="histogram bins of a dihedral")
    minimum_bond_sigma_nm: Positive = Field(0.003, description="a narrower bond than this is not believed")
    minimum_angle_sigma_rad: Positive = Field(0.2, description="a seed's basin is narrower than the whole landscape")
    dihedral_order: Annotated[int, Field(ge=0, le=6)] = 3
    dihedral_scale: NonNegative = Field(
        0.5, description="share of the inverted dihedral potential that the prior takes"
    )
    repulsion_kJ_per_mol: Positive = Field(1.0, description="prior energy at the repulsion radius")
    repulsion_quantile: Fraction = Field(0.001, description="quantile of training distances that sets the radius")
    maximum_repulsion_radius_nm: Positive = Field(
        0.45, description="an extended seed must not forbid the contacts of a folded chain"
    )


class NetworkParams(Section):
    """SchNet: schnetpack's representation on C-alpha beads."""

    features: Count = 64
    blocks: Count = 2
    radial_functions: Annotated[int, Field(ge=2)] = 24
    cutoff_nm: Positive = 1.5


class TrainingParams(Section):
    """Force matching."""

    epochs: Count = 50
    batch_size: Count = Field(16, description="small: few labels are learned best by many noisy steps")
    learning_rate: Positive = 3e-3
    final_learning_rate_fraction: Fraction = 0.02
    weight_decay: NonNegative = 1e-4
    gradient_clip: Positive = 10.0
    bond_weight: Fraction = Field(
        1.0,
        description="of force errors along CA-CA bonds, where noise is greatest and the prior's springs do the work",
    )
    validation_fraction: Annotated[float, Field(gt=0, lt=0.5)] = 0.2
    validation_block_frames: Count = Field(
        10, description="held-out blocks are runs of this many frames of a trajectory"
    )
    patience_epochs: Count = 12
    warm_start: bool = Field(True, description="continue from the last round's weights; false starts afresh")
    checkpoint_epochs: Count = Field(5, description="a killed training continues from the last multiple of this")
    preflight: bool = Field(True, description="stop when held-out forces are no better than the prior's")


class SimulationParams(Section):
    """Langevin dynamics of the coarse-grained model (BAOAB)."""

    replicas: Count = 32
    steps: Count = 3000
    stride: Count = 30
    timestep_ps: Positive = 0.005
    friction_per_ps: Positive = 1.0
    bead_mass_amu: Positive = 100.0
    maximum_bond_nm: Positive = Field(0.7, description="a longer CA-CA bond means an explosion")
    minimum_distance_nm: NonNegative = Field(0.2, description="two beads closer than this mean an implosion")
    filter_intervals: Annotated[int, Field(ge=32, le=16384)] = Field(
        512, description="of a filter's table; forces err by less than 1e-5 at 512, and 8 times that at half of it"
    )


class SelectionParams(Section):
    """Which simulated frames are worth an oracle call."""

    strategy: Literal["rmsd_histogram", "random", "coverage", "k_centre", "committee", "committee_coverage"] = (
        "rmsd_histogram"
    )
    frames: Count = 20
    bins: Count = 40
    cutoff_nm: Positive = Field(1.0, description="a frame further than this from the reference frame is unphysical")
    minimum_bond_nm: NonNegative = Field(0.27, description="a shorter CA-CA bond is unphysical (cis bonds have 0.29)")
    maximum_bond_nm: Positive = Field(0.47, description="a longer CA-CA bond is unphysical")
    minimum_distance_nm: NonNegative = Field(0.3, description="two unbonded beads closer than this overlap")
    novel_nm: Positive = Field(0.1, description="a frame further than this from all training frames is uncovered")
    distinct_nm: NonNegative = Field(
        0.08, description="least RMSD between two picks of a batch; not of rmsd_histogram and random"
    )
    committee: Annotated[int, Field(ge=2)] = Field(4, description="networks trained afresh when a strategy asks them")


class BackmappingParams(Section):
    """From C-alpha beads back to all atoms."""

    restraint_kJ_per_mol_nm2: Positive = Field(1e6, description="holds CA in place while the rest relaxes")
    minimise_steps: Count = 500
    clash_nm: Positive = Field(0.08, description="two unbonded heavy atoms closer than this clash")
    warm_up_steps: Count = Field(100, description="restrained dynamics at a short step before the label is taken")
    warm_up_timestep_ps: Positive = 0.001
    anneal_steps: Annotated[int, Field(ge=0)] = Field(
        0, description="hot dynamics with held CA that let peptide planes turn over, the second half cooling; 0: none"
    )
    anneal_temperature_K: Positive = Field(1500.0, description="at 600 K planes stay as PULCHRA put them")
    anneal_timestep_ps: Positive = 0.002
    maximum_displacement_nm: Positive = Field(0.05, description="CA may move this far from the picked frame")

    @property
    def steps(self) -> int:
        """Molecular-dynamics steps that a frame takes."""
        return self.warm_up_steps + self.anneal_steps


class OracleParams(Section):
    """How a backmapped frame is labelled with forces."""

    mode: Literal["mean_force", "free"] = "mean_force"
    timestep_ps: Positive = Field(
        0.003, description="of mean_force labels, whose CA are massless: shorter than production"
    )
    burn_in_steps: Annotated[int, Field(ge=0)] = 150
    average_steps: Count = Field(600, description="steps averaged per label (mean_force), or run per frame (free)")
    sample_stride: Count = Field(5, description="steps between force samples in an average")
    free_stride: Count = Field(100, description="steps between stored frames of free labels")
    quorum: Fraction = Field(0.5, description="share of a full round's picks that must be labelled for it to go on")


class BenchmarkParams(Section):
    """The five Wasserstein-1 distances to the reference."""

    mode: Literal["exact", "paper"] = Field("exact", description="which of the two, both computed, is the headline")
    tica_lag_ps: Positive = 100.0
    discard_fraction: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.1, description="share of each replica dropped first"
    )
    bootstrap: Count = Field(200, description="block-bootstrap resamples over replicas")
    maximum_frames: Count = Field(2000, description="frames per sample in the two-dimensional TICA transport problem")
    blocks: Annotated[int, Field(ge=2)] = Field(
        10, description="a lone replica or reference trajectory is cut into this many for the bootstrap"
    )
    folded_rmsd_nm: Positive = Field(0.2, description="a frame nearer than this to the native one counts as folded")
    rmsd_bins: Count = 50


class ReferenceParams(Section):
    """The ground truth: hot exploration, a swarm of unbiased all-atom trajectories, a Markov state model."""

    hot_temperature_K: Positive = Field(500.0, description="of the exploration that finds starts for the swarm")
    hot_trajectories: Count = Field(8, description="runs of the exploration, all from the start structure")
    hot_ps: Positive = Field(300.0, description="length of each")
    hot_spacing_ps: Positive = Field(2.0, description="time between the frames of which starts are chosen")
    equilibration_ps: NonNegative = Field(20.0, description="each start's time at temperature_K before the swarm")
    trajectories: Count = Field(32, description="of the swarm; raising it adds more")
    trajectory_ns: Positive = Field(2.0, description="length of each; raising it extends them")
    segment_ps: Positive = Field(200.0, description="a killed run loses at most this much of each trajectory at work")
    spacing_ps: Positive = Field(2.0, description="time between stored frames")
    tica_lag_ps: Positive = Field(100.0, description="of the coordinates that the Markov model's states are made in")
    tica_dimensions: Annotated[int, Field(ge=2)] = Field(4, description="slow coordinates")
    states: Annotated[int, Field(ge=2)] = Field(100, description="k-means clusters in them")
    lag_ps: Positive = Field(100.0, description="of the Markov model; see the figure of implied timescales")
    samples: Count = Field(100, description="draws of the posterior, for errors of timescales and probabilities")
    bootstrap: Count = Field(200, description="draws of trajectories, for the error of the folded fraction")
    folded_nm: Positive = Field(0.15, description="CA RMSD to the native frame below which a frame is folded")
    unfolded_nm: Positive = Field(0.35, description="and above which it is unfolded; what lies between is neither")
    splits: Count = Field(8, description="random splits into halves, by trajectory, for the floor")
    frames: Count = Field(10000, description="of the reference that the benchmark uses, evenly thinned")


class ExecutionParams(Section):
    """How fast a run goes, never what it finds; no stage depends on it."""

    torch_threads: Annotated[int, Field(ge=0)] = Field(0, description="0: every core at hand")
    oracle_workers: Count = Field(2, description="all-atom runs (labels, reference) at a time")
    task_runner: Literal["processes", "threads", "dask", "dask_slurm", "dask_address"] = Field(
        "processes",
        description="where they run: on this machine, or on the Dask cluster that cluster.yaml describes",
    )
    transport: Literal["shared", "dvc"] = Field(
        "shared", description="how a worker of cgal-gpu gets files: it sees this folder, or through the DVC remote"
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"
    retries: Annotated[int, Field(ge=0)] = 2
    retry_delay_s: NonNegative = 5.0
    timeout_s: Positive = Field(86400.0, description="a stage that takes longer is interrupted and tried again")


class Params(Section):
    """All of `params.yaml`."""

    protein: Name = "chignolin"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 1
    temperature_K: Positive = 350.0
    campaign: CampaignParams = CampaignParams()
    force_field: ForceFieldParams = ForceFieldParams()
    mapping: MappingParams = MappingParams()
    prior: PriorParams = PriorParams()
    network: NetworkParams = NetworkParams()
    training: TrainingParams = TrainingParams()
    simulation: SimulationParams = SimulationParams()
    selection: SelectionParams = SelectionParams()
    backmapping: BackmappingParams = BackmappingParams()
    oracle: OracleParams = OracleParams()
    benchmark: BenchmarkParams = BenchmarkParams()
    reference: ReferenceParams = ReferenceParams()
    execution: ExecutionParams = ExecutionParams()

    @model_validator(mode="after")
    def _values_fit_together(self) -> "Params":
        if self.simulation.steps < self.simulation.stride:
            raise ValueError("simulation.steps must not be below simulation.stride, or no frame is saved")
        if self.oracle.average_steps < self.oracle.sample_stride:
            raise ValueError("oracle.average_steps must not be below oracle.sample_stride, or no force is averaged")
        if self.oracle.mode == "free" and self.oracle.average_steps < self.oracle.free_stride:
            raise ValueError("oracle.average_steps must not be below oracle.free_stride, or no frame is labelled")
        if self.oracle.mode == "mean_force" and self.mapping.force_map == "local_frames":
            raise ValueError("mapping.force_map local_frames needs the atoms of each moment: set oracle.mode to free")
        return self


def load_params(path: Path) -> Params:
    """Read and check a `params.yaml`.

    Raises BadFile when the file is missing or no YAML mapping, BadParams when a key is unknown (with the nearest
    known one) or a value is of the wrong type or outside its bounds; one line for each fault.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise BadFile(f"{path}: no such file; run from the project's folder, or name one with --params") from None
    except yaml.YAMLError as error:
        raise BadFile(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
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
    key = ".".join(location)
    if fault["type"] == "extra_forbidden":
        near = get_close_matches(location[-1], _known_keys(location[:-1]), n=1)
        hint = f"did you mean {near[0]}?" if near else "remove it"
        return f"{key}: unknown key; {hint}"
    message = fault["msg"].removeprefix("Value error, ")
    return f"{key}: {message} (got {fault['input']!r})" if key else message


def _known_keys(section: list[str]) -> list[str]:
    model: type[BaseModel] = Params
    for name in section:
        annotation = model.model_fields[name].annotation
        assert isinstance(annotation, type)
        assert issubclass(annotation, BaseModel)
        model = annotation
    return list(model.model_fields)


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
