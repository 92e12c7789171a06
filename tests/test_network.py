"""CGSchNet gives the numbers of schnetpack's own SchNet, whatever the batch."""

import schnetpack.properties as properties
import torch

from cgal.params import SchNetParams
from cgal.potential.architectures import new_network
from cgal.potential.network import bead_types
from tests.beads import SEQUENCE, SMALL_NETWORK, real_beads


def trained_like(seed=0):
    """A network whose readout is not zero."""
    network = new_network(SMALL_NETWORK, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        network.readout[-1].weight.normal_(generator=generator)
    return network


def test_half_pairs_give_what_schnetpack_gives():
    network = trained_like()
    positions = torch.from_numpy(real_beads()[:3])
    flat, types = positions.reshape(-1, 3), bead_types(SEQUENCE)
    frame = torch.arange(30) // 10
    i, j = torch.where((frame[:, None] == frame[None, :]) & ~torch.eye(30, dtype=torch.bool))
    inputs = {
        properties.Z: types.repeat(3),
        properties.Rij: flat[j] - flat[i],
        properties.idx_i: i,
        properties.idx_j: j,
    }
    expected = 10.0 * network.readout(network.representation(inputs)["scalar_representation"]).view(3, 10).sum(1)
    # float32 sums of some hundred terms in another order
    torch.testing.assert_close(network(positions, types), expected, rtol=1e-5, atol=1e-4)


def test_frames_of_a_batch_do_not_see_each_other():
    network, types = trained_like(), bead_types(SEQUENCE)
    positions = torch.from_numpy(real_beads()[:5])
    alone = torch.cat([network(frame[None], types) for frame in positions])
    torch.testing.assert_close(network(positions, types), alone, rtol=1e-5, atol=1e-4)


def test_one_network_takes_proteins_of_any_length():
    network = trained_like()
    positions = torch.from_numpy(real_beads())
    for beads in (4, 7, 10):
        assert network(positions[:2, :beads], bead_types(SEQUENCE[:beads])).shape == (2,)


def test_fresh_network_is_zero_with_zero_forces_and_depends_on_its_seed_alone():
    positions = torch.from_numpy(real_beads()[:2]).requires_grad_()
    torch.manual_seed(1)
    first = new_network(SchNetParams(features=16), 5)
    state = torch.get_rng_state()
    second = new_network(SchNetParams(features=16), 5)
    assert torch.equal(state, torch.get_rng_state())
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])
    other = new_network(SchNetParams(features=16), 6)
    assert not torch.equal(first.representation.embedding.weight, other.representation.embedding.weight)
    energies = first(positions, bead_types(SEQUENCE))
    assert torch.equal(energies, torch.zeros(2))
    assert torch.equal(torch.autograd.grad(energies.sum(), positions)[0], torch.zeros(2, 10, 3))


def test_beads_beyond_the_cutoff_do_not_interact():
    network, types = trained_like(), bead_types("AGTW")
    apart = torch.arange(4)[None, :, None] * torch.tensor([1.3, 0.0, 0.0])
    further = 2 * apart
    assert torch.equal(network(apart, types), network(further, types))
    near = 0.5 * apart
    assert not torch.equal(network(near, types), network(apart, types))
