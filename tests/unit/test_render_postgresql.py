"""What PostgreSQL is told, and who may connect from where."""

from ipaddress import ip_address, ip_network
from typing import Any

import pytest

import settings
from render.postgresql import access_rules, database_content, postgresql_config
from settings import Settings
from tests.unit.golden_files import check_golden
from tests.unit.samples import mesh_of, node_of, sample, sample_data

NODE = "oslo-db-01"


def content_of(of: Settings) -> dict[str, Any]:
    """What database.py is given."""
    return database_content(
        node=node_of(of, NODE),
        settings=of,
        mesh=mesh_of(of),
        app_password="planted-app",
        fleet_password="planted-fleet",
    )


def test_settings_and_rules_of_the_sample_are_the_reviewed_ones() -> None:
    of = sample()
    text = postgresql_config(node=node_of(of, NODE), settings=of, mesh=mesh_of(of), version=17)
    check_golden("postgresql.conf", text)
    check_golden("pg_hba.conf", access_rules(settings=of, mesh=mesh_of(of)))


@pytest.mark.parametrize(("generation", "accepts_both"), [(0, False), (1, True), (2, True)])
def test_the_fleet_connects_from_exactly_its_slots(generation: int, accepts_both: bool) -> None:
    data = sample_data()
    data["fleets"]["frankfurt"]["generation"] = generation
    of = settings.validate(data)
    mesh = mesh_of(of)
    rules = access_rules(settings=of, mesh=mesh)
    ranges = [ip_network(line.split()[3]) for line in rules.splitlines() if '"app_fleet"' in line]
    allowed = {address for network in ranges for address in network}
    assert allowed == {ip_address(slot.address) for slot in mesh.slots}
    assert len(allowed) == (64 if accepts_both else 32)


def test_nobody_connects_over_the_network_without_tls_and_scram() -> None:
    rules = access_rules(settings=sample(), mesh=mesh_of(sample())).splitlines()
    network = [line.split() for line in rules if line.startswith("host")]
    assert network[-1] == ["host", "all", "all", "all", "reject"]
    assert {(fields[0], fields[4]) for fields in network[:-1]} == {("hostssl", "scram-sha-256")}


def test_memory_follows_from_the_machine() -> None:
    data = sample_data()
    data["core"]["nodes"][0]["memory-mib"] = 16384
    of = settings.validate(data)
    text = postgresql_config(node=node_of(of, NODE), settings=of, mesh=mesh_of(of), version=15)
    assert "shared_buffers = 4096MB" in text


def test_a_release_without_lz4_compresses_its_log_its_own_way() -> None:
    configurations = content_of(sample())["configurations"]
    assert "wal_compression = on\n" in configurations["14"]
    assert "wal_compression = lz4\n" in configurations["15"]


def test_a_machine_of_libvirt_has_the_data_volume_and_another_only_when_told() -> None:
    data = sample_data()
    assert content_of(settings.validate(data))["device"] == "/dev/disk/by-id/virtio-data"
    one = data["core"]["nodes"][0]
    for key in ("vcpu", "data-gib", "public-address"):
        del one[key]
    one.update({"placement": "existing", "host-key": data["core"]["nodes"][1]["host-key"]})
    assert content_of(settings.validate(data))["device"] is None
    one["data-device"] = "/dev/nvme1n1"
    assert content_of(settings.validate(data))["device"] == "/dev/nvme1n1"


def test_passwords_are_in_no_text_that_becomes_a_file() -> None:
    content = content_of(sample())
    del content["owner"], content["fleet"]
    assert "planted" not in str(content)
