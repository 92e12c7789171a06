"""The gradient of the force-matching loss is that of automatic differentiation, whatever the frames and the network."""

import pytest
import torch

from cgal.params import SchNetParams
from cgal.potential.architectures import new_network
from cgal.potential.force_matching import worker_threads
from cgal.potential.network import bead_types
from cgal.projection.bonds import along_bonds
from cgal.schnet import pair_kernels, pair_sums
from cgal.schnet.force_matching import SchNetForceMatching
from cgal.schnet.network import CGSchNet

SEQUENCES = ("YYDPETGTWY", "AGT", "GG")


def trained_like(params: SchNetParams, dtype: torch.dtype, seed: int = 0) -> CGSchNet:
    """A network all of whose weights are far from where they start."""
    network, generator = new_network(params, seed), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return network.to(dtype)


def chains(frames: int, beads: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Random walks of bond length 0.38 nm: distances from near nothing to beyond the cutoff."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randn(frames, beads, 3, generator=generator, dtype=torch.float64)
    return (0.38 * steps / steps.norm(dim=2, keepdim=True)).cumsum(1).to(dtype)


def labels(positions: torch.Tensor, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (100.0 * torch.randn(positions.shape, generator=generator, dtype=torch.float64)).to(positions.dtype)


def by_autograd(
    network: CGSchNet, types: torch.Tensor, positions: torch.Tensor, forces: torch.Tensor, bond_weight: float = 1.0
):
    """Forces, loss and its gradient, by differentiating twice."""
    at = positions.clone().requires_grad_()
    (energy_gradient,) = torch.autograd.grad(network(at, types).sum(), at, create_graph=True)
    errors = forces + energy_gradient
    along = along_bonds(positions, errors)
    loss = ((errors - along).square() + bond_weight * along.square()).mean()
    gradients = torch.autograd.grad(loss, list(network.parameters()), materialize_grads=True)
    return -energy_gradient.detach(), loss.detach().double(), [gradient.detach() for gradient in gradients]


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm().clamp(min=1e-30))


@pytest.mark.parametrize("frames", [1, 7, 40])
@pytest.mark.parametrize("sequence", SEQUENCES)
@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_gradient_is_that_of_differentiating_twice(sequence, frames, blocks):
    """In float64 what is left is the interpolation: 1e-6 of a filter's slope. Every single layer must agree."""
    network = trained_like(SchNetParams(features=12, blocks=blocks, radial_functions=24, cutoff_nm=1.2), torch.float64)
    types, positions = bead_types(sequence), chains(frames, len(sequence), torch.float64)
    matching = SchNetForceMatching(network, [positions])
    mean_square, gradient = matching.gradient(types, positions, labels(positions))
    forces, loss, expected = by_autograd(network, types, positions, labels(positions))
    assert float(mean_square) == pytest.approx(float(loss), rel=1e-6)
    assert relative(matching.forces(types, positions), forces) < 3e-6
    parts = gradient.split([part.numel() for part in expected])
    for (name, _), part, whole in zip(network.named_parameters(), parts, expected, strict=True):
        assert relative(part, whole.flatten()) < 1e-5, name


@pytest.mark.parametrize("bond_weight", [0.0, 0.01, 0.5])
def test_gradient_of_the_loss_with_weighted_bonds(bond_weight):
    network = trained_like(SchNetParams(features=12, blocks=2, radial_functions=24, cutoff_nm=1.2), torch.float64)
    types, positions = bead_types(SEQUENCES[0]), chains(40, 10, torch.float64)
    matching = SchNetForceMatching(network, [positions], bond_weight=bond_weight)
    mean_square, gradient = matching.gradient(types, positions, labels(positions))
    _, loss, expected = by_autograd(network, types, positions, labels(positions), bond_weight)
    assert float(mean_square) == pytest.approx(float(loss), rel=1e-6)
    assert relative(gradient, torch.cat([part.flatten() for part in expected])) < 1e-5


def test_forces_along_bonds_are_all_that_changes_bonds_to_first_order():
    """What is left of any forces stretches no bond, and springs along bonds are all in the part that is split off."""
    positions = chains(30, 10, torch.float64)
    bonds = positions[:, 1:] - positions[:, :-1]
    forces = labels(positions)
    across = forces - along_bonds(positions, forces)
    assert ((across[:, 1:] - across[:, :-1]) * bonds).sum(2).abs().max() < 1e-8
    pulls = torch.randn(30, 9, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * bonds
    springs = torch.nn.functional.pad(pulls, (0, 0, 0, 1)) - torch.nn.functional.pad(pulls, (0, 0, 1, 0))
    torch.testing.assert_close(along_bonds(positions, springs), springs)


@pytest.mark.parametrize(("features", "radial_functions"), [(64, 24), (128, 50)])
def test_gradient_in_single_precision_is_as_good_as_that_of_differentiating_twice(features, radial_functions):
    """Both against float64; sums in another order, so that one may be luckier than the other by a small factor."""
    params = SchNetParams(features=features, blocks=2, radial_functions=radial_functions)
    network, types = trained_like(params, torch.float32), bead_types(SEQUENCES[0])
    positions = chains(16, 10, torch.float32)
    _, gradient = SchNetForceMatching(network, [positions]).gradient(types, positions, labels(positions))
    twice = torch.cat([part.flatten() for part in by_autograd(network, types, positions, labels(positions))[2]])
    exact = by_autograd(network.double(), types, positions.double(), labels(positions).double())[2]
    expected = torch.cat([part.flatten() for part in exact])
    assert relative(gradient.double(), expected) < max(2e-5, 5 * relative(twice.double(), expected))


def test_gradient_is_the_slope_of_the_loss_along_any_direction_of_the_weights():
    """Central differences of the very loss that is reported: no other derivative enters."""
    network = trained_like(SchNetParams(features=8, blocks=2, radial_functions=12), torch.float64)
    types, positions = bead_types(SEQUENCES[0]), chains(20, 10, torch.float64)
    matching = SchNetForceMatching(network, [positions])
    _, gradient = matching.gradient(types, positions, labels(positions))
    start, generator = matching.weights.clone(), torch.Generator().manual_seed(5)
    for _ in range(3):
        direction = torch.randn(start.shape, generator=generator, dtype=torch.float64)
        losses = []
        for step in (1e-5, -1e-5):
            matching.weights.copy_(start + step * direction)
            losses.append(float(matching.gradient(types, positions, labels(positions))[0]))
        assert float(gradient @ direction) == pytest.approx((losses[0] - losses[1]) / 2e-5, rel=1e-6)


def test_two_proteins_share_one_grid():
    """The second protein's distances lie within those of both together, not within the first's."""
    network = trained_like(SchNetParams(features=8, blocks=2, radial_functions=24), torch.float64)
    first, second = chains(9, 3, torch.float64), chains(5, 10, torch.float64, seed=3)
    matching = SchNetForceMatching(network, [first, second])
    for sequence, positions in (("AGT", first), (SEQUENCES[0], second)):
        types = bead_types(sequence)
        _, gradient = matching.gradient(types, positions, labels(positions))
        _, _, expected = by_autograd(network, types, positions, labels(positions))
        assert relative(gradient, torch.cat([part.flatten() for part in expected])) < 1e-5


def test_results_do_not_depend_on_the_number_of_threads():
    network = trained_like(SchNetParams(features=16, blocks=2, radial_functions=24), torch.float32)
    types, positions = bead_types(SEQUENCES[0]), chains(70, 10, torch.float32)
    found, before = [], torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        with worker_threads() as share:
            matching = SchNetForceMatching(network, [positions], share)
            found.append([*matching.gradient(types, positions, labels(positions)), matching.forces(types, positions)])
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == threads
    torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("beads", [2, 7])
def test_kernels_do_what_their_definition_does(beads):
    """In float64 nothing but the order of sums differs."""
    network = trained_like(SchNetParams(features=10, blocks=1, radial_functions=16), torch.float64)
    positions, generator = chains(6, beads, torch.float64), torch.Generator().manual_seed(2)
    matching = SchNetForceMatching(network, [positions])

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    table, bead_like = random(matching.grid.intervals + 7, 10), (6, beads, 10)
    features, tangents, adjoints, adjoint_tangents = (random(*bead_like) for _ in range(4))
    distance_tangents = random(6, beads * (beads - 1) // 2)

    def everything(sums) -> list[torch.Tensor]:
        points = sums.locate(positions, matching.grid)
        filters, filter_slopes = random(2, *points.rows.shape, 10)
        sums.interpolate(table, points, filters, filter_slopes)
        gradient = table.clone()
        sums.table_gradient(gradient, points, distance_tangents, (features, tangents), (adjoints, adjoint_tangents))
        return [
            *points,
            filters,
            filter_slopes,
            gradient,
            sums.convolve(filters, features),
            sums.tangent_convolve(filters, filter_slopes, distance_tangents, features, tangents),
            sums.slopes(filter_slopes, features, adjoints),
        ]

    for fast, slow in zip(everything(pair_kernels), everything(pair_sums), strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-11)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_cuda_gives_what_the_cpu_gives():
    network = trained_like(SchNetParams(features=32, blocks=2, radial_functions=24), torch.float64)
    types, positions = bead_types(SEQUENCES[0]), chains(40, 10, torch.float64)
    expected = SchNetForceMatching(network, [positions]).gradient(types, positions, labels(positions))
    there = [tensor.cuda() for tensor in (types, positions, labels(positions))]
    found = SchNetForceMatching(network.cuda(), [there[1]]).gradient(*there)
    for here, cuda in zip(expected, found, strict=True):
        torch.testing.assert_close(cuda.cpu(), here, rtol=1e-9, atol=1e-9 * float(here.abs().max()))
