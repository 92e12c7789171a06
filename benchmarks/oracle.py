"""The all-atom oracle: steps against the ordinary way to build it."""

from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Literal

import numpy as np
import openmm
from jaxtyping import Float64
from openmm import app

from benchmarks.harness import Result, Timing, interleave
from cgal.all_atom.force_field import (
    build_system,
    choose_platform,
    forces_of,
    hold_alpha_carbons_of,
    make_context,
    read_structure,
)
from cgal.all_atom.structures import structure_from_sequence
from cgal.frames import AtomFrames
from cgal.params import ForceFieldParams, OracleParams

FRAMES = Path(__file__).parents[1] / "tests" / "data" / "chignolin_small.h5"
PHYSICS = ForceFieldParams(name="ff14SB", platform="CPU")
ORACLE = OracleParams()
TEMPERATURE_K = 350.0
STEPS = 150
SEQUENCES = ("YYDPETGTWY", "NLYIQWLKDGGPSSGRPPPS", "LSDEDFKAVFGMTRSAFANLPLWKQQNLKKEKGLF")
"""CLN025, Trp-cage and villin HP35."""

type Solvent = Literal["obc2", "gbn2"]
SOLVENTS: dict[Solvent, str] = {"obc2": "OBC2", "gbn2": "GBn2"}
type Positions = Float64[np.ndarray, "atoms 3"]
type Start = tuple[app.Topology, Positions]


def results() -> Iterator[Result]:
    """Everything on the CPU platform with one thread per process, as the oracle runs."""
    for sequence in SEQUENCES:
        residues, start = len(sequence), _structure(sequence)
        for solvent in SOLVENTS:
            timing, note = _against_xml(start, solvent)
            yield timing.rates(f"oracle_{solvent}_{residues}", STEPS, "AA steps/s", note)
            if sequence == SEQUENCES[0]:
                yield timing.rates(f"oracle_vs_xml_{'gb' if solvent == 'obc2' else solvent}", STEPS, "AA steps/s", note)
        yield _against_native(start, f"born_vs_native_{residues}")


def _structure(sequence: str) -> Start:
    """Topology and positions of an extended chain; without a cutoff its shape does not matter to the cost."""
    if sequence == SEQUENCES[0]:
        topology, _ = read_structure(bundled_frames().pdb)
        return topology, bundled_frames().positions[0].astype(float)
    pdb = structure_from_sequence(sequence, PHYSICS, temperature_K=TEMPERATURE_K, seed=1)
    return read_structure(pdb)


def _against_xml(start: Start, solvent: Solvent) -> tuple[Timing, str]:
    topology, positions = start
    physics = PHYSICS.model_copy(update={"solvent": solvent})
    ours = _context(build_system(topology, physics, hold_alpha_carbons=True), positions)
    peer = _placed(_untouched(_ordinary(topology, solvent)), positions)
    timing = interleave(partial(_run, ours), partial(_run, peer), repetitions=7)
    model = SOLVENTS[solvent]
    note = (
        f"{_described(topology)}, ff14SB and {model}, C-alpha held, H-bond constraints, 3 fs, one thread, forces read "
        f"every {ORACLE.sample_stride} steps as for a mean-force label; ours: {model} by cgal.all_atom.born; peer: "
        f"openmm.app with amber14/protein.ff14SB.xml and implicit/{solvent}.xml, a CustomGBForce"
    )
    return timing, note


def _against_native(start: Start, name: str) -> Result:
    """The OBC2 of `cgal.all_atom.born` against the force of OpenMM that it stands in for, all else the same."""
    topology, positions = start
    system = build_system(topology, PHYSICS, hold_alpha_carbons=True)
    ours, native = _context(system, positions), _placed(_untouched(system), positions)
    timing = interleave(partial(_run, ours), partial(_run, native), repetitions=7)
    note = (
        f"{_described(topology)}, as above; ours: OBC2 by cgal.all_atom.born; peer: the same system with OpenMM's own "
        "GBSAOBCForce"
    )
    return timing.rates(name, STEPS, "AA steps/s", note)


def _described(topology: app.Topology) -> str:
    return f"{topology.getNumResidues()} residues, {topology.getNumAtoms()} atoms"


def _untouched(system: openmm.System) -> openmm.Context:
    """With OpenMM's own forces: `make_context` would put compiled ones in their place."""
    integrator = openmm.LangevinMiddleIntegrator(TEMPERATURE_K, PHYSICS.friction_per_ps, ORACLE.timestep_ps)
    name, properties = choose_platform(PHYSICS.platform)
    return openmm.Context(system, integrator, openmm.Platform.getPlatformByName(name), properties)


def _ordinary(topology: app.Topology, solvent: Solvent) -> openmm.System:
    """The same system as a user of OpenMM builds it; only the C-alpha are held, as ours are."""
    forcefield = app.ForceField("amber14/protein.ff14SB.xml", f"implicit/{solvent}.xml")
    system, unconstrained = (
        forcefield.createSystem(
            topology,
            nonbondedMethod=app.NoCutoff,
            constraints=constraints,
            hydrogenMass=PHYSICS.hydrogen_mass_amu,
            removeCMMotion=False,
        )
        for constraints in (app.HBonds, None)
    )
    hold_alpha_carbons_of(system, topology, unconstrained)
    return system


def _context(system: openmm.System, positions: Positions) -> openmm.Context:
    context = make_context(system, PHYSICS, temperature_K=TEMPERATURE_K, timestep_ps=ORACLE.timestep_ps, seed=1)
    return _placed(context, positions)


def _placed(context: openmm.Context, positions: Positions) -> openmm.Context:
    context.setPositions(positions)
    context.applyConstraints(1e-6)
    context.setVelocitiesToTemperature(TEMPERATURE_K, 1)
    return context


def _run(context: openmm.Context) -> None:
    for _ in range(STEPS // ORACLE.sample_stride):
        context.getIntegrator().step(ORACLE.sample_stride)
        forces_of(context)


@cache
def bundled_frames() -> AtomFrames:
    """All-atom frames of chignolin."""
    return AtomFrames.load(FRAMES)
