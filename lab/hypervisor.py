"""Owns a private libvirtd inside a namespace, its configuration and its virtual networks.

It touches nothing of the host's libvirt: every directory libvirt uses is covered by a private one.
Which machines exist is the business of `lab.machines` and of the program under test.
"""

import json
import subprocess
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from lab import paths
from lab.errors import LabError
from lab.image import Image
from lab.namespace import Namespace, wait_until

DomainType = Literal["kvm", "qemu"]

URI: Final = "qemu:///system"

PROBE_SECONDS: Final = 8.0
"""A guest under a working KVM reaches its first process in under two seconds."""

# Everything libvirt would otherwise ask of a full host: an own user, security labels, cgroups,
# mount namespaces.
_QEMU_CONFIGURATION: Final = """\
user = "root"
group = "root"
security_driver = "none"
dynamic_ownership = 0
remember_owner = 0
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
"""


@dataclass(frozen=True, kw_only=True)
class Network:
    """A virtual network without a way out; the namespace routes between them.

    DHCP answers only machines that `Hypervisor.add_dhcp_host` named.
    """

    name: str
    bridge: str
    address: str
    netmask: str
    dhcp: bool


AWS_NETWORK: Final = Network(
    name="aws", bridge="virbr-aws", address="10.64.0.1", netmask="255.255.0.0", dhcp=True
)


def private_directories(directory: Path) -> Mapping[Path, Path]:
    """What a namespace must cover so that a libvirtd inside it is private.

    /run/libvirt is not among them: `lab.namespace` gives every namespace its own /run.
    """
    return {
        Path("/etc/libvirt"): directory / "etc",
        Path("/var/lib/libvirt"): directory / "lib",
        Path("/var/log/libvirt"): directory / "log",
        Path("/var/cache/libvirt"): directory / "cache",
    }


class Hypervisor:
    """The libvirtd of one namespace.

    Parameters:
        namespace: one made with `private_directories(directory)` as its binds.
        directory: where definitions live; kept between runs, they are the hypervisor's own memory.
    """

    def __init__(self, namespace: Namespace, directory: Path) -> None:
        self._namespace = namespace
        self._directory = directory

    def start(self) -> None:
        """Start libvirtd; nothing happens when it runs.

        Raises:
            LabError: it did not answer within half a minute.
        """
        etc = self._directory / "etc"
        etc.mkdir(parents=True, exist_ok=True)
        (self._directory / "log" / "qemu").mkdir(parents=True, exist_ok=True)
        log = self._directory / "log" / "libvirtd.log"
        (etc / "qemu.conf").write_text(_QEMU_CONFIGURATION)
        (etc / "libvirtd.conf").write_text(
            'auth_unix_rw = "none"\nauth_unix_ro = "none"\n'
            f'log_level = 3\nlog_outputs = "3:file:{log}"\n'
        )
        self._namespace.start_daemon("libvirtd", ["libvirtd"], log=log)
        wait_until(self.is_running, 30, f"libvirtd to answer (log: {log})", interval_seconds=0.2)

    def is_running(self) -> bool:
        """Whether libvirtd answers."""
        if not self._namespace.daemon_is_running("libvirtd"):
            return False
        try:
            self.virsh("version", "--daemon")
        except LabError:
            return False
        return True

    def virsh(self, *words: str | Path, stdin: str | None = None) -> str:
        """Run one virsh command and give what it printed.

        Raises:
            LabError: virsh failed; the message holds what it said.
        """
        return self._namespace.run(
            ["virsh", "--quiet", "--connect", URI, *words], stdin=stdin, timeout_seconds=120
        )

    def domains(self, *, running_only: bool = True) -> list[str]:
        """Names of the machines libvirt knows."""
        words = ["list", "--name"] if running_only else ["list", "--name", "--all"]
        return self.virsh(*words).split()

    def resume(self) -> None:
        """Start what is defined and not running, as a hypervisor does after its own reboot."""
        for start, listing in (
            ("net-start", "net-list"),
            ("pool-start", "pool-list"),
            ("start", "list"),
        ):
            for name in self.virsh(listing, "--name", "--inactive").split():
                self.virsh(start, name)

    def ensure_network(self, network: Network) -> None:
        """Create a network that lasts as long as libvirtd; nothing happens when it exists."""
        if network.name in self.virsh("net-list", "--name").split():
            return
        # Mode "open": libvirt adds no firewall rule, the namespace forwards between its bridges.
        # A host entry for no machine makes dnsmasq serve DHCP, and only to machines named later.
        dhcp = (
            "<dhcp><host mac='52:54:00:00:00:00' ip='{}'/></dhcp>".format(
                network.address.rpartition(".")[0] + ".2"
            )
            if network.dhcp
            else ""
        )
        definition = (
            f"<network><name>{network.name}</name>"
            f"<bridge name='{network.bridge}' stp='off' delay='0'/>"
            f"<forward mode='open'/><dns enable='no'/>"
            f"<ip address='{network.address}' netmask='{network.netmask}'>{dhcp}</ip></network>"
        )
        self.virsh("net-create", "/dev/stdin", stdin=definition)

    def add_dhcp_host(self, network: str, mac: str, address: str) -> None:
        """Let DHCP give this address to this machine, and forget what either had before."""
        self.remove_dhcp_host(network, mac)
        entry = f"<host mac='{mac}' ip='{address}'/>"
        self.virsh("net-update", network, "add-last", "ip-dhcp-host", entry, "--live")

    def remove_dhcp_host(self, network: str, mac: str) -> None:
        """Make DHCP forget a machine; nothing happens when it knows none."""
        if f"<host mac='{mac}'" in self.virsh("net-dumpxml", network):
            entry = f"<host mac='{mac}'/>"
            self.virsh("net-update", network, "delete", "ip-dhcp-host", entry, "--live")


def domain_type(image: Image) -> DomainType:
    """How guests run here: "kvm" when one truly boots, else "qemu", which emulates.

    The answer holds until the next reboot. A present /dev/kvm proves nothing: there are hosts on
    which guests die under it.
    """
    memory = paths.CACHE / "domain-type.json"
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    if memory.exists():
        remembered = json.loads(memory.read_text())
        if remembered.get("boot-id") == boot_id:
            found: DomainType = "kvm" if remembered.get("domain-type") == "kvm" else "qemu"
            return found
    result: DomainType = "kvm" if _guest_boots_under_kvm(image) else "qemu"
    memory.write_text(json.dumps({"boot-id": boot_id, "domain-type": result}))
    return result


def _guest_boots_under_kvm(image: Image) -> bool:
    if not Path("/dev/kvm").exists():
        return False
    guest = subprocess.Popen(
        [
            *("qemu-system-x86_64", "-accel", "kvm", "-cpu", "host", "-smp", "2", "-m", "384"),
            *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-nic", "none"),
            *("-serial", "stdio", "-kernel", str(image.kernel), "-initrd", str(image.initrd)),
            *("-append", "console=ttyS0 panic=-1"),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    timer = threading.Timer(PROBE_SECONDS, guest.kill)
    timer.start()
    try:
        if guest.stdout is None:
            return False
        reached = any(b"Run /init" in line for line in guest.stdout)
        # It must go on living: some hosts lose the guest at the first switch to user mode.
        return reached and _stays_alive(guest, seconds=3)
    finally:
        timer.cancel()
        guest.kill()
        guest.wait()


def _stays_alive(process: subprocess.Popen[bytes], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            return False
        time.sleep(0.1)
    return True
