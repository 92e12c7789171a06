"""From C-alpha beads back to a sound, warm all-atom structure, by any of the backmappers in this package.

A backmapper (`backmapping.method` names its module) rebuilds heavy atoms from the C-alpha trace. Common to all:
hydrogens and what else it leaves out are set by the local geometry of the protein's own structure; then the C-alpha are
restrained to the beads while the rest relaxes, and held while it warms up, in implicit solvent. Peptide planes that
were set wrongly do not turn over at the temperature of the simulation; annealing (`anneal_steps`) lets them.

Where an all-atom frame is known that is near the beads, its C-alpha are pulled onto them instead, and it keeps its
side chains and planes (`steer_within_nm`).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib import import_module

import numpy as np
import openmm
from jaxtyping import Bool, Float32, Float64, Int, Shaped
from openmm import app
from scipy.spatial.transform import Rotation

from cgal.all_atom.dynamics import AtomRun, restrain
from cgal.all_atom.force_field import build_system, read_structure
from cgal.all_atom.label_files import Rebuilt
from cgal.all_atom.soundness import cis_peptide_bonds, faults
from cgal.errors import BackmappingError, BadParams, Diverged
from cgal.frames import alpha_carbons, beads_of_residues, read_pdb_text, sequence_of
from cgal.params import BackmappingParams, ForceFieldParams
from cgal.residues import CAPS

__all__ = ["Backmapper", "HeavyAtoms", "backmap", "backmapper_of"]

type HeavyAtoms = dict[tuple[int, str], Float64[np.ndarray, "3"]]
"""Positions [nm] of a rebuilt chain, by number of the residue (from 0) and name of the atom."""

type Backmapper = Callable[[Float64[np.ndarray, "beads 3"], str], HeavyAtoms]
"""`rebuild(beads, sequence)`: heavy atoms for beads [nm], one a residue, and one-letter codes; no chance in it.

Atoms that the structure lacks are ignored, missing ones are placed by the structure's geometry. Raises
BackmappingError when the beads cannot be rebuilt.
"""

MAXIMUM_ENERGY_kJ_per_mol_atom = 1e3
"""More energy per atom than this after minimisation is no molecule (thermal energy is of the order of 10)."""

MINIMISED_FORCE_kJ_per_mol_nm = 50.0
"""Root-mean-square force at which minimisation ends: a fraction of the thermal one, which the warm-up brings back."""

STEERING_kJ_per_mol_nm2 = 1000.0
"""Stiffness of the springs that a steered run begins with; it ends with that of the restraint."""

STEERING_FRICTION_per_ps = 20.0
"""Takes away the heat of the work that the springs do."""

STEERING_STAGES = 50
"""Stiffnesses of a steered run on their way up."""

COOLING_STAGES = 20
"""Temperatures of an annealing on its way down."""


@dataclass(frozen=True, eq=False)
class Template:
    """What is known of a protein: sequence, atoms, their geometry, bonds and physics, C-alpha free or held."""

    topology: app.Topology
    sequence: str
    positions: Float64[np.ndarray, "atoms 3"]
    alpha_carbons: Int[np.ndarray, " beads"]
    index: dict[tuple[int, str], int]
    bonded: tuple[tuple[int, ...], ...]
    cis: tuple[str, ...]
    free: openmm.System
    held: openmm.System


def backmapper_of(name: str) -> Backmapper:
    """Backmapper of a name in `params.yaml`: `rebuild` of the module of that name; BadParams if it is not installed."""
    try:
        found: Backmapper = import_module(f"cgal.all_atom.backmapping.{name}").rebuild
    except ModuleNotFoundError as error:
        raise BadParams(
            f"backmapping {name}: the package {error.name} is not installed; 'make setup' in cgal's clone or "
            f"pip install '/path/to/cgal[{name}]' brings it"
        ) from None
    return found


def backmap(
    beads: Float32[np.ndarray, "beads 3"],
    structure: str,
    params: BackmappingParams,
    force_field: ForceFieldParams,
    *,
    temperature_K: float,
    seed: int,
    near: Float32[np.ndarray, "atoms 3"] | None = None,
) -> Rebuilt:
    """All-atom positions [nm], in the atom order of `structure` (PDB text), whose C-alpha are at the beads.

    The C-alpha may be off by what the restrained minimisation needs, `maximum_displacement_nm` at most. Same seed,
    same positions. `near` is an all-atom frame that is superposed on the beads, from which they are reached by steered
    dynamics; what cannot be reached so is rebuilt by `method`, and what that cannot, by `second_method`.

    Raises BackmappingError, with the structure as far as it came in its `positions`, when the beads
    cannot be rebuilt, or when the result clashes, is torn, has a wrong handedness, a new cis peptide bond, or too
    much energy; `permanent` unless that came of the warm-up, since nothing before it depends on the seed.
    """
    force_field = force_field.without_water
    template = _template(structure, force_field)
    if len(beads) != len(template.alpha_carbons):
        raise BackmappingError(
            f"{len(beads)} beads, but the structure has {len(template.alpha_carbons)} residues; "
            "give the structure of the protein that was simulated"
        )
    if not np.isfinite(beads).all():
        raise _failure("beads that are not finite", template, np.full_like(template.positions, np.nan))
    rest = (template, beads, params, force_field, temperature_K, seed)
    ways = [partial(_rebuild, method, *rest) for method in (params.method, params.second_method) if method != "none"]
    return _first_success([partial(_steer, near, *rest), *ways] if near is not None else ways)


def _first_success(ways: Sequence[Callable[[], Rebuilt]]) -> Rebuilt:
    """What the first way gives that does not fail; raises the error of the last, with the steps of all."""
    spent, permanent = 0, True
    for way in ways:
        try:
            with _after(spent):
                found = way()
            return Rebuilt(found.positions, spent + found.steps)
        except BackmappingError as error:
            spent, permanent, last = error.steps, permanent and error.permanent, error
    last.permanent = permanent
    raise last


def _rebuild(
    method: str,
    template: Template,
    beads: Float32[np.ndarray, "beads 3"],
    params: BackmappingParams,
    force_field: ForceFieldParams,
    temperature_K: float,
    seed: int,
) -> Rebuilt:
    """All atoms from the beads alone."""
    rebuilt = _complete(template, *_heavy_atoms(template, beads, method))
    relaxed, minimised = _minimise(template, rebuilt, beads, params, force_field)
    with _after(minimised):
        _check(template, relaxed, beads, params)
        warm, warmed = _warm_up(template, relaxed, beads, params, force_field, temperature_K, seed)
    return Rebuilt(warm.astype(np.float32), minimised + warmed)


def _steer(
    near: Float32[np.ndarray, "atoms 3"],
    template: Template,
    beads: Float32[np.ndarray, "beads 3"],
    params: BackmappingParams,
    force_field: ForceFieldParams,
    temperature_K: float,
    seed: int,
) -> Rebuilt:
    """All atoms from a frame near the beads: springs of growing stiffness pull its C-alpha onto them."""
    system = deepcopy(template.free)
    restrain(system, template.alpha_carbons, beads, STEERING_kJ_per_mol_nm2)
    timestep_ps = params.warm_up_timestep_ps
    run = AtomRun(system, force_field, temperature_K=temperature_K, timestep_ps=timestep_ps, seed=seed)
    run.integrator.setFriction(STEERING_FRICTION_per_ps)
    run.place(near, constrain=True)
    stages = np.array_split(np.arange(params.steer_steps), min(STEERING_STAGES, params.steer_steps))
    try:
        run.draw_velocities()
        for stage, stiffness in zip(
            stages, np.geomspace(STEERING_kJ_per_mol_nm2, params.restraint_kJ_per_mol_nm2, len(stages)), strict=True
        ):
            run.context.setParameter("k", stiffness)
            run.advance(len(stage))
    except Diverged as error:
        failure = _failure(f"steering diverged ({error})", template, near, run.steps)
        failure.permanent = False
        raise failure from error
    steered = run.positions()
    with _after(run.steps):
        _check(template, steered, beads, params)
        steered[template.alpha_carbons] = beads
        warm, warmed = _warm_up(template, steered, beads, params, force_field, temperature_K, seed)
    return Rebuilt(warm.astype(np.float32), run.steps + warmed)


@contextmanager
def _after(steps: int) -> Iterator[None]:
    """Add the steps that were taken before to those of an error."""
    try:
        yield
    except BackmappingError as error:
        error.steps += steps
        raise


@lru_cache(maxsize=4)
def _template(structure: str, force_field: ForceFieldParams) -> Template:
    topology, positions = read_structure(structure)
    neighbours: list[list[int]] = [[] for _ in range(topology.getNumAtoms())]
    for first, second in topology.bonds():
        neighbours[first.index].append(second.index)
        neighbours[second.index].append(first.index)
    known = read_pdb_text(structure).topology
    beads = beads_of_residues(known)
    index = {
        (int(beads[atom.residue.index]), atom.name): atom.index
        for atom in topology.atoms()
        if atom.residue.name not in CAPS
    }
    return Template(
        topology,
        sequence_of(known),
        positions,
        alpha_carbons(known),
        index,
        tuple(tuple(sorted(atoms)) for atoms in neighbours),
        cis_peptide_bonds(topology, positions),
        build_system(topology, force_field),
        build_system(topology, force_field, hold_alpha_carbons=True),
    )


def _heavy_atoms(
    template: Template, beads: Float32[np.ndarray, "beads 3"], method: str
) -> tuple[Float64[np.ndarray, "atoms 3"], Bool[np.ndarray, " atoms"]]:
    """Positions of the atoms that the method knows, NaN for the others, and which they are."""
    positions = np.full_like(template.positions, np.nan)
    try:
        found = backmapper_of(method)(beads.astype(np.float64), template.sequence)
    except BackmappingError as error:
        raise _failure(str(error), template, positions) from error
    for atom, position in found.items():
        if atom in template.index:
            positions[template.index[atom]] = position
    positions[template.alpha_carbons] = beads
    known = np.isfinite(positions).all(axis=1)
    if not known[template.alpha_carbons].all() or known.sum() <= len(beads):
        raise _failure(f"{method} cannot rebuild the beads (positions are not finite)", template, positions)
    return positions, known


def _complete(
    template: Template, positions: Float64[np.ndarray, "atoms 3"], known: Bool[np.ndarray, " atoms"]
) -> Float64[np.ndarray, "atoms 3"]:
    """Set each missing atom by superposing the structure's surroundings of its bond partner on the known atoms."""
    while not known.all():
        grown = positions.copy()
        for parent in np.flatnonzero(known):
            missing = [atom for atom in template.bonded[parent] if not known[atom]]
            if missing:
                grown[missing] = _place(template, positions, known, int(parent), missing)
        if not np.isfinite(grown[~known]).any():
            raise _failure("the chain cannot be rebuilt from the beads (positions are not finite)", template, positions)
        positions, known = grown, np.isfinite(grown).all(axis=1)
    return positions


def _place(
    template: Template,
    positions: Float64[np.ndarray, "atoms 3"],
    known: Bool[np.ndarray, " atoms"],
    parent: int,
    missing: list[int],
) -> Float64[np.ndarray, "missing 3"]:
    anchors = [atom for atom in template.bonded[parent] if known[atom]]
    if len(anchors) < 2:
        anchors += [
            second for first in anchors for second in template.bonded[first] if known[second] and second != parent
        ]
    origin = template.positions[parent]
    rotation, _ = Rotation.align_vectors(positions[anchors] - positions[parent], template.positions[anchors] - origin)
    placed: Float64[np.ndarray, "missing 3"] = rotation.apply(template.positions[missing] - origin) + positions[parent]
    return placed


def _minimise(
    template: Template,
    positions: Float64[np.ndarray, "atoms 3"],
    beads: Float32[np.ndarray, "beads 3"],
    params: BackmappingParams,
    force_field: ForceFieldParams,
) -> tuple[Float64[np.ndarray, "atoms 3"], int]:
    system = deepcopy(template.free)
    restrain(system, template.alpha_carbons, beads, params.restraint_kJ_per_mol_nm2)
    run = AtomRun(system, force_field, temperature_K=0.0, timestep_ps=params.warm_up_timestep_ps, seed=1)
    run.place(positions)
    try:
        energy_kJ_per_mol = run.minimise(MINIMISED_FORCE_kJ_per_mol_nm, params.minimise_steps)
    except Diverged as error:
        raise _failure(f"minimisation failed ({error})", template, positions, run.steps) from error
    relaxed = run.positions()
    if not energy_kJ_per_mol < MAXIMUM_ENERGY_kJ_per_mol_atom * len(relaxed):
        reason = f"energy of {energy_kJ_per_mol:.2g} kJ/mol after {params.minimise_steps} minimisation steps"
        raise _failure(reason, template, relaxed, run.steps)
    return relaxed, run.steps


def _warm_up(
    template: Template,
    positions: Float64[np.ndarray, "atoms 3"],
    beads: Float32[np.ndarray, "beads 3"],
    params: BackmappingParams,
    force_field: ForceFieldParams,
    temperature_K: float,
    seed: int,
) -> tuple[Float64[np.ndarray, "atoms 3"], int]:
    """Dynamics with held C-alpha; its failures are chance, which another seed may help."""
    timestep_ps = params.warm_up_timestep_ps
    run = AtomRun(template.held, force_field, temperature_K=temperature_K, timestep_ps=timestep_ps, seed=seed)
    run.place(positions)
    try:
        run.draw_velocities()
        run.advance(params.warm_up_steps)
        _anneal(run, params)
        warm = run.positions()
        _check(template, warm, beads, params)
    except Diverged as error:
        failure = _failure(f"warm-up diverged ({error})", template, positions, run.steps)
        failure.permanent = False
        raise failure from error
    except BackmappingError as error:
        error.permanent, error.steps = False, run.steps
        raise
    return warm, run.steps


def _anneal(run: AtomRun, params: BackmappingParams) -> None:
    """Half of the steps hot, the other half cooling geometrically back to the run's temperature."""
    run.integrator.setStepSize(params.anneal_timestep_ps)
    hot = params.anneal_steps // 2
    run.integrator.setTemperature(params.anneal_temperature_K)
    run.advance(hot)
    cooling = params.anneal_steps - hot
    stages = np.array_split(np.arange(cooling), min(COOLING_STAGES, max(cooling, 1)))
    ladder_K = np.geomspace(params.anneal_temperature_K, run.temperature_K, len(stages) + 1)[1:]
    for stage, stage_K in zip(stages, ladder_K, strict=True):
        run.integrator.setTemperature(stage_K)
        run.advance(len(stage))


def _check(
    template: Template,
    positions: Float64[np.ndarray, "atoms 3"],
    beads: Float32[np.ndarray, "beads 3"],
    params: BackmappingParams,
) -> None:
    found = faults(template.topology, template.free, positions, clash_nm=params.clash_nm)
    if not found:
        found = tuple(fault for fault in cis_peptide_bonds(template.topology, positions) if fault not in template.cis)
    if found:
        others = f" and {len(found) - 1} more faults" if len(found) > 1 else ""
        raise _failure(f"{found[0]}{others}", template, positions)
    moved = np.linalg.norm(positions[template.alpha_carbons] - beads, axis=1)
    if moved.max() > params.maximum_displacement_nm:
        reason = f"C-alpha of residue {int(moved.argmax()) + 1} moved {moved.max():.3f} nm from its bead"
        raise _failure(reason, template, positions)


def _failure(
    reason: str, template: Template, positions: Shaped[np.ndarray, "atoms 3"], steps: int = 0
) -> BackmappingError:
    error = BackmappingError(
        f"{reason}; raise backmapping.minimise_steps, or drop such frames with a lower selection.cutoff_nm"
    )
    error.positions, error.permanent, error.steps = positions, True, steps
    return error
