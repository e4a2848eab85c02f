"""Owns the command line scripts/lab: what a person asks for, in which order, what is shown.

How each thing is done belongs to the modules it calls.
"""

import argparse
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lab import existing, image, paths, running, stack, wan
from lab.engine import toolchain
from lab.errors import LabError
from lab.hypervisor import AWS_NETWORK, Hypervisor, domain_type, private_directories
from lab.machines import Machines
from lab.namespace import INSIDE_VARIABLE, Namespace, exclusive, wait_until
from lab.steps import say, step
from settings import Role, Settings, validate

LIBVIRT: Final = paths.LAB / "libvirt"
"""Definitions of the program's networks, pools and machines: what the hypervisor remembers."""
DISKS: Final = paths.LAB / "machines"
"""Disks of the lab's own machines."""
SSH_CONFIGURATION: Final = paths.LAB / "ssh"
"""Covers /etc/ssh/ssh_config.d inside the namespaces, so that plain `ssh NODE` works there."""

KEPT_BY_PURGE: Final = {"toolchain.json", "stand-ins"}

API_SECONDS: Final = 60
FIRST_MEMBER_SECONDS: Final = 600
"""A member boots for two minutes while others boot beside it, and a replacement may be due."""
SHUT_DOWN_SECONDS: Final = 90
"""From the power button to the plug: an emulated guest with a database takes up to a minute."""
HANDSHAKE_LIMIT_SECONDS: Final = 180
"""WireGuard discards a session after this long without a new handshake (REJECT_AFTER_TIME)."""

_ASK: Final = """\
import sys, requests
print(requests.get(sys.argv[1], timeout=15, verify=False).text)
"""
_ASK_WHEN_FULL: Final = """\
import sys, threading, time, requests
url, held = sys.argv[1], int(sys.argv[2])
over = threading.Event()
def hold():
    while not over.is_set():
        requests.get(f"{url}slow?seconds=3", timeout=30, verify=False)
holders = [threading.Thread(target=hold) for _ in range(held)]
for holder in holders:
    holder.start()
end = time.monotonic() + 30
answer = None
while time.monotonic() < end and (answer is None or answer.json()["site"] == "oslo"):
    try:
        answer = requests.get(url, timeout=2, verify=False)
    except requests.Timeout:
        pass  # In Oslo's queue: the door has yet to find the member healthy.
    time.sleep(0.2)
over.set()
print("none in 30 s" if answer is None else answer.text)
for holder in holders:
    holder.join()
"""

USAGE: Final = """\
commands:
  up             install, build and start what is missing, `pulumi up`, and show what serves
  down           end everything; keeps secrets, state and the core's disks (--purge: nothing)
  status         what runs, which toolchain is in use, and who serves
  shell          a shell inside the lab, with pulumi, AWS endpoint and ssh NODE ready
  pulumi ...     pulumi on the lab's stack, as in the shell
  ssh NODE ...   log in to a node of the core
"""


def main() -> int:
    """Do what the command line asks for.

    Returns:
        The exit status; a failure is one message on standard error.
    """
    parser = argparse.ArgumentParser(
        prog="scripts/lab",
        description="The whole system on this machine.",
        epilog=USAGE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=["up", "down", "status", "shell", "pulumi", "ssh"])
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="...")
    options = parser.parse_args()
    words: list[str] = options.words
    try:
        match options.command:
            case "up":
                _only_flags(words, set())
                return up()
            case "down":
                _only_flags(words, {"--purge"})
                down(purge="--purge" in words)
                return 0
            case "status":
                _only_flags(words, set())
                return status()
            case "shell":
                return shell(words)
            case "pulumi":
                return attached(["pulumi", *words])
            case _:
                return attached(["ssh", *_node_first(words)])
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: the next scripts/lab up goes on from here.", file=sys.stderr)
        return 130


def up() -> int:
    """Bring the whole lab up; the status is pulumi's when that fails."""
    _refuse_inside("up")
    began = time.monotonic()
    with _at_work():
        running.refuse_another_lab()
        with step("image"):
            built = image.ensure(say)
        kind = domain_type(built)
        namespace, hypervisor = _namespace(), Hypervisor(_namespace(), LIBVIRT)
        stack.ensure_keys("ssh_key", existing.HOST_KEY)
        with step("namespaces, libvirt, networks"):
            SSH_CONFIGURATION.mkdir(parents=True, exist_ok=True)
            namespace.up()
            holder = namespace.holder()
            if holder is not None:
                running.record_this_lab(holder)
            hypervisor.start()
            wan.start(namespace)
            hypervisor.ensure_network(AWS_NETWORK)
        with step(f"machines and cloud (guests run under {'KVM' if kind == 'kvm' else 'TCG'})"):
            machines = Machines(hypervisor, built, kind, DISKS, paths.LOG)
            existing.start(machines, namespace)
            # The core's machines of before, as when a hypervisor starts again.
            hypervisor.resume()
            _start_cloud(namespace)
        with step("project and stack"):
            stack.prepare_project(_facts(built, kind))
            settings = _settings()
            _write_ssh_configuration(settings)
            stack.ensure_stack(namespace)
        with step(f"{existing.NAME} answers"):
            existing.await_boot(machines)
        with step("pulumi up"):
            code = attached(["pulumi", "up", "--stack", stack.STACK, "--yes"])
            if code != 0:
                message = f"pulumi up ended with status {code}: see its messages above."
                raise LabError(message)
        hub = _hub(settings)
        if settings.fleets:
            with step("first fleet member serves"):
                wait_until(
                    lambda: bool(_serving_members(namespace, hub, settings)),
                    FIRST_MEMBER_SECONDS,
                    f"a fleet member to serve (consoles and cloud: {paths.LOG})",
                    interval_seconds=3,
                )
        _show(namespace, settings)
    say(f"up in {time.monotonic() - began:.0f} s")
    return 0


def down(*, purge: bool) -> None:
    """End everything this clone's lab runs and remove what only lasts as long as it."""
    _refuse_inside("down")
    with _at_work():
        namespace = _namespace()
        if namespace.is_up():
            with step("machines power off"):
                _power_off(namespace)
            with step("namespaces end"):
                namespace.down()
        namespace.down()
        running.forget_this_lab()
        for disk in DISKS.glob("i-*"):
            disk.unlink()
        if purge:
            for entry in paths.LAB.iterdir():
                if entry.name in KEPT_BY_PURGE or entry == _lock_file():
                    continue
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                else:
                    entry.unlink()
            say("purged: secrets, state and all disks are gone")


def status() -> int:
    """Show what is in use and what runs; 1 when nothing runs."""
    for part in toolchain.report():
        print(f"{part.name:24} {part.version:12} {part.origin}")
    namespace = _namespace()
    if not namespace.is_up():
        running.refuse_another_lab()
        print("\nthe lab is not running")
        return 1
    print(f"\n{'daemons':24} {', '.join(namespace.daemons()) or '-'}")
    print(f"{'machines':24} {', '.join(Hypervisor(namespace, LIBVIRT).domains()) or '-'}")
    _show(namespace, _settings())
    return 0


def shell(words: Sequence[str]) -> int:
    """A shell in the lab, or a command line run by one."""
    if not words:
        print("inside the lab: pulumi, ssh NODE, virsh; exit leaves", file=sys.stderr)
    return attached(["bash", *words])


def attached(words: Sequence[str]) -> int:
    """Run a program inside on this terminal, in the project directory; its exit status."""
    settings_exist = (paths.PROJECT / stack.STACK_FILE).exists()
    regions = [fleet.region for fleet in _settings().fleets.values()] if settings_exist else []
    directory = paths.PROJECT if settings_exist else paths.ROOT
    if settings_exist:
        stack.link_project()
    process = _namespace().popen(
        ["env", f"--chdir={directory}", *words],
        stdin=None,
        environment=stack.environment(*regions[:1]),
    )
    interrupted = False
    while True:
        try:
            code = process.wait()
            break
        except KeyboardInterrupt:
            # The terminal has told the program too; pulumi ends in an orderly way if it is let.
            interrupted = True
    if interrupted and words[0] == "pulumi":
        raise KeyboardInterrupt
    return code


@dataclass(frozen=True, kw_only=True)
class Member:
    """A fleet member's slot as the hub sees it."""

    fleet: str
    address: str
    handshake_age_seconds: int


def _only_flags(words: Sequence[str], allowed: set[str]) -> None:
    unknown = [word for word in words if word not in allowed]
    if unknown:
        message = f"{' '.join(unknown)} is not understood here; scripts/lab --help shows what is."
        raise LabError(message)


def _node_first(words: Sequence[str]) -> Sequence[str]:
    nodes = [node.name for node in _core_nodes(_settings())]
    if not words or words[0] not in nodes:
        given = words[0] if words else "nothing"
        message = f"{given} is no node of the core; there are {', '.join(nodes)}."
        raise LabError(message)
    return words


def _refuse_inside(command: str) -> None:
    if INSIDE_VARIABLE in os.environ:
        message = (
            f"this is a shell inside the lab; leave it with exit, then run scripts/lab {command}."
        )
        raise LabError(message)


def _lock_file() -> Path:
    return paths.LAB / "lock"


def _at_work() -> Any:
    return exclusive(
        _lock_file(),
        "another scripts/lab up or down is at work in this clone; wait for it or interrupt it.",
    )


def _namespace() -> Namespace:
    binds = {**private_directories(LIBVIRT), Path("/etc/ssh/ssh_config.d"): SSH_CONFIGURATION}
    return Namespace(paths.RUN, binds)


def _facts(built: image.Image, kind: str) -> dict[str, str]:
    return {
        "image-disk": str(built.disk),
        "image-sha256": built.disk_hash,
        "image-kernel": str(built.kernel),
        "image-initrd": str(built.initrd),
        "domain-type": kind,
        "pool-directory": str(paths.POOL),
        "ssh-public-key": stack.public_key("ssh_key"),
        f"{existing.NAME}-host-key": stack.public_key(existing.HOST_KEY),
    }


def _settings() -> Settings:
    return validate(stack.settings_document()[f"{stack.PROJECT_NAME}:settings"])


def _core_nodes(settings: Settings) -> Sequence[Any]:
    return settings.core.nodes if settings.core is not None else []


def _hub(settings: Settings) -> str:
    hubs = [node.name for node in _core_nodes(settings) if "hub" in node.roles]
    return str(hubs[0]) if hubs else ""


def _start_cloud(namespace: Namespace) -> None:
    log = paths.LOG / "cloud.log"
    namespace.start_daemon(
        "cloud",
        [sys.executable, "-m", "lab.cloud", "--hypervisor", LIBVIRT, "--disks", DISKS],
        log=log,
        environment={**stack.environment(), "PYTHONPATH": str(paths.ROOT)},
    )
    address, _, port = stack.AWS_ENDPOINT.removeprefix("http://").partition(":")

    def answers() -> bool:
        try:
            namespace.run(["bash", "-c", f"exec 3<>/dev/tcp/{address}/{port}"], timeout_seconds=5)
        except LabError:
            return False
        return True

    wait_until(answers, API_SECONDS, f"the AWS API to answer (log: {log})", interval_seconds=0.3)


def _write_ssh_configuration(settings: Settings) -> None:
    blocks = [
        f"Host {node.name} {node.address}\n  HostName {node.address}\n  User {node.user}\n"
        for node in _core_nodes(settings)
    ]
    common = (
        f"Host *\n  IdentityFile {stack.SSH_KEY}\n  UserKnownHostsFile {paths.RUN}/known_hosts\n"
        "  StrictHostKeyChecking accept-new\n  ConnectTimeout 10\n  LogLevel ERROR\n"
    )
    (SSH_CONFIGURATION / "lab.conf").write_text("".join(blocks) + common)


def _power_off(namespace: Namespace) -> None:
    """Fleet members lose their power, the others get time to write their data."""
    namespace.stop_daemon("cloud", grace_seconds=30)
    hypervisor = Hypervisor(namespace, LIBVIRT)
    if not hypervisor.is_running():
        return
    pets = [name for name in hypervisor.domains() if not name.startswith("i-")]
    for name in pets:
        try:
            hypervisor.virsh("shutdown", name)
        except LabError as error:
            say(f"{name} refuses to power off: {error}")
    try:
        wait_until(
            lambda: not set(pets) & set(hypervisor.domains()),
            SHUT_DOWN_SECONDS,
            "the core's machines to power off",
            interval_seconds=0.5,
        )
    except LabError as error:
        say(f"{error} Their power is cut.")


def _ssh(namespace: Namespace, node: str, command: str, timeout_seconds: float = 30) -> str:
    return namespace.run(
        ["ssh", "-o", "BatchMode=yes", node, command], timeout_seconds=timeout_seconds
    )


def _handshakes(namespace: Namespace, hub: str) -> dict[str, int]:
    """Age in seconds of every peer's last handshake, by mesh address, on the hub's own clock."""
    # Without the first column, the interface: a hub whose key rotates has two.
    allowed, handshakes = (
        f"sudo -n wg show all {what} | cut -f2-" for what in ("allowed-ips", "latest-handshakes")
    )
    try:
        text = _ssh(namespace, hub, f"date +%s && {allowed} && echo && {handshakes}")
    except LabError:
        return {}
    clock, _, rest = text.partition("\n")
    peers, _, handshakes = rest.partition("\n\n")
    times = dict(line.split() for line in handshakes.splitlines())
    ages = {}
    for line in peers.splitlines():
        key, _, ranges = line.partition("\t")
        if times.get(key, "0") != "0":
            ages[ranges.partition("/")[0]] = int(clock) - int(times[key])
    return ages


def _members(namespace: Namespace, hub: str) -> list[Member]:
    slots: dict[str, str] = stack.outputs(namespace).get("slots", {})
    ages = _handshakes(namespace, hub) if slots else {}
    # A slot's name is fleet-generation-index, and a fleet's own name may hold dashes.
    addresses = {text.split()[0]: name.rsplit("-", 2)[0] for name, text in slots.items()}
    return [
        Member(fleet=addresses[address], address=address, handshake_age_seconds=age)
        for address, age in ages.items()
        if address in addresses
    ]


def _serving_members(
    namespace: Namespace, hub: str, settings: Settings
) -> list[tuple[Member, str]]:
    """Members with a living tunnel that answer the hub, with their answer."""
    found = []
    for member in _members(namespace, hub):
        if member.handshake_age_seconds > HANDSHAKE_LIMIT_SECONDS:
            continue
        url = f"http://{member.address}:{settings.workload.port}/"
        try:
            found.append((member, _ssh(namespace, hub, f"curl -fsS --max-time 10 {url}").strip()))
        except LabError:
            continue
    return found


def _show(namespace: Namespace, settings: Settings) -> None:
    outputs = stack.outputs(namespace)
    hub = _hub(settings)
    ages = _handshakes(namespace, hub)
    machines = set(Hypervisor(namespace, LIBVIRT).domains())
    row = "{:22} {:34} {:12} {:14} {:>10}  {}".format
    print()
    print(row("node", "roles", "address", "mesh address", "handshake", "machine"))
    for host in outputs.get("hosts", []):
        name = str(host.get("name", "-"))
        print(
            row(
                name,
                ",".join(host.get("roles", [])) or "-",
                str(host.get("address", "-")),
                str(host.get("mesh_address", "-")),
                _age(ages.get(str(host.get("mesh_address")))),
                "on" if name in machines else "off",
            )
        )
    serving = _serving_members(namespace, hub, settings)
    for member, _ in serving:
        age = _age(member.handshake_age_seconds)
        print(row(f"{member.fleet} member", "fleet", "-", member.address, age, "on"))
    print()
    door = str(outputs.get("door_url", "-"))
    print(f"door:        {door}")
    print(f"from Oslo:   {_answer(namespace, _ASK, door)}")
    frontends = sum(Role.FRONTEND in node.roles for node in _core_nodes(settings))
    held = frontends * settings.door.oslo_connections
    print(f"from fleet:  {_answer(namespace, _ASK_WHEN_FULL, door, str(held)) if serving else '-'}")
    print()


def _answer(namespace: Namespace, question: str, url: str, *arguments: str) -> str:
    if url == "-":
        return "-"
    try:
        return namespace.run(
            [sys.executable, "-c", question, url, *arguments], timeout_seconds=60
        ).strip()
    except LabError as error:
        return f"no answer ({error})"


def _age(seconds: int | None) -> str:
    return "-" if seconds is None else f"{seconds} s"


if __name__ == "__main__":
    sys.exit(main())
