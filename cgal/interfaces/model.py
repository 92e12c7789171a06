"""`cgal.load`: a trained model from a checkpoint or a published round, for numpy, ASE and OpenMM."""

import re
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Shaped

from cgal.errors import BadFile
from cgal.frames import check_sequence
from cgal.interfaces.positions import check_positions
from cgal.params import PriorParams, SimulationParams
from cgal.potential.architectures import freeze
from cgal.potential.checkpoint import load_checkpoint
from cgal.potential.potential import Potential
from cgal.potential.prior import fit_prior

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import Calculator
    from openmm import PythonForce, System

__all__ = ["Model", "load"]

ROUND = re.compile(r"[^/]+/round-\d+")

ROUND_FINDERS = "cgal.rounds"
"""Entry points that find the checkpoint of a published round: the science knows neither git nor DVC."""

BEAD_MASS_AMU: float = SimulationParams.model_fields["bead_mass_amu"].default


class Model:
    """Energies and forces of one protein's C-alpha beads, evaluated as a simulation on `device` does, in float32.

    Attributes
    ----------
    potential:
        Its definition on the CPU, prior plus network, for automatic differentiation.
    metadata:
        What training noted in the checkpoint: round, seed, shards, errors.
    """

    def __init__(self, potential: Potential, metadata: dict[str, Any], device: str = "cpu") -> None:
        self.potential, self.metadata, self.device = potential, metadata, device
        self.sequence = potential.sequence
        self._frozen = freeze(potential, device).to(device)

    @property
    def temperature_K(self) -> float:
        """Temperature of the data that it was trained on, and the one that it is meant for."""
        return self.potential.prior.temperature_K

    def energy_and_forces(
        self, positions_nm: Shaped[np.ndarray, "..."]
    ) -> tuple[Float[np.ndarray, "*frames"], Float[np.ndarray, "*frames beads 3"]]:
        """Energies [kJ/mol] and forces [kJ/mol/nm] at positions [nm], (beads, 3) or (frames, beads, 3).

        They have the type of the positions, float32 or float64, and of one frame the energy is one number (an array
        without axes). Raises BadPositions for anything else, positions in Angstrom among them.
        """
        frames = check_positions(positions_nm, self.sequence)
        if not len(frames):
            return np.zeros(0, positions_nm.dtype), np.zeros(positions_nm.shape, positions_nm.dtype)
        energies, forces = self._frozen.energy_and_forces(torch.from_numpy(frames).to(self.device))
        outer, dtype = positions_nm.shape[:-2], positions_nm.dtype
        return (
            energies.detach().cpu().numpy().astype(dtype).reshape(outer),
            forces.detach().cpu().numpy().astype(dtype).reshape(positions_nm.shape),
        )

    def transfer(
        self,
        sequence: str,
        positions_nm: Shaped[np.ndarray, "frames beads 3"],
        prior: PriorParams | None = None,
    ) -> "Model":
        """Give the model of a protein that the network was not trained on: its own prior, the same network.

        The prior is fitted to `positions_nm`, C-alpha frames of that protein at the model's temperature, as many as
        there are; `prior` says how. The network knows the protein by its amino acids alone, and nothing says that it is
        right for it: measure. Raises EmptyTrajectory for fewer than two frames, BadPositions for what is no chain in
        nm, BadStructure for what is no sequence.
        """
        frames = check_positions(positions_nm, check_sequence(sequence))
        fitted = fit_prior(frames, sequence, self.temperature_K, prior or PriorParams())
        origin = {"transferred_from": self.sequence, "prior_frames": len(frames)}
        return Model(self.potential.with_prior(fitted), self.metadata | origin, self.device)

    def ase_calculator(self) -> "Calculator":
        """Give a calculator for ASE, which works in Angstrom and eV."""
        from cgal.interfaces.ase_calculator import ModelCalculator

        return ModelCalculator(self)

    def ase_atoms(self, positions_nm: Float[np.ndarray, "beads 3"], *, mass_amu: float = BEAD_MASS_AMU) -> "Atoms":
        """Give the beads as ASE's atoms ("C", with a bead's mass), their calculator set."""
        from cgal.interfaces.ase_calculator import bead_atoms

        return bead_atoms(self, positions_nm, mass_amu)

    def openmm_force(self) -> "PythonForce":
        """Give a force for OpenMM, on all particles of a system or on those that its `setParticles` names, in order."""
        from cgal.interfaces.openmm_force import model_force

        return model_force(self)

    def openmm_system(self, *, mass_amu: float = BEAD_MASS_AMU) -> "System":
        """Give a system for OpenMM of the beads alone, with that force; its own integrators run it."""
        from cgal.interfaces.openmm_force import model_system

        return model_system(self, mass_amu)


def load(
    path_or_round: str | Path, *, sequence: str | None = None, root: str | Path = ".", device: str = "cpu"
) -> Model:
    """Load a model from a checkpoint such as `round/model.pt`, or of a published round such as `demo/round-002`.

    A round is looked up in the project at `root`; its checkpoint is read from DVC's cache (or a DVC remote) and the
    workspace stays as it is. Of a network trained on several proteins it is the model of `sequence`, or else of the
    first one. Raises BadFile when there is no such file, BadCheckpoint when it is damaged or not for `sequence`,
    VersioningError when there is no such round or no good copy of it.
    """
    path = Path(path_or_round)
    if not path.is_file() and ROUND.fullmatch(str(path_or_round)):
        path = _round_checkpoint(str(path_or_round), Path(root))
    if not path.is_file():
        raise BadFile(f"{path_or_round}: no such file, and no round's tag such as demo/round-002 ('cgal rounds')")
    return Model(*load_checkpoint(path, sequence=sequence), device=device)


def _round_checkpoint(tag: str, root: Path) -> Path:
    for finder in entry_points(group=ROUND_FINDERS):
        path: Path = finder.load()(root, tag)
        return path
    raise BadFile(f"{tag}: this install of cgal is older than its sources; install it again ('make setup')")
