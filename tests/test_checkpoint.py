"""A checkpoint gives back the potential to the bit, in the same bytes, or says what is wrong with it."""

import pytest
import torch

from cgal.errors import BadCheckpoint, BadFile
from cgal.params import SchNetParams
from cgal.potential.architectures import initial_potential
from cgal.potential.checkpoint import load_checkpoint, save_checkpoint
from tests.beads import SEQUENCE, SMALL_NETWORK, real_beads, real_prior

METADATA = {"seed": 7, "round": 2, "shards": ["ab12"], "rmse": 101.25}


@pytest.fixture(scope="module")
def potential():
    potential = initial_potential(real_prior(), SMALL_NETWORK, 3)
    with torch.no_grad():
        potential.network.readout[-1].weight.normal_(generator=torch.Generator().manual_seed(0))
    return potential


def test_loaded_potential_is_the_saved_one_to_the_bit(tmp_path, potential):
    save_checkpoint(tmp_path / "model.pt", potential, METADATA)
    loaded, metadata = load_checkpoint(tmp_path / "model.pt", sequence=SEQUENCE, architecture=SMALL_NETWORK)
    assert metadata == METADATA
    positions = torch.from_numpy(real_beads())
    for before, after in zip(potential.energy_and_forces(positions), loaded.energy_and_forces(positions), strict=True):
        assert torch.equal(before, after)


def test_same_content_same_bytes(tmp_path, potential):
    save_checkpoint(tmp_path / "one.pt", potential, METADATA)
    loaded, metadata = load_checkpoint(tmp_path / "one.pt")
    save_checkpoint(tmp_path / "folder" / "two.pt", loaded, dict(reversed(metadata.items())))
    assert (tmp_path / "one.pt").read_bytes() == (tmp_path / "folder" / "two.pt").read_bytes()


def test_another_protein_is_refused(tmp_path, potential):
    save_checkpoint(tmp_path / "model.pt", potential, METADATA)
    with pytest.raises(BadCheckpoint, match=r"model\.pt: trained for YYDPETGTWY, not for GYDPETGTWG"):
        load_checkpoint(tmp_path / "model.pt", sequence="GYDPETGTWG")


def test_another_architecture_is_refused(tmp_path, potential):
    save_checkpoint(tmp_path / "model.pt", potential, METADATA)
    with pytest.raises(BadCheckpoint, match=r"features 16.*features 32.*warm_start: false"):
        load_checkpoint(tmp_path / "model.pt", architecture=SchNetParams(features=32))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_checkpoint_is_refused(tmp_path, potential, share):
    path = tmp_path / "model.pt"
    save_checkpoint(path, potential, METADATA)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(BadCheckpoint, match="dvc checkout --force"):
        load_checkpoint(path)


def test_a_flipped_byte_in_the_weights_is_refused(tmp_path, potential):
    path = tmp_path / "model.pt"
    save_checkpoint(path, potential, METADATA)
    content = bytearray(path.read_bytes())
    weights = potential.network.representation.embedding.weight.detach().numpy().tobytes()
    content[content.index(weights) + 5] ^= 0xFF
    path.write_bytes(bytes(content))
    with pytest.raises(BadCheckpoint, match="damaged"):
        load_checkpoint(path)


@pytest.mark.parametrize("content", [{"weights": torch.zeros(3)}, [1, 2], {"format": "cgal-potential-0"}])
def test_another_format_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(BadCheckpoint, match="format"):
        load_checkpoint(tmp_path / "model.pt")


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path, potential):
    path = tmp_path / "model.pt"
    save_checkpoint(path, potential, METADATA)
    content = torch.load(path, weights_only=True)
    content["network"].popitem()
    torch.save(content, path)
    with pytest.raises(BadCheckpoint, match="damaged"):
        load_checkpoint(path)


class Payload:
    """Would run code if it were unpickled."""

    def __reduce__(self):
        return (print, ("executed",))


def test_code_in_a_checkpoint_is_never_run(tmp_path, capsys):
    torch.save({"format": "cgal-potential-1", "sequence": Payload()}, tmp_path / "model.pt")
    with pytest.raises(BadCheckpoint):
        load_checkpoint(tmp_path / "model.pt")
    assert "executed" not in capsys.readouterr().out


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(BadFile, match=r"none\.pt: no such file"):
        load_checkpoint(tmp_path / "none.pt")


def test_making_a_potential_leaves_the_prior_as_it_was(potential):
    prior = real_prior()
    initial_potential(prior, SMALL_NETWORK, 0)
    assert prior.bond_length_nm.dtype == torch.float64
    assert potential.prior.bond_length_nm.dtype == torch.float32
