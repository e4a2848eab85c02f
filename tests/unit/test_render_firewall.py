"""The firewall of core nodes, read by nft itself in a network namespace of its own."""

from pathlib import Path

import settings
from render.firewall import firewall_rules
from settings import Settings
from tests.unit.golden_files import check_golden, program_output
from tests.unit.samples import container_workload, mesh_of, node_of, sample, sample_data

HUB, SPOKE = "oslo-db-01", "oslo-web-02"


def rules(of: Settings, name: str) -> str:
    return firewall_rules(node=node_of(of, name), settings=of, mesh=mesh_of(of))


def load_twice(text: str, directory: Path) -> None:
    path = directory / "fortress.nft"
    path.write_text(text)
    script = 'nft -f "$0" && nft -f "$0"'
    program_output("nft", "--version")
    program_output("unshare", "--map-root-user", "--net", "sh", "-c", script, str(path))


def split_database() -> Settings:
    """The sample with the database moved from the hub to a node of its own."""
    data = sample_data()
    hub = data["core"]["nodes"][0]
    hub["roles"] = ["hub", "edge"]
    data["core"]["nodes"][1]["roles"] = ["database", "frontend"]
    return settings.validate(data)


def test_the_hubs_rules_are_the_reviewed_ones_and_nft_loads_them_again_and_again(
    tmp_path: Path,
) -> None:
    text = rules(sample(), HUB)
    check_golden("firewall-hub.nft", text)
    load_twice(text, tmp_path)


def test_a_spokes_rules_are_the_reviewed_ones_and_nft_loads_them(tmp_path: Path) -> None:
    text = rules(sample(), SPOKE)
    check_golden("firewall-spoke.nft", text)
    load_twice(text, tmp_path)


def test_a_container_needs_no_rule_of_its_own_because_it_uses_the_hosts_network() -> None:
    data = sample_data()
    data["workload"] = container_workload()
    assert rules(settings.validate(data), HUB) == rules(sample(), HUB)


def test_a_hub_without_the_database_lets_slots_through_to_that_port_only(tmp_path: Path) -> None:
    of = split_database()
    text = rules(of, HUB)
    passed = [line.strip() for line in text.splitlines() if "@slots" in line]
    assert passed == [
        'iifname "wg0" oifname "wg0" ip saddr @slots ip daddr 10.100.0.2 tcp dport 5432 accept'
    ], "a fleet member may reach the database's port and nothing else"
    load_twice(text, tmp_path)
    assert "@slots tcp dport 5432 accept" in rules(of, SPOKE)


def test_a_rotating_hubs_rules_are_the_reviewed_ones_and_nft_loads_them(tmp_path: Path) -> None:
    data = sample_data()
    data["core"]["nodes"][0]["generation"] = 1
    data["fleets"]["frankfurt"]["generation"] = 1
    text = rules(settings.validate(data), HUB)
    check_golden("firewall-hub-rotating.nft", text)
    load_twice(text, tmp_path)
    assert rules(settings.validate(data), SPOKE).count("wg1") == 0


def test_a_hub_at_an_odd_generation_names_its_own_interface_and_port_only() -> None:
    data = sample_data()
    data["core"]["nodes"][0]["generation"] = 1
    data["mesh"] = {"accept-previous-hub": False}
    text = rules(settings.validate(data), HUB)
    assert "wg0" not in text
    assert "udp dport 51821 accept" in text


def test_ssh_from_anywhere_and_overlapping_ranges_load(tmp_path: Path) -> None:
    data = sample_data()
    data["core"]["ssh"]["allowed-ranges"] = ["192.0.2.0/24", "0.0.0.0/0", "192.0.2.7/32"]
    load_twice(rules(settings.validate(data), HUB), tmp_path)


def test_a_core_without_fleets_loads(tmp_path: Path) -> None:
    data = sample_data()
    data["fleets"] = {}
    text = rules(settings.validate(data), HUB)
    assert "slots" not in text
    load_twice(text, tmp_path)


def test_an_existing_node_is_reached_at_its_own_ssh_port() -> None:
    data = sample_data()
    data["core"]["nodes"][1]["ssh-port"] = 2222
    text = rules(settings.validate(data), SPOKE)
    assert 'tcp dport 2222 accept comment "SSH"' in text, "the next run would be shut out"


def test_the_door_with_tls_has_both_ports_open() -> None:
    data = sample_data()
    data["door"]["tls"] = True
    text = rules(settings.validate(data), HUB)
    assert 'tcp dport { 80, 443 } accept comment "door"' in text
    assert "443" not in rules(sample(), HUB), "without TLS nobody listens at 443"
