"""Brings this core node's WireGuard interfaces to their wanted state without disturbing sessions.

Content: {node, interfaces: [{interface, config: File, address, mtu, listen_port | null, public_key,
peer_count, routes}], retired: [{interface, path}], hub: null | {public_key, endpoint, mesh_address,
handshake_seconds}}. A node has one interface, and the hub two while its key rotates. It owns their
configuration files, wg-quick units and static routes; the kernel module at boot and the firewall
belong to `baseline.py`.
"""

import base64
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from files import (
    HostError,
    await_condition,
    enable_unit,
    main,
    put_back_on_failure,
    report,
    run,
    succeeds,
    unit_is_active,
    write_file,
)

KEY_BYTES = 32
# First line of every file this program writes; others' files are never replaced or removed.
OURS = "# Managed by Fortress and Fleet"


@dataclass(frozen=True)
class Configuration:
    """What wg(8) keeps of a configuration: by it a file and a live interface are compared."""

    private_key: str = field(repr=False)
    listen_port: str | None
    address: str | None
    peers: dict[str, dict[str, str]] = field(repr=False)


class Action(Enum):
    """What a live interface needs, from nothing to losing every session."""

    NOTHING = "unchanged"
    SYNC = "synchronised"
    RESTART = "restarted"
    START = "started"


def parse(text: str) -> Configuration:
    """Read a configuration in the format of wg(8) or wg-quick(8).

    Raises:
        HostError: when a line is not understood; it is not repeated, it may hold a key.
    """
    sections: list[tuple[str, dict[str, str]]] = []
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.partition("#")[0].strip()
        if not line:
            continue
        if re.fullmatch(r"\[\w+\]", line):
            sections.append((line[1:-1].lower(), {}))
            continue
        key, separator, value = (part.strip() for part in line.partition("="))
        if not separator or not sections or not value:
            msg = (
                f"line {number} of the WireGuard configuration is no `key = value` inside a "
                "section, so the text is damaged. Run `pulumi up` again"
            )
            raise HostError(msg)
        sections[-1][1][key.lower()] = value
    interface = dict(next((keys for name, keys in sections if name == "interface"), {}))
    return Configuration(
        private_key=interface.get("privatekey", ""),
        listen_port=interface.get("listenport"),
        address=interface.get("address"),
        peers={keys.get("publickey", ""): keys for name, keys in sections if name == "peer"},
    )


def _is_key(text: str) -> bool:
    try:
        return len(base64.b64decode(text, validate=True)) == KEY_BYTES
    except ValueError:
        return False


def check_complete(text: str, peer_count: int) -> Configuration:
    """Refuse a configuration that lacks anything, because syncconf removes what is missing.

    Parameters:
        text: a configuration, rendered or stripped.
        peer_count: how many peers the plan has.

    Raises:
        HostError: when the private key or a peer is missing or damaged; keys are not repeated.
    """
    found = parse(text)
    problem = None
    if not text.endswith("\n"):
        problem = "it ends in the middle of a line"
    elif not _is_key(found.private_key):
        problem = "its private key is missing or damaged"
    elif len(found.peers) != peer_count:
        problem = f"it has {len(found.peers)} different peers, but the plan has {peer_count}"
    elif not all(_is_key(key) and peer.get("allowedips") for key, peer in found.peers.items()):
        problem = "a peer has a damaged public key or no AllowedIPs"
    elif found.listen_port is None and not all("endpoint" in p for p in found.peers.values()):
        problem = "neither side would know where to find the other"
    if problem is not None:
        msg = (
            f"the WireGuard configuration is incomplete: {problem}. Applied, it would cut off "
            "everyone who is not in it, so nothing was changed. Run `pulumi up` again"
        )
        raise HostError(msg)
    return found


def _essence(peer: dict[str, str]) -> tuple[str | None, frozenset[str], str | None]:
    allowed = frozenset(part.strip() for part in peer.get("allowedips", "").split(","))
    keepalive = peer.get("persistentkeepalive")
    return peer.get("presharedkey"), allowed, None if keepalive in {"0", "off"} else keepalive


def differ(wanted: Configuration, live: Configuration) -> bool:
    """Whether a live interface needs syncconf.

    An endpoint counts only where the file gives one: the hub learns those of its spokes.
    """
    return (
        wanted.private_key != live.private_key
        or (wanted.listen_port is not None and wanted.listen_port != live.listen_port)
        or wanted.peers.keys() != live.peers.keys()
        or any(
            _essence(peer) != _essence(live.peers[key])
            or ("endpoint" in peer and peer["endpoint"] != live.peers[key].get("endpoint"))
            for key, peer in wanted.peers.items()
        )
    )


def decide(wanted: Configuration, live: Configuration | None, *, address_is_right: bool) -> Action:
    """Choose the least that brings the interface to its wanted state.

    Parameters:
        wanted: the stripped, complete configuration.
        live: what the kernel holds, or None without an interface.
        address_is_right: whether the interface has exactly its address.
    """
    if live is None:
        return Action.START
    if not address_is_right:
        return Action.RESTART
    return Action.SYNC if differ(wanted, live) else Action.NOTHING


def has_address(shown: str, address: str) -> bool:
    """Whether `ip -json address show` lists this address, with its prefix, as the only IPv4 one."""
    return [
        f"{entry['local']}/{entry['prefixlen']}"
        for link in json.loads(shown)
        for entry in link.get("addr_info", [])
        if entry.get("family") == "inet"
    ] == [address]


def route_changes(shown: str, wanted: Sequence[str]) -> tuple[list[str], list[str]]:
    """Which static routes of an interface are missing, and which are too many.

    Parameters:
        shown: `ip -json route show dev … proto static`; a single address stands without length.
        wanted: ranges with their prefix length.
    """
    found = [entry["dst"] for entry in json.loads(shown or "[]")]
    present = [one if "/" in one else f"{one}/32" for one in found]
    return (
        [route for route in wanted if route not in present],
        [route for route in present if route not in wanted],
    )


def _live(interface: str) -> Configuration | None:
    if not Path(f"/sys/class/net/{interface}").exists():
        return None
    return parse(run(["wg", "showconf", interface]))


def _mtu(interface: str) -> int:
    return int(Path(f"/sys/class/net/{interface}/mtu").read_text())


def _check_port(port: int, live: Configuration | None) -> None:
    if live is not None and live.listen_port == str(port):
        return
    holders = run(["ss", "-H", "-u", "-l", "-n", "-p", f"sport = :{port}"]).strip()
    if holders:
        named = re.search(r'users:\(\("([^"]+)"', holders)
        who = named.group(1) if named else "a socket of the kernel, such as another WireGuard's"
        msg = (
            f"UDP port {port} is taken by {who}: the mesh's hub listens there. Stop it, or set "
            "another mesh.port"
        )
        raise HostError(msg)


def _restart(interface: str) -> None:
    unit = f"wg-quick@{interface}.service"
    run(["systemctl", "reset-failed", unit], check=False)
    if unit_is_active(unit):
        run(["systemctl", "restart", unit])
        return
    if Path(f"/sys/class/net/{interface}").exists():
        # Brought up by hand: the unit would refuse an interface that is already there.
        run(["ip", "link", "delete", "dev", interface])
    run(["systemctl", "start", unit])


def _realise(interface: str, path: str, address: str, peer_count: int) -> Action:
    """Make the interface what the file says, by the least that does it."""
    stripped = run(["wg-quick", "strip", path])
    wanted = check_complete(stripped, peer_count)
    live = _live(interface)
    action = decide(
        wanted,
        live,
        address_is_right=live is not None
        and has_address(run(["ip", "-json", "address", "show", "dev", interface]), address),
    )
    if action in {Action.START, Action.RESTART}:
        _restart(interface)
    elif action is Action.SYNC:
        run(["wg", "syncconf", interface, "/dev/stdin"], stdin=stripped)
    return action


def _routes(content: dict[str, Any]) -> tuple[list[str], list[str]]:
    name = content["interface"]
    shown = run(["ip", "-json", "route", "show", "dev", name, "proto", "static"])
    return route_changes(shown, content["routes"])


def _add_routes(content: dict[str, Any]) -> bool:
    """Add the interface's missing static routes; say whether there were any.

    `replace` moves a route that another interface has in one step.
    """
    name, source = content["interface"], content["address"].partition("/")[0]
    missing, _ = _routes(content)
    for route in missing:
        run(["ip", "route", "replace", route, "dev", name, "proto", "static", "src", source])
    return bool(missing)


def _drop_routes(content: dict[str, Any]) -> bool:
    """Delete the interface's static routes that are not wanted any more."""
    name = content["interface"]
    _, surplus = _routes(content)
    for route in surplus:
        run(["ip", "route", "delete", route, "dev", name, "proto", "static"])
    return bool(surplus)


def _refuse_foreign(path: str) -> None:
    if Path(path).exists() and not Path(path).read_text().startswith(OURS):
        msg = (
            f"{path} is there and was not made by this program: its tunnel would be lost. Move it "
            "to another name, interface included"
        )
        raise HostError(msg)


def _retire(interface: str, path: str) -> bool:
    """End an interface of ours that is not wanted any more; say whether there was one."""
    if not Path(path).exists() or not Path(path).read_text().startswith(OURS):
        return False
    run(["systemctl", "disable", "--quiet", "--now", f"wg-quick@{interface}.service"])
    if Path(f"/sys/class/net/{interface}").exists():
        run(["ip", "link", "delete", "dev", interface])
    Path(path).unlink()
    return True


def _bring(content: dict[str, Any]) -> list[str]:
    """Write, validate, apply and verify the configuration; return what changed."""
    interface, path = content["interface"], content["config"]["path"]
    if content["listen_port"] is not None:
        _check_port(content["listen_port"], _live(interface))
    changed = []
    if write_file(content["config"], validate=["wg-quick", "strip", "{}"]):
        changed.append(path)
    action = _realise(interface, path, content["address"], content["peer_count"])
    if action is not Action.NOTHING:
        changed.append(f"{interface} {action.value}")
    if _mtu(interface) != content["mtu"]:
        run(["ip", "link", "set", "dev", interface, "mtu", str(content["mtu"])])
        changed.append(f"{interface} MTU")
    found = run(["wg", "show", interface, "public-key"]).strip()
    if found != content["public_key"]:
        msg = (
            f"{interface} has public key {found}, but the plan says {content['public_key']}: no "
            "peer would answer it. The old configuration was put back. Run `pulumi up` again"
        )
        raise HostError(msg)
    if _add_routes(content):
        changed.append(f"{interface} routes")
    return changed


def _realise_old(interface: str, path: str) -> None:
    """Return to the file that was put back, when there was one."""
    if Path(path).exists():
        old = parse(Path(path).read_text())
        _realise(interface, path, old.address or "", len(old.peers))


def _await_handshake(interface: str, hub: dict[str, Any]) -> None:
    def arrived() -> bool:
        # A packet makes the handshake start now, and proves the tunnel both ways.
        return succeeds(
            ["ping", "-n", "-q", "-c", "1", "-W", "1", "-I", interface, hub["mesh_address"]]
        )

    await_condition(
        f"no answer from the hub through {interface}: it was asked at UDP {hub['endpoint']}. Look "
        "whether the hub is up, and whether a firewall between them lets that port through",
        arrived,
        hub["handshake_seconds"],
    )


def _bring_or_put_back(content: dict[str, Any]) -> list[str]:
    """Bring one interface to its wanted state, or leave it as it was."""
    interface, path = content["interface"], content["config"]["path"]
    with put_back_on_failure([path], then=lambda: _realise_old(interface, path)):
        changed = _bring(content)
    if enable_unit(f"wg-quick@{interface}.service"):
        changed.append(f"wg-quick@{interface}.service enabled")
    return changed


def apply(content: dict[str, Any]) -> None:
    """Bring every interface to its wanted state; end those that are not wanted any more."""
    for wanted in content["interfaces"]:
        _refuse_foreign(wanted["config"]["path"])
        check_complete(wanted["config"]["content"], wanted["peer_count"])
    if not succeeds(["modprobe", "wireguard"]):
        msg = (
            "the kernel has no module wireguard, so this machine cannot join the mesh. Install a "
            "kernel that has it (Debian: linux-image-amd64 or -arm64; Ubuntu: linux-generic) and "
            "reboot"
        )
        raise HostError(msg)
    changed = []
    for wanted in content["interfaces"]:
        changed += _bring_or_put_back(wanted)
    for retired in content["retired"]:
        if _retire(retired["interface"], retired["path"]):
            changed.append(f"{retired['interface']} removed")
    for wanted in content["interfaces"]:
        # Not before: both interfaces have a route to the whole mesh, and the older one's is taken.
        if _drop_routes(wanted):
            changed.append(f"{wanted['interface']} routes")
    if content["hub"] is not None:
        _await_handshake(content["interfaces"][0]["interface"], content["hub"])
    report(changed)


if __name__ == "__main__":
    main(apply)
