"""Addresses: no overlap, stable under growth, two halves per fleet."""

from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import settings
from plan.mesh import plan_fleet, slots_of
from plan.names import mac_address
from settings import FleetSettings, SettingsError
from tests.unit.samples import mesh_of, sample, sample_data

RANGE = IPv4Network("10.100.0.0/16")


def fleet(**changes: object) -> FleetSettings:
    data: dict[str, Any] = {
        "region": "eu-central-1",
        "block": "10.100.0.64/26",
        "max-size": 8,
        "image": {"id": "ami-12345678"},
        "vpc-range": "10.64.0.0/16",
    }
    data.update({key.replace("_", "-"): value for key, value in changes.items()})
    return FleetSettings.model_validate(data)


def test_the_address_layout_is_frozen_because_machines_already_use_it() -> None:
    mesh = mesh_of(sample())
    assert {node.name: str(node.mesh_address) for node in mesh.nodes} == {
        "oslo-db-01": "10.100.0.1",
        "oslo-web-02": "10.100.0.2",
    }
    slots = mesh.fleet("frankfurt").slots
    assert [str(slot.address) for slot in slots[:2]] == ["10.100.0.64", "10.100.0.65"]
    assert str(slots[-1].address) == "10.100.0.95"
    assert slots[7].name == "frankfurt-0-07"


@given(st.integers(min_value=17, max_value=29), st.integers(0, 7), st.data())
def test_neighbouring_generations_never_share_an_address(
    prefix: int, generation: int, data: st.DataObject
) -> None:
    blocks = list(RANGE.subnets(new_prefix=max(prefix, 20)))
    block = data.draw(st.sampled_from(blocks[:50]))
    one = {slot.address for slot in slots_of("f", block, generation, RANGE)}
    other = {slot.address for slot in slots_of("f", block, generation + 1, RANGE)}
    assert not one & other
    assert all(address in block for address in one | other)


@given(st.integers(1, 16))
def test_a_larger_fleet_in_the_same_block_moves_no_slot(size: int) -> None:
    assert (
        plan_fleet("frankfurt", fleet(max_size=size), RANGE).slots
        == plan_fleet("frankfurt", fleet(max_size=1), RANGE).slots
    )


def test_raising_the_generation_keeps_the_previous_slots_until_told_otherwise() -> None:
    both = plan_fleet("f", fleet(generation=1), RANGE)
    assert {slot.generation for slot in both.slots} == {0, 1}
    assert {slot.generation for slot in both.claimable} == {1}
    dropped = plan_fleet("f", fleet(generation=1, accept_previous_generation=False), RANGE)
    assert {slot.generation for slot in dropped.slots} == {1}


def test_no_slot_is_the_meshs_network_or_broadcast_address() -> None:
    mesh_range = IPv4Network("10.100.0.0/24")
    slots = slots_of("f", IPv4Network("10.100.0.192/26"), 1, mesh_range)
    assert IPv4Address("10.100.0.255") not in {slot.address for slot in slots}
    assert [slot.index for slot in slots] == list(range(31))


def test_a_block_at_the_edge_that_is_one_address_short_is_refused() -> None:
    with pytest.raises(SettingsError, match="only 31 usable addresses"):
        plan_fleet(
            "f",
            fleet(block="10.100.0.192/26", generation=1, max_size=32),
            IPv4Network("10.100.0.0/24"),
        )


def test_appending_a_core_node_moves_nobody() -> None:
    data = sample_data()
    before = mesh_of(settings.validate(data))
    data["core"]["nodes"].append(
        {**data["core"]["nodes"][1], "name": "oslo-web-03", "address": "10.20.0.13"}
    )
    after = mesh_of(settings.validate(data))
    assert after.nodes[:2] == before.nodes
    assert str(after.nodes[2].mesh_address) == "10.100.0.3"


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("10.100.0.1", "would both have mesh address"),
        ("10.100.0.70", "inside fleets.frankfurt.block"),
        ("10.101.0.1", "no host address of mesh.range"),
        ("10.100.0.255", "no host address of mesh.range"),
    ],
)
def test_a_mesh_address_that_somebody_has_is_refused(address: str, message: str) -> None:
    data = sample_data()
    data["core"]["nodes"][1]["mesh-address"] = address
    with pytest.raises(SettingsError, match=message):
        mesh_of(settings.validate(data))


def test_card_addresses_differ_between_stacks_and_nodes_and_stay_the_same() -> None:
    assert mac_address("prod", "oslo-db-01") == mac_address("prod", "oslo-db-01")
    assert mac_address("prod", "oslo-db-01") == mac_address("prod", "oslo-db-01").upper()
    assert len({mac_address(stack, node) for stack in ("dev", "prod") for node in ("a", "b")}) == 4
