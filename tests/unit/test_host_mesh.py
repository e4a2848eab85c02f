"""What mesh.py decides, and that a damaged configuration never reaches the live interface."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mesh
from files import HostError
from mesh import (
    Action,
    Configuration,
    check_complete,
    decide,
    differ,
    has_address,
    parse,
    route_changes,
)
from render.wireguard import hub_config, mesh_content, spoke_config
from tests.unit.samples import SEED, mesh_node_of, mesh_of, sample

PLAN = mesh_of(sample())
HUB = hub_config(PLAN, SEED)
SPOKE = spoke_config(PLAN, mesh_node_of(sample(), "oslo-web-02"), SEED)
PEERS = len(PLAN.spokes) + len(PLAN.slots)


def live_hub(text: str = HUB) -> Configuration:
    """What `wg showconf` says of a hub whose spokes have been seen somewhere."""
    return parse(text.replace("AllowedIPs", "Endpoint = 192.0.2.9:4711\nAllowedIPs"))


def test_complete_configurations_pass() -> None:
    assert len(check_complete(HUB, PEERS).peers) == PEERS
    assert len(check_complete(SPOKE, 1).peers) == 1


@given(st.integers(min_value=0, max_value=len(HUB) - 1))
def test_a_hubs_configuration_cut_short_anywhere_is_refused(length: int) -> None:
    with pytest.raises(HostError):
        check_complete(HUB[:length], PEERS)


@given(st.integers(min_value=0, max_value=len(HUB.splitlines()) - 1))
def test_a_hubs_configuration_without_one_of_its_lines_is_refused_or_means_the_same(
    number: int,
) -> None:
    lines = HUB.splitlines()
    missing = lines.pop(number)
    text = "\n".join(lines) + "\n"
    if missing.startswith(("PrivateKey", "PublicKey", "AllowedIPs", "[Peer]", "ListenPort")):
        with pytest.raises(HostError):
            check_complete(text, PEERS)


def test_a_refused_configuration_never_has_its_keys_repeated() -> None:
    private = parse(HUB).private_key
    damaged = HUB.replace("PrivateKey = ", "PrivateKey ")
    with pytest.raises(HostError) as caught:
        check_complete(damaged, PEERS)
    assert private not in str(caught.value)
    assert private not in repr(parse(HUB))


def test_a_spoke_that_would_not_know_where_its_hub_is_is_refused() -> None:
    text = "\n".join(line for line in SPOKE.splitlines() if not line.startswith("Endpoint"))
    with pytest.raises(HostError, match="where to find"):
        check_complete(text + "\n", 1)


def test_spokes_that_roamed_are_no_reason_to_act() -> None:
    assert not differ(parse(HUB), live_hub())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("PrivateKey = ", "PrivateKey = A"),
        ("ListenPort = 51820", "ListenPort = 51821"),
        ("AllowedIPs = 10.100.0.2/32", "AllowedIPs = 10.100.0.3/32"),
        ("PresharedKey = ", "PresharedKey = A"),
        ("[Peer]\nPublicKey = ", "[Peer]\nPersistentKeepalive = 25\nPublicKey = "),
    ],
)
def test_any_other_difference_is_synchronised(old: str, new: str) -> None:
    live = live_hub(HUB.replace(old, new, 1))
    assert decide(parse(HUB), live, address_is_right=True) is Action.SYNC


def test_a_removed_and_an_additional_peer_are_synchronised() -> None:
    fewer = HUB[: HUB.rindex("[Peer]")]
    assert decide(parse(HUB), live_hub(fewer), address_is_right=True) is Action.SYNC
    assert decide(parse(fewer), live_hub(), address_is_right=True) is Action.SYNC


def test_a_hub_that_moved_is_told_to_its_spokes() -> None:
    moved = SPOKE.replace("Endpoint = 10.20.0.11", "Endpoint = 10.20.0.99")
    assert decide(parse(moved), parse(SPOKE), address_is_right=True) is Action.SYNC


def test_sessions_are_given_up_only_for_another_address() -> None:
    assert decide(parse(HUB), None, address_is_right=False) is Action.START
    assert decide(parse(HUB), live_hub(), address_is_right=False) is Action.RESTART
    assert decide(parse(HUB), live_hub(), address_is_right=True) is Action.NOTHING


def test_the_interfaces_address_is_right_only_with_its_prefix_and_alone() -> None:
    def shown(*addresses: str) -> str:
        entries = [
            f'{{"family": "inet", "local": "{a.split("/")[0]}", "prefixlen": {a.split("/")[1]}}}'
            for a in addresses
        ]
        return f'[{{"ifname": "wg0", "addr_info": [{", ".join(entries)}]}}]'

    assert has_address(shown("10.100.0.1/24"), "10.100.0.1/24")
    assert not has_address(shown("10.100.0.1/32"), "10.100.0.1/24")
    assert not has_address(shown("10.100.0.1/24", "10.100.0.9/24"), "10.100.0.1/24")
    assert not has_address("[]", "10.100.0.1/24")


class Machine:
    """Stands for the programs of a hub whose interface is up; notes what would change it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
        self.path = directory / "wg0.conf"
        self.touched: list[list[str]] = []
        self.strip_fails = False
        self.strip_says: str | None = None
        self.public_key = ""
        self.live = live_hub()
        self.routes = "[]"
        monkeypatch.setattr(mesh, "run", self.run)
        monkeypatch.setattr(mesh, "succeeds", lambda _: True)
        monkeypatch.setattr(mesh, "unit_is_active", lambda _: True)
        monkeypatch.setattr(mesh, "enable_unit", lambda _: False)
        monkeypatch.setattr(mesh, "_live", lambda _: self.live)
        monkeypatch.setattr(mesh, "_mtu", lambda _: 1360)
        monkeypatch.setattr(mesh, "write_file", self.write_file)

    def run(self, argv: list[str], *, stdin: str | None = None, check: bool = True) -> str:
        if argv[:2] == ["wg-quick", "strip"]:
            if self.strip_fails:
                msg = "wg-quick strip failed"
                raise HostError(msg)
            return Path(argv[2]).read_text() if self.strip_says is None else self.strip_says
        if argv[:2] == ["wg", "show"]:
            return self.public_key
        if argv[:3] == ["ip", "-json", "route"]:
            return self.routes
        if argv[:2] == ["ip", "-json"]:
            return '[{"addr_info": [{"family": "inet", "local": "10.100.0.1", "prefixlen": 24}]}]'
        self.touched.append(argv)
        if argv[:2] == ["wg", "syncconf"] and stdin is not None:
            self.live = parse(stdin)
        return ""

    def write_file(self, file: dict[str, str], *, validate: list[str]) -> bool:
        self.run([part.replace("{}", file["path"]) for part in validate])
        if self.path.exists() and self.path.read_text() == file["content"]:
            return False
        self.path.write_text(file["content"])
        return True


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return Machine(monkeypatch, tmp_path)


def content_for(machine: Machine) -> dict[str, Any]:
    content: dict[str, Any] = mesh_content(mesh=PLAN, node=PLAN.hub, seed=SEED)
    (interface,) = content["interfaces"]
    machine.public_key = interface["public_key"]
    machine.path.write_text(HUB)
    interface["config"] = {"path": str(machine.path), "content": HUB, "mode": "0600"}
    return {**content, "retired": []}


def config_of(content: dict[str, Any]) -> dict[str, str]:
    config: dict[str, str] = content["interfaces"][0]["config"]
    return config


def test_a_second_run_touches_nothing(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    mesh.apply(content_for(machine))
    assert machine.touched == []
    assert capsys.readouterr().out == "unchanged\n"


def test_a_changed_plan_is_synchronised_and_nothing_is_restarted(machine: Machine) -> None:
    content = content_for(machine)
    machine.live = live_hub(HUB[: HUB.rindex("[Peer]")])
    mesh.apply(content)
    assert machine.touched == [["wg", "syncconf", "wg0", "/dev/stdin"]]


def test_a_truncated_text_touches_neither_file_nor_interface(machine: Machine) -> None:
    content = content_for(machine)
    config_of(content)["content"] = HUB[: len(HUB) // 2]
    with pytest.raises(HostError, match="incomplete"):
        mesh.apply(content)
    assert machine.touched == []
    assert machine.path.read_text() == HUB


@pytest.mark.parametrize("says", ["", "[Interface]\n", HUB[: HUB.rindex("[Peer]")]])
def test_a_strip_that_loses_something_touches_nothing_and_the_old_file_comes_back(
    says: str, machine: Machine
) -> None:
    content = content_for(machine)
    config_of(content)["content"] = HUB.replace("10.100.0.2/32", "10.100.0.3/32")
    machine.strip_says = says
    with pytest.raises(HostError, match="incomplete"):
        mesh.apply(content)
    assert machine.touched == []
    assert machine.path.read_text() == HUB


def test_a_failing_strip_touches_nothing(machine: Machine) -> None:
    content = content_for(machine)
    config_of(content)["content"] = HUB.replace("10.100.0.2/32", "10.100.0.3/32")
    machine.strip_fails = True
    with pytest.raises(HostError, match="strip failed"):
        mesh.apply(content)
    assert machine.touched == []
    assert machine.path.read_text() == HUB


def test_a_wrong_public_key_afterwards_puts_the_old_configuration_back(machine: Machine) -> None:
    content = content_for(machine)
    config_of(content)["content"] = HUB.replace("10.100.0.2/32", "10.100.0.3/32")
    machine.public_key = "another"
    with pytest.raises(HostError, match="public key another"):
        mesh.apply(content)
    sync = ["wg", "syncconf", "wg0", "/dev/stdin"]
    assert machine.touched == [sync, sync]
    assert not differ(parse(HUB), machine.live), "the old peers must be live again, too"
    assert machine.path.read_text() == HUB


def test_a_port_that_is_taken_is_refused_before_anything_is_written(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = content_for(machine)
    machine.path.unlink()
    monkeypatch.setattr(mesh, "_live", lambda _: None)
    line = 'UNCONN 0 0 0.0.0.0:51820 0.0.0.0:* users:(("openvpn",pid=7,fd=3))\n'
    monkeypatch.setattr(mesh, "run", lambda *_, **__: line)
    with pytest.raises(HostError, match="UDP port 51820 is taken by openvpn"):
        mesh.apply(content)
    assert not machine.path.exists()


def test_a_kernel_without_wireguard_is_named_before_anything_is_written(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = content_for(machine)
    machine.path.unlink()
    monkeypatch.setattr(mesh, "succeeds", lambda _: False)
    with pytest.raises(HostError, match="no module wireguard"):
        mesh.apply(content)
    assert not machine.path.exists()


def test_routes_are_compared_as_ip_shows_them() -> None:
    shown = '[{"dst": "10.100.0.2"}, {"dst": "10.100.0.64/27"}, {"dst": "10.100.0.9"}]'
    missing, surplus = route_changes(shown, ["10.100.0.2/32", "10.100.0.64/27", "10.100.0.96/27"])
    assert (missing, surplus) == (["10.100.0.96/27"], ["10.100.0.9/32"])
    assert route_changes("", []) == ([], []), "ip says nothing at all when there is no route"


def test_routes_that_are_not_wanted_any_more_outlast_the_interface_that_goes(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = content_for(machine)
    machine.routes = '[{"dst": "10.100.0.2"}]'

    def retire(interface: str, path: str) -> bool:
        machine.touched.append([interface, "ends"])
        return True

    monkeypatch.setattr(mesh, "_retire", retire)
    mesh.apply({**content, "retired": [{"interface": "wg1", "path": "/wg1.conf"}]})
    delete = "ip route delete 10.100.0.2/32 dev wg0 proto static"
    assert [" ".join(argv) for argv in machine.touched] == ["wg1 ends", delete]


def test_a_route_that_another_interface_has_is_moved_in_one_step(machine: Machine) -> None:
    content = content_for(machine)
    content["interfaces"][0]["routes"] = ["10.100.0.2/32"]
    mesh.apply(content)
    move = "ip route replace 10.100.0.2/32 dev wg0 proto static src 10.100.0.1"
    assert machine.touched == [move.split()]


def test_an_interface_of_ours_that_is_not_wanted_any_more_is_ended(
    machine: Machine, tmp_path: Path
) -> None:
    content = content_for(machine)
    path = tmp_path / "wg1.conf"
    path.write_text(HUB)
    content["retired"] = [{"interface": "fortress-none", "path": str(path)}]
    mesh.apply(content)
    unit = "wg-quick@fortress-none.service"
    assert machine.touched == [["systemctl", "disable", "--quiet", "--now", unit]]
    assert not path.exists(), "a key that was retired would stay on the disk"


def test_somebody_elses_tunnel_is_neither_ended_nor_overwritten(
    machine: Machine, tmp_path: Path
) -> None:
    content = content_for(machine)
    path = tmp_path / "wg1.conf"
    path.write_text("[Interface]\n")
    content["retired"] = [{"interface": "fortress-none", "path": str(path)}]
    mesh.apply(content)
    assert machine.touched == []
    assert path.exists()
    machine.path.write_text("[Interface]\n")
    with pytest.raises(HostError, match="not made by this program"):
        mesh.apply(content)
    assert machine.path.read_text() == "[Interface]\n"
