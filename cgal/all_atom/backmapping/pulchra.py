"""From C-alpha beads back to a sound, warm all-atom structure.

PULCHRA (Rotkiewicz and Skolnick 2008) rebuilds backbone and side chains from the C-alpha trace; hydrogens and what
else it does not know are set by the local geometry of the protein's own structure; then the C-alpha are restrained to
the beads while the rest relaxes, and held while it warms up. PULCHRA sets peptide planes by the C-alpha trace alone;
annealing (`anneal_steps`) lets them turn over, which they do not at the temperature of the simulation.
"""

import warnings
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import openmm
from jaxtyping import Bool, Float32, Float64, Int, Shaped
from openmm import app
from pulchra import Pulchra
from scipy.spatial.transform import Rotation

from cgal.all_atom.force_field import build_system, make_context, positions_of, read_structure
from cgal.all_atom.soundness import cis_peptide_bonds, faults
from cgal.errors import BackmappingError
from cgal.frames import read_pdb_text, sequence_of
from cgal.params import BackmappingParams, ForceFieldParams
from cgal.units import ANGSTROM_PER_NM

__all__ = ["backmap"]

MAXIMUM_ENERGY_kJ_per_mol_atom = 1e3
"""More energy per atom than this after minimisation is no molecule (thermal energy is of the order of 10)."""


MINIMISED_FORCE_kJ_per_mol_nm = 50.0
"""Root-mean-square force at which minimisation ends: a fraction of the thermal one, which the warm-up brings back."""

CAPPING_RESIDUES = 2
"""Glycines put on each end of the chain while PULCHRA works: it needs neighbours on both sides to place a residue."""


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


def backmap(
    beads: Float32[np.ndarray, "beads 3"],
    structure: str,
    params: BackmappingParams,
    force_field: ForceFieldParams,
    *,
    temperature_K: float,
    seed: int,
) -> Float32[np.ndarray, "atoms 3"]:
    """All-atom positions [nm], in the atom order of `structure` (PDB text), whose C-alpha are at the beads.

    The C-alpha may be off by what the restrained minimisation needs, `maximum_displacement_nm` at most. Same seed,
    same positions. Raises BackmappingError, with the structure as far as it came in its `positions`, when the beads
    cannot be rebuilt, or when the result clashes, is torn, has a wrong handedness, a new cis peptide bond, or too
    much energy; `hopeless` unless that came of the warm-up, since nothing before it depends on the seed.
    """
    template = _template(structure, force_field)
    if len(beads) != len(template.alpha_carbons):
        raise BackmappingError(
            f"{len(beads)} beads, but the structure has {len(template.alpha_carbons)} residues; "
            "give the structure of the protein that was simulated"
        )
    if not np.isfinite(beads).all():
        raise _failure("beads that are not finite", template, np.full_like(template.positions, np.nan))
    rebuilt = _complete(template, *_rebuild_heavy_atoms(template, beads))
    relaxed = _minimise(template, rebuilt, beads, params, force_field)
    _check(template, relaxed, beads, params)
    try:
        warm = _warm_up(template, relaxed, params, force_field, temperature_K, seed)
        _check(template, warm, beads, params)
    except BackmappingError as error:  # the only part that chance plays a part in
        error.hopeless, error.steps = False, params.steps
        raise
    return warm.astype(np.float32)


@lru_cache(maxsize=4)
def _template(structure: str, force_field: ForceFieldParams) -> Template:
    topology, positions = read_structure(structure)
    neighbours: list[list[int]] = [[] for _ in range(topology.getNumAtoms())]
    for first, second in topology.bonds():
        neighbours[first.index].append(second.index)
        neighbours[second.index].append(first.index)
    index = {(atom.residue.index, atom.name): atom.index for atom in topology.atoms()}
    return Template(
        topology,
        sequence_of(read_pdb_text(structure).topology),
        positions,
        np.array([index[residue.index, "CA"] for residue in topology.residues()]),
        index,
        tuple(tuple(sorted(atoms)) for atoms in neighbours),
        cis_peptide_bonds(topology, positions),
        build_system(topology, force_field),
        build_system(topology, force_field, hold_alpha_carbons=True),
    )


@lru_cache(maxsize=1)
def _pulchra() -> Pulchra:
    return Pulchra(ca_optimize=False)  # the C-alpha stay where the model put them


def _rebuild_heavy_atoms(
    template: Template, beads: Float32[np.ndarray, "beads 3"]
) -> tuple[Float64[np.ndarray, "atoms 3"], Bool[np.ndarray, " atoms"]]:
    positions = np.full_like(template.positions, np.nan)
    chain = _extend(_extend(beads.astype(np.float64))[::-1])[::-1]
    caps = "G" * CAPPING_RESIDUES
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of the outermost caps, which PULCHRA puts on straight lines
            molecule = _pulchra().reconstruct_coords(chain * ANGSTROM_PER_NM, f"{caps}{template.sequence}{caps}")
    except (ArithmeticError, IndexError, ValueError) as error:  # what NumPy raises on degenerate geometry
        raise _failure(f"PULCHRA cannot rebuild the beads ({error})", template, positions) from error
    for number, residue in enumerate(molecule.residues[CAPPING_RESIDUES:-CAPPING_RESIDUES]):
        for atom in residue.atoms:
            if (number, atom.name.strip()) in template.index:
                positions[template.index[number, atom.name.strip()]] = atom.coords / ANGSTROM_PER_NM
    positions[template.alpha_carbons] = beads
    known = np.isfinite(positions).all(axis=1)
    if not known[template.alpha_carbons].all() or known.sum() <= len(beads):
        raise _failure("PULCHRA cannot rebuild the beads (positions are not finite)", template, positions)
    return positions, known


def _extend(chain: Float64[np.ndarray, "beads 3"]) -> Float64[np.ndarray, "longer 3"]:
    """Go on beyond the last bead as the chain came to it: the move of the last three beads, repeated."""
    for _ in range(CAPPING_RESIDUES):
        before, after = chain[-4:-1], chain[-3:]
        rotation, _ = Rotation.align_vectors(after - after.mean(axis=0), before - before.mean(axis=0))
        chain = np.vstack([chain, rotation.apply(chain[-1] - before.mean(axis=0)) + after.mean(axis=0)])
    return chain


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
            raise _failure("PULCHRA cannot rebuild the beads (positions are not finite)", template, positions)
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
) -> Float64[np.ndarray, "atoms 3"]:
    system = deepcopy(template.free)
    restraint = openmm.CustomExternalForce("0.5*k*((x-x0)^2+(y-y0)^2+(z-z0)^2)")
    restraint.addGlobalParameter("k", params.restraint_kJ_per_mol_nm2)
    for name in ("x0", "y0", "z0"):
        restraint.addPerParticleParameter(name)
    for atom, bead in zip(template.alpha_carbons, beads.astype(np.float64), strict=True):
        restraint.addParticle(int(atom), bead.tolist())
    system.addForce(restraint)
    context = make_context(system, force_field, temperature_K=0.0, timestep_ps=params.warm_up_timestep_ps, seed=1)
    context.setPositions(positions)
    try:
        openmm.LocalEnergyMinimizer.minimize(context, MINIMISED_FORCE_kJ_per_mol_nm, params.minimise_steps)
        energy_kJ_per_mol = context.getState(energy=True).getPotentialEnergy()._value
    except openmm.OpenMMException as error:
        raise _failure(f"minimisation failed ({error})", template, positions) from error
    relaxed = positions_of(context)
    if not energy_kJ_per_mol < MAXIMUM_ENERGY_kJ_per_mol_atom * len(relaxed):
        reason = f"energy of {energy_kJ_per_mol:.2g} kJ/mol after {params.minimise_steps} minimisation steps"
        raise _failure(reason, template, relaxed)
    return relaxed


def _warm_up(
    template: Template,
    positions: Float64[np.ndarray, "atoms 3"],
    params: BackmappingParams,
    force_field: ForceFieldParams,
    temperature_K: float,
    seed: int,
) -> Float64[np.ndarray, "atoms 3"]:
    context = make_context(
        template.held, force_field, temperature_K=temperature_K, timestep_ps=params.warm_up_timestep_ps, seed=seed
    )
    context.setPositions(positions)
    try:
        context.setVelocitiesToTemperature(temperature_K, seed)
        context.getIntegrator().step(params.warm_up_steps)
        _anneal(context.getIntegrator(), params, temperature_K)
    except openmm.OpenMMException as error:
        raise _failure(f"warm-up diverged ({error})", template, positions) from error
    return positions_of(context)


def _anneal(integrator: openmm.LangevinMiddleIntegrator, params: BackmappingParams, temperature_K: float) -> None:
    """Half of the steps hot, the other half cooling geometrically back to the temperature."""
    integrator.setStepSize(params.anneal_timestep_ps)
    hot = params.anneal_steps // 2
    integrator.setTemperature(params.anneal_temperature_K)
    integrator.step(hot)
    cooling = params.anneal_steps - hot
    stages = np.array_split(np.arange(cooling), min(COOLING_STAGES, max(cooling, 1)))
    ladder_K = np.geomspace(params.anneal_temperature_K, temperature_K, len(stages) + 1)[1:]
    for stage, stage_K in zip(stages, ladder_K, strict=True):
        integrator.setTemperature(stage_K)
        integrator.step(len(stage))


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


def _failure(reason: str, template: Template, positions: Shaped[np.ndarray, "atoms 3"]) -> BackmappingError:
    error = BackmappingError(
        f"{reason}; raise backmapping.minimise_steps, or drop such frames with a lower selection.cutoff_nm"
    )
    error.positions, error.hopeless = positions, True
    return error
