"""Owns the machine that the program finds instead of making: a virtual server as one is rented.

It has what a provider gives: an address, root's login by key, a host key read from its console. It
is born before the program makes the network it is on, so its cable hangs loose until that network's
bridge appears.
"""

import json
import shutil
from pathlib import Path
from typing import Final

from lab import commands, paths, stack
from lab.machines import Machine, Machines
from lab.namespace import Namespace, wait_until

NAME: Final = "oslo-web-02"
ADDRESS: Final = "10.20.0.12"
HOST_KEY: Final = f"{NAME}-host-key"
"""Name of the key pair among the lab's secrets; its public half is a fact of the stack file."""

BOOT_SECONDS: Final = 300
"""25 s alone on two emulated cores; four guests at once take 145 s."""

_MAC: Final = "52:54:00:20:00:12"
_CABLE: Final = "cable-web-02"
_BRIDGE: Final = "virbr-oslo"
_GATEWAY: Final = "10.20.0.1"

# `ip monitor` reports every change of a link; a bridge that was made again finds its machine again.
_PLUG_IN: Final = """\
plug() {
    [ -e "/sys/class/net/$1" ] && [ -e "/sys/class/net/$2" ] &&
        [ ! -e "/sys/class/net/$2/master" ] && ip link set "$2" master "$1" up
}
{ ip -o monitor link & sleep 1; echo first; wait; } | while read -r _; do plug "$1" "$2"; done
"""


def start(machines: Machines, namespace: Namespace) -> None:
    """Boot the machine and watch over its cable; nothing happens when it runs."""
    machines.start(
        Machine(
            name=NAME, mac=_MAC, cable=_CABLE, vcpu=1, seed_iso=_seed(paths.LAB / "seed" / NAME)
        )
    )
    namespace.start_daemon(
        "cable", ["sh", "-c", _PLUG_IN, "cable", _BRIDGE, _CABLE], log=paths.LOG / "cable.log"
    )


def await_boot(machines: Machines) -> None:
    """Return once the machine is up, as a rented one is: the program gives up on one that is not.

    Raises:
        LabError: it was not within BOOT_SECONDS.
    """
    console = machines.console_log(NAME)
    wait_until(
        # Not by its network, which the program has yet to make.
        lambda: b" login:" in console.read_bytes(),
        BOOT_SECONDS,
        f"{NAME} to boot (console: {console})",
        interval_seconds=0.2,
    )


def _seed(directory: Path) -> Path:
    """cloud-init's NoCloud seed: files are JSON, which is YAML."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True, mode=0o700)
    user_data = {
        "disable_root": False,
        "users": [{"name": "root", "ssh_authorized_keys": [stack.public_key("ssh_key")]}],
        "ssh_keys": {
            "ed25519_private": (stack.SECRETS / HOST_KEY).read_text(),
            "ed25519_public": stack.public_key(HOST_KEY),
        },
    }
    card = {
        "match": {"macaddress": _MAC},
        "addresses": [f"{ADDRESS}/24"],
        "routes": [{"to": "0.0.0.0/0", "via": _GATEWAY}],
    }
    documents = {
        "meta-data": json.dumps({"instance-id": f"iid-{NAME}", "local-hostname": NAME}),
        "user-data": "#cloud-config\n" + json.dumps(user_data),
        "network-config": json.dumps({"version": 2, "ethernets": {"lan": card}}),
    }
    for name, text in documents.items():
        (directory / name).write_text(text + "\n")
    iso = directory / "seed.iso"
    files = [directory / name for name in documents]
    commands.run(
        ["genisoimage", "-quiet", "-volid", "cidata", "-joliet", "-rock", "-output", iso, *files]
    )
    return iso
