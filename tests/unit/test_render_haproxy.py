"""What haproxy.cfg says, and that HAProxy itself accepts it."""

from pathlib import Path

import settings
from render.haproxy import certificate_path, edge_content, haproxy_config, server_state_seed
from settings import Settings
from tests.unit.certificates import self_signed
from tests.unit.golden_files import check_golden, program_output
from tests.unit.samples import mesh_of, node_of, sample, sample_data

EDGE = "oslo-db-01"


def two_fleets() -> Settings:
    """The sample with a second fleet that is preferred less, and a generation that leaves."""
    data = sample_data()
    frankfurt = data["fleets"]["frankfurt"]
    data["fleets"]["stock-holm"] = {
        **frankfurt,
        "region": "eu-north-1",
        "block": "10.100.0.128/28",
        "vpc-range": "10.65.0.0/16",
        "preference": 5,
        "generation": 1,
    }
    return settings.validate(data)


def config_of(of: Settings, certificate: str | None = None) -> str:
    """The edge's haproxy.cfg."""
    return haproxy_config(
        node=node_of(of, EDGE), settings=of, mesh=mesh_of(of), certificate=certificate
    )


def accepted(directory: Path, text: str) -> None:
    """Let HAProxy check a text, without the state file that only a running edge has."""
    path = directory / "haproxy.cfg"
    path.write_text(text.replace("/var/lib/haproxy/server-state", "/dev/null"))
    program_output("haproxy", "-c", "-f", str(path))


def test_the_door_of_the_sample_is_the_reviewed_one(tmp_path: Path) -> None:
    text = config_of(sample())
    check_golden("haproxy.cfg", text)
    accepted(tmp_path, text)


def test_the_door_with_two_fleets_is_accepted_and_tries_them_in_order(tmp_path: Path) -> None:
    text = config_of(two_fleets())
    accepted(tmp_path, text)
    assert text.index("use_backend burst_frankfurt") < text.index("use_backend burst_stock_holm")


def test_the_seed_has_every_slot_down_and_every_oslo_frontend_up() -> None:
    of = two_fleets()
    seed = server_state_seed(settings=of, mesh=mesh_of(of))
    servers = [line.split() for line in seed.splitlines()[2:]]
    assert {tuple(fields[1:6:2]) for fields in servers if fields[1] == "oslo"} == {
        ("oslo", "oslo-db-01", "2"),
        ("oslo", "oslo-web-02", "2"),
    }
    burst = [fields for fields in servers if fields[1] != "oslo"]
    assert {fields[5] for fields in burst} == {"0"}
    assert sorted(fields[3] for fields in burst) == sorted(s.name for s in mesh_of(of).slots)
    check_golden("server-state.seed", server_state_seed(settings=sample(), mesh=mesh_of(sample())))


def test_every_server_of_the_door_has_a_limit_and_a_line_in_the_seed() -> None:
    of = two_fleets()
    servers = [
        line.split() for line in config_of(of).splitlines() if line.startswith("    server ")
    ]
    assert all("maxconn" in fields for fields in servers), "be_conn_free would say -1"
    seed = server_state_seed(settings=of, mesh=mesh_of(of)).splitlines()[2:]
    seeded = {(fields[3], f"{fields[4]}:{fields[18]}") for fields in map(str.split, seed)}
    assert {(fields[1], fields[2]) for fields in servers} == seeded


def test_paths_that_stay_in_norway_are_decided_before_any_fleet() -> None:
    text = config_of(sample())
    assert text.index("/account") < text.index("use_backend burst_")


def test_a_certificate_is_named_by_its_content_and_never_written_into_the_config() -> None:
    data = sample_data()
    data["door"]["tls"] = True
    of = settings.validate(data)
    one, other = self_signed("one.example"), self_signed("other.example")
    assert certificate_path(one) in config_of(of, one)
    assert "PRIVATE" not in config_of(of, one)
    assert certificate_path(one) != certificate_path(other)
    content = edge_content(node=node_of(of, EDGE), settings=of, mesh=mesh_of(of), certificate=one)
    assert content["certificate"]["mode"] == "0600"
    assert [place["port"] for place in content["listen"]] == [80, 443, 8404]


def test_statistics_are_bound_to_the_mesh_address() -> None:
    of = sample()
    content = edge_content(node=node_of(of, EDGE), settings=of, mesh=mesh_of(of), certificate=None)
    assert content["listen"][-1] == {"address": "10.100.0.1", "port": 8404}
    assert "bind 10.100.0.1:8404" in content["configuration"]["content"]
