"""wg0.conf of core nodes, read by wg-quick itself."""

import json
import re
from ipaddress import IPv4Network
from pathlib import Path

import jinja2
import pytest

import settings
from plan.keys import node_public_key
from plan.mesh import MeshPlan
from render.templates import render
from render.wireguard import hub_config, mesh_content, spoke_config
from tests.unit.golden_files import check_golden, program_output
from tests.unit.samples import SEED, mesh_node_of, mesh_of, sample, sample_data

MESH = mesh_of(sample())
SPOKE = mesh_node_of(sample(), "oslo-web-02")


def stripped(text: str, directory: Path) -> str:
    path = directory / "wg0.conf"
    path.touch(mode=0o600)
    path.write_text(text)
    # wg-quick insists on root, which everybody is in a user namespace of their own.
    return program_output("unshare", "--map-root-user", "wg-quick", "strip", str(path))


def test_the_hubs_configuration_is_the_reviewed_one_and_wg_quick_reads_it(tmp_path: Path) -> None:
    text = hub_config(MESH, SEED)
    check_golden("wg0-hub.conf", text)
    peers = stripped(text, tmp_path).count("[Peer]")
    assert peers == len(MESH.spokes) + len(MESH.slots), "wg-quick lost a peer"


def test_a_spokes_configuration_is_the_reviewed_one_and_wg_quick_reads_it(tmp_path: Path) -> None:
    text = spoke_config(MESH, SPOKE, SEED)
    check_golden("wg0-spoke.conf", text)
    assert stripped(text, tmp_path).count("[Peer]") == 1, "a spoke knows the hub and nobody else"


def test_no_two_peers_of_the_hub_share_an_address() -> None:
    allowed = re.findall(r"^AllowedIPs = (.*)$", hub_config(MESH, SEED), flags=re.MULTILINE)
    assert len(allowed) == len(set(allowed)), "the later peer would silently take the address"
    assert {IPv4Network(each).prefixlen for each in allowed} == {32}


def test_the_hub_gives_no_peer_an_endpoint() -> None:
    assert "Endpoint" not in hub_config(MESH, SEED), "it would overwrite where a spoke has roamed"


def test_the_kernel_never_writes_over_a_managed_file() -> None:
    both = hub_config(MESH, SEED) + spoke_config(MESH, SPOKE, SEED)
    assert "SaveConfig" not in both, "edits would be lost when the interface goes down"


def test_a_keepalive_of_zero_is_left_out() -> None:
    data = sample_data()
    data["mesh"] = {"keepalive-seconds": 0}
    mesh = mesh_of(settings.validate(data))
    assert "PersistentKeepalive" not in spoke_config(mesh, SPOKE, SEED)


def test_a_rotating_fleet_is_listed_with_both_generations() -> None:
    data = sample_data()
    data["fleets"]["frankfurt"]["generation"] = 1
    text = hub_config(mesh_of(settings.validate(data)), SEED)
    assert "# frankfurt-1-00" in text, "new members would be strangers"
    assert "# frankfurt-0-00" in text, "serving members would be cut off"


def test_a_missing_value_is_an_error_and_no_empty_line() -> None:
    with pytest.raises(jinja2.UndefinedError, match="private_key"):
        render("wg0.conf", address="10.100.0.1/24", listen_port=1, mtu=1360, peers=[])


@pytest.mark.parametrize("node", MESH.nodes, ids=lambda node: node.name)
def test_the_content_of_each_node_is_json_with_a_private_file(node: settings.Node) -> None:
    content = mesh_content(mesh=MESH, node=mesh_node_of(sample(), node.name), seed=SEED)
    assert json.loads(json.dumps(content)) == content
    (interface,) = content["interfaces"]
    assert interface["config"]["mode"] == "0600", "everybody could read the private key"
    assert interface["routes"] == []


def rotating(*, accept: bool = True) -> MeshPlan:
    """The sample while its hub and its fleet change to generation 1."""
    data = sample_data()
    data["core"]["nodes"][0]["generation"] = 1
    data["fleets"]["frankfurt"]["generation"] = 1
    data["mesh"] = {"accept-previous-hub": accept}
    return mesh_of(settings.validate(data))


def test_a_rotating_hub_has_its_old_and_its_new_key_at_two_ports(tmp_path: Path) -> None:
    plan = rotating()
    content = mesh_content(mesh=plan, node=plan.hub, seed=SEED)
    new, old = content["interfaces"]
    assert (new["interface"], new["listen_port"]) == ("wg1", 51821)
    assert (old["interface"], old["listen_port"]) == ("wg0", 51820)
    before = mesh_content(mesh=MESH, node=MESH.hub, seed=SEED)["interfaces"][0]
    assert old["public_key"] == before["public_key"] != new["public_key"]
    assert content["retired"] == []
    check_golden("wg0-hub-rotating.conf", old["config"]["content"])
    check_golden("wg1-hub-rotating.conf", new["config"]["content"])
    for interface in (new, old):
        peers = stripped(interface["config"]["content"], tmp_path).count("[Peer]")
        assert peers == interface["peer_count"]


def test_while_the_hub_rotates_every_address_has_one_interface_and_its_route() -> None:
    plan = rotating()
    interfaces = mesh_content(mesh=plan, node=plan.hub, seed=SEED)["interfaces"]
    allowed = [
        set(re.findall(r"^AllowedIPs = (.*)$", one["config"]["content"], flags=re.MULTILINE))
        for one in interfaces
    ]
    assert not allowed[0] & allowed[1], "answers could take the interface where the peer is not"
    assert interfaces[0]["routes"] == ["10.100.0.2/32", "10.100.0.96/27"]
    assert interfaces[1]["routes"] == ["10.100.0.64/27"]


def test_other_core_nodes_change_to_the_hubs_new_key_and_port_at_once() -> None:
    plan = rotating()
    text = spoke_config(plan, SPOKE, SEED)
    assert "Endpoint = 10.20.0.11:51821\n" in text
    assert f"PublicKey = {node_public_key(SEED, plan.hub)}\n" in text
    assert plan.hub_endpoint == "198.51.100.11:51821", "new members would knock at the old key"


def test_a_hub_whose_previous_key_is_dropped_has_one_interface_again() -> None:
    plan = rotating(accept=False)
    content = mesh_content(mesh=plan, node=plan.hub, seed=SEED)
    (interface,) = content["interfaces"]
    assert interface["interface"] == "wg1"
    assert interface["routes"] == []
    assert content["retired"] == [{"interface": "wg0", "path": "/etc/wireguard/wg0.conf"}]


def test_the_retired_interface_is_told_to_every_node_that_could_have_one() -> None:
    retired = mesh_content(mesh=MESH, node=SPOKE, seed=SEED)["retired"]
    assert retired == [{"interface": "wg1", "path": "/etc/wireguard/wg1.conf"}]
