"""Keys: derived the same for ever, clamped, and no way from a fleet back to the core."""

import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plan import derivation
from plan.keys import authorized_key, bootstrap_host_key, host_key, public_key, slot_table
from tests.unit.samples import SEED, mesh_of, sample

seeds = st.binary(min_size=32, max_size=32)
names = st.from_regex(r"[a-z][a-z0-9-]{0,20}", fullmatch=True)
generations = st.integers(min_value=0, max_value=1000)

NODE_KEY = "e07665d2a4973cbfddde08c89c63b9a3f2d4aff042a0a66d9857ec084b44c952"
FLEET_SEED = "57bdc223d9388c995a5167c2b99c9059597b56d3cff31868919de8f8fcefece6"
SLOT_KEY = "b032a7380eb92debdfcd8b33b57e6d702e76e0f184ea12c97f27bd44507bfe7e"
PRESHARED_KEY = "7ad23af74e592dd370e1a2d53c129fe2c4ad2c4e52e352c1701fdd61889ac475"


def test_derived_keys_are_frozen_because_machines_already_hold_them() -> None:
    fleet_seed = derivation.fleet_seed(SEED, "frankfurt", 0)
    assert derivation.node_private_key(SEED, "oslo-db-01", 0).hex() == NODE_KEY
    assert fleet_seed.hex() == FLEET_SEED
    assert derivation.slot_private_key(fleet_seed, 3).hex() == SLOT_KEY
    assert derivation.slot_preshared_key(fleet_seed, 3).hex() == PRESHARED_KEY


@given(seeds, names, generations)
def test_private_keys_are_clamped_as_the_kernel_stores_them(
    seed: bytes, name: str, generation: int
) -> None:
    fleet_seed = derivation.fleet_seed(seed, name, generation)
    for key in (
        derivation.node_private_key(seed, name, generation),
        derivation.slot_private_key(fleet_seed, generation),
    ):
        assert key[0] & 7 == 0
        assert key[31] & 0b1100_0000 == 0b0100_0000


@given(seeds, names, generations)
def test_a_fleet_seed_gives_no_key_of_the_core(seed: bytes, name: str, generation: int) -> None:
    fleet_seed = derivation.fleet_seed(seed, name, generation)
    hub_key = derivation.node_private_key(seed, name, generation)
    from_fleet = {
        derivation.node_private_key(fleet_seed, name, generation),
        derivation.clamp(fleet_seed),
        *(derivation.slot_private_key(fleet_seed, index) for index in range(20)),
        *(derivation.clamp(derivation.slot_preshared_key(fleet_seed, i)) for i in range(20)),
    }
    assert hub_key not in from_fleet


@given(seeds, st.lists(st.text(max_size=8), max_size=4), st.lists(st.text(max_size=8), max_size=4))
def test_two_lists_of_parts_never_make_the_same_message(
    seed: bytes, one: list[str], other: list[str]
) -> None:
    assert (derivation.derive(seed, *one) == derivation.derive(seed, *other)) == (one == other)


@given(seeds, names)
def test_every_generation_has_its_own_keys(seed: bytes, name: str) -> None:
    keys = {derivation.node_private_key(seed, name, generation) for generation in range(10)}
    assert len(keys) == 10


def test_public_keys_are_those_of_wg_pubkey() -> None:
    wg = shutil.which("wg")
    assert wg, "the program wg is missing: install wireguard-tools"
    for index in range(10):
        private = derivation.slot_private_key(SEED, index)
        told = subprocess.run(
            [wg, "pubkey"],
            input=derivation.encode(private),
            capture_output=True,
            text=True,
            check=True,
        )
        assert public_key(private) == told.stdout.strip()


@pytest.mark.parametrize("make", [host_key, bootstrap_host_key])
def test_ssh_host_keys_are_stable_and_openssh_reads_them(make, tmp_path) -> None:  # type: ignore[no-untyped-def]
    key = make(SEED, "oslo-db-01")
    assert key == make(SEED, "oslo-db-01")
    assert key != make(SEED, "oslo-web-02")
    path = tmp_path / "key"
    path.touch(mode=0o600)
    path.write_text(key.private_file)
    told = subprocess.run(
        ["ssh-keygen", "-y", "-f", str(path)], capture_output=True, text=True, check=True
    )
    assert told.stdout.strip() == key.public_line


def test_the_slot_table_holds_no_secret_and_one_public_key_per_slot() -> None:
    mesh = mesh_of(sample())
    table = slot_table(SEED, mesh)
    assert len(table) == 32
    assert len({text.split()[1] for text in table.values()}) == 32
    fleet_seed = derivation.fleet_seed(SEED, "frankfurt", 0)
    assert table["frankfurt-0-03"].split() == [
        "10.100.0.67",
        public_key(derivation.slot_private_key(fleet_seed, 3)),
    ]


@pytest.mark.parametrize("text", ["", "short", "!!!!", "QUJD"])
def test_a_seed_of_the_wrong_form_is_refused_without_being_repeated(text: str) -> None:
    with pytest.raises(ValueError, match="mesh-seed is not 32 bytes") as raised:
        derivation.decode_seed(text)
    assert not text or text not in str(raised.value)


def test_a_text_that_is_no_ssh_key_is_refused_without_being_repeated() -> None:
    with pytest.raises(ValueError, match="not an unencrypted OpenSSH private key") as raised:
        authorized_key("certainly-not-a-key")
    assert "certainly" not in str(raised.value)
