"""Owns the lab's own virtual machines: those nobody under test defines in libvirt.

They are transient domains: when one is off, libvirt knows nothing of it and only its disk is left.
Which machines there should be is the callers' decision (`lab.cloud` for the fleet, `lab.stack` for
the existing host).
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from xml.sax.saxutils import quoteattr

from lab import commands
from lab.errors import LabError
from lab.hypervisor import DomainType, Hypervisor
from lab.image import Image
from lab.namespace import wait_until

# Four guests of 512 MiB take 2.5 GiB with this and 6.0 GiB with QEMU's default translation cache,
# no slower.
_TRANSLATION_CACHE_MIB: Final = 256

# QEMU 7.2 emulating two processors loses a race now and then while the kernel patches itself: the
# guest panics ("int3" in an interrupt, seen in the second and in the 59th second of some thirty
# boots each) and would stand still for ever. Members have two all the same and start again; the
# core's machines have one, because a panic would end the `pulumi up` that is at work on them.
ON_PANIC: Final = "panic=1"

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One virtual machine with one network card."""

    name: str
    mac: str
    network: str | None = None
    """The libvirt network to be plugged into, or None for a free cable."""
    cable: str | None = None
    """Name of the free cable's end on the host side (at most 15 characters)."""
    address: str | None = None
    """Given by the network's DHCP to this card; None when the machine knows its address itself."""
    memory_mib: int = 512
    vcpu: int = 2
    """Two: with one, a boot under emulation takes 48 s instead of 28 s."""
    seed_iso: Path | None = None
    """cloud-init's NoCloud seed; without one cloud-init asks the metadata service."""
    is_ec2: bool = False
    """Look like an EC2 instance to cloud-init: SMBIOS vendor, UUID and serial."""
    uuid: str | None = None
    """Must begin with ec2 when `is_ec2`."""


class Machines:
    """The lab's machines on one hypervisor.

    Parameters:
        directory: where their disks live, one overlay on the image each.
        console_directory: where each machine's console is logged, as NAME.console.log.
    """

    def __init__(
        self,
        hypervisor: Hypervisor,
        image: Image,
        domain_type: DomainType,
        directory: Path,
        console_directory: Path,
    ) -> None:
        self._hypervisor = hypervisor
        self._image = image
        self._domain_type = domain_type
        self._directory = directory
        self._console_directory = console_directory

    def start(self, machine: Machine) -> None:
        """Boot a machine, on its disk of before when there is one; nothing happens when it runs.

        Raises:
            LabError: libvirt refused it, or its name cannot be a file name.
        """
        if _NAME.fullmatch(machine.name) is None:
            message = (
                f"{machine.name!r} cannot name a machine: lower-case letters, digits and '-' only."
            )
            raise LabError(message)
        if machine.name in self.names():
            return
        self._directory.mkdir(parents=True, exist_ok=True)
        self._console_directory.mkdir(parents=True, exist_ok=True)
        disk = self.disk(machine.name)
        if not disk.exists():
            beside = disk.with_suffix(".new")
            base = self._image.disk
            commands.run(
                ["qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", beside]
            )
            beside.rename(disk)
        if machine.network is not None and machine.address is not None:
            self._hypervisor.add_dhcp_host(machine.network, machine.mac, machine.address)
        definition = domain_xml(
            machine,
            self._image,
            self._domain_type,
            disk=disk,
            console_log=self.console_log(machine.name),
        )
        self._hypervisor.virsh("create", "/dev/stdin", stdin=definition)

    def shut_down(self, name: str, grace_seconds: float = 60) -> None:
        """Ask a machine to power off and cut its power after `grace_seconds`; its disk stays."""
        if name not in self.names():
            return
        try:
            self._hypervisor.virsh("shutdown", name)
            wait_until(lambda: name not in self.names(), grace_seconds, f"{name} to power off", 0.5)
        except LabError:
            # Either libvirt refused because it is just ending, or the guest does not listen.
            self.cut_power(name)

    def cut_power(self, name: str) -> None:
        """Stop a machine at once, as if its plug were pulled; its disk stays."""
        if name in self.names():
            try:
                self._hypervisor.virsh("destroy", name)
            except LabError:
                if name in self.names():
                    raise

    def destroy(self, name: str) -> None:
        """Stop a machine at once and delete its disk."""
        self.cut_power(name)
        self.disk(name).unlink(missing_ok=True)

    def names(self) -> list[str]:
        """Names of the machines that run, those of the program under test included."""
        return self._hypervisor.domains()

    def disk(self, name: str) -> Path:
        """Where a machine's disk is or would be."""
        return self._directory / f"{name}.qcow2"

    def console_log(self, name: str) -> Path:
        """Where a machine's console is or would be logged."""
        return self._console_directory / f"{name}.console.log"


def domain_xml(
    machine: Machine,
    image: Image,
    domain_type: DomainType,
    *,
    disk: Path,
    console_log: Path,
) -> str:
    """The libvirt definition of a machine."""
    if domain_type == "kvm":
        cpu, features = "<cpu mode='host-passthrough'/>", "<acpi/>"
    else:
        # A named old model: under emulation it boots a seventh faster than `max`, having fewer
        # features to probe.
        cpu = (
            "<cpu mode='custom' match='exact' check='none'>"
            "<model fallback='forbid'>Nehalem</model></cpu>"
        )
        features = f"<acpi/><tcg><tb-cache unit='MiB'>{_TRANSLATION_CACHE_MIB}</tb-cache></tcg>"
    identity = f"<uuid>{machine.uuid}</uuid>" if machine.uuid else ""
    smbios, sysinfo = "", ""
    if machine.is_ec2:
        smbios = "<smbios mode='sysinfo'/>"
        sysinfo = (
            "<sysinfo type='smbios'><system><entry name='manufacturer'>Amazon EC2</entry>"
            f"<entry name='product'>t3.micro</entry><entry name='serial'>{machine.uuid}</entry>"
            f"<entry name='uuid'>{machine.uuid}</entry></system></sysinfo>"
        )
    seed = ""
    if machine.seed_iso is not None:
        seed = (
            f"<disk type='file' device='cdrom'><driver name='qemu' type='raw'/>"
            f"<source file={quoteattr(str(machine.seed_iso))}/>"
            f"<target dev='sda' bus='sata'/><readonly/></disk>"
        )
    if machine.network is not None:
        card = f"<interface type='network'><source network='{machine.network}'/>"
    else:
        card = f"<interface type='ethernet'><target dev='{machine.cable}'/>"
    return (
        f"<domain type='{domain_type}'><name>{machine.name}</name>{identity}"
        f"<memory unit='MiB'>{machine.memory_mib}</memory><vcpu>{machine.vcpu}</vcpu>{sysinfo}"
        f"<os><type arch='x86_64' machine='q35'>hvm</type>"
        f"<kernel>{image.kernel}</kernel><initrd>{image.initrd}</initrd>"
        f"<cmdline>root=/dev/vda rw console=ttyS0 quiet {ON_PANIC}</cmdline>{smbios}</os>"
        f"<features>{features}</features>{cpu}"
        f"<on_poweroff>destroy</on_poweroff><on_reboot>restart</on_reboot><on_crash>destroy</on_crash>"
        f"<devices><disk type='file' device='disk'>"
        f"<driver name='qemu' type='qcow2' cache='none' io='native' discard='unmap'/>"
        f"<source file={quoteattr(str(disk))}/><target dev='vda' bus='virtio'/></disk>{seed}"
        f"{card}<mac address='{machine.mac}'/><model type='virtio'/></interface>"
        f"<serial type='file'><source path={quoteattr(str(console_log))} append='off'/></serial>"
        f"<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>"
        f"<controller type='usb' model='none'/><memballoon model='none'/></devices></domain>"
    )
