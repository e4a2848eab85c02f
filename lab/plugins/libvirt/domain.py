"""Owns the life of virtual machines. How one is spelled in XML is in `definitions`."""

import platform
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, ClassVar, Final
from xml.etree import ElementTree

from lab.plugins.base import (
    Call,
    Created,
    InputError,
    PartialResourceError,
    Properties,
    ResourceError,
)
from lab.plugins.libvirt import definitions
from lab.plugins.libvirt.resource import LibvirtResource
from lab.plugins.libvirt.storage import image_path, volume_format
from lab.plugins.libvirt.virsh import transformed

LEASE_TIMEOUT_SECONDS: Final = 300.0
"""How long the official plugin waits for a lease unless the program says otherwise."""

LEASE_CHECK_SECONDS: Final = 1.0


class Domain(LibvirtResource):
    """A virtual machine."""

    token = "libvirt:index/domain:Domain"
    defaults: ClassVar = {
        "type": "kvm",
        "vcpu": 1,
        "memory": 512,
        "running": True,
        "qemuAgent": False,
    }
    computed = frozenset({"arch", "autostart", "cpu", "emulator", "machine", "nvram"})
    replacing = frozenset({"cloudinit", "networkInterfaces"})
    unsupported = frozenset(
        {
            "bootDevices",
            "coreosIgnition",
            "disks.blockDevice",
            "disks.file",
            "disks.url",
            "filesystems",
            "firmware",
            "fwCfgName",
            "metadata",
            "networkInterfaces.macvtap",
            "networkInterfaces.passthrough",
            "networkInterfaces.vepa",
            "nvram",
            "tpm",
            "video",
        }
    )

    def refuse(self, inputs: Properties) -> None:
        """See the base class."""
        if inputs["qemuAgent"]:
            raise InputError(
                path="qemuAgent", reason="the lab's stand-in does not ask guest agents"
            )
        for disk in inputs.get("disks", ()):
            if "volumeId" not in disk:
                raise InputError(path="disks", reason="every disk names its volume in 'volumeId'")
        for interface in inputs.get("networkInterfaces", ()):
            if not {"networkId", "networkName", "bridge"} & interface.keys():
                reason = "every interface names a 'networkId', a 'networkName' or a 'bridge'"
                raise InputError(path="networkInterfaces", reason=reason)
        definitions.refuse_bad_devices(inputs)

    def comparable(self, inputs: Properties) -> Properties:
        """MAC addresses differ in case only by habit; what is false may as well be absent."""
        plain = {}
        for name, value in inputs.items():
            if name in ("disks", "networkInterfaces") and isinstance(value, list):
                plain[name] = [_plain_device(device) for device in value]
            else:
                plain[name] = value
        return plain

    def create(self, call: Call) -> Created:
        """Define and start it, and wait for the leases that the program asked for."""
        inputs = call.inputs
        interfaces = [
            interface | {"mac": (interface.get("mac") or definitions.random_mac()).upper()}
            for interface in inputs.get("networkInterfaces", ())
        ]
        networks = [self._network_name(interface) for interface in interfaces]
        volumes = [self._disk_volume(disk["volumeId"]) for disk in inputs.get("disks", ())]
        document = definitions.domain(
            inputs | {"networkInterfaces": interfaces},
            disk_volumes=volumes,
            interface_networks=networks,
            cloud_init_path=image_path(inputs["cloudinit"]) if inputs.get("cloudinit") else None,
            architecture=inputs.get("arch") or platform.machine(),
        )
        for interface, network in zip(interfaces, networks, strict=True):
            if network is not None:
                self._fix_leases(network, interface, inputs["name"])
        self.virsh("define", "/dev/stdin", stdin=transformed(document, self.stylesheet(inputs)))
        domain_id = self.virsh("domuuid", inputs["name"])
        try:
            if inputs.get("autostart"):
                self.virsh("autostart", domain_id)
            if inputs["running"]:
                self.virsh("start", domain_id)
        except ResourceError:
            self._undefine(domain_id)
            raise
        self._await_leases(call, domain_id, interfaces)
        return Created(domain_id, self.found(domain_id, inputs))

    def _disk_volume(self, path: str) -> definitions.DiskVolume:
        document = self.virsh.document("vol-dumpxml", path)
        return definitions.DiskVolume(
            pool=self.virsh("vol-pool", path),
            name=document.findtext("name", ""),
            image_format=volume_format(document),
        )

    def _network_name(self, interface: Mapping[str, Any]) -> str | None:
        if interface.get("networkName"):
            name: str = interface["networkName"]
            return name
        if interface.get("networkId"):
            return self.virsh("net-name", interface["networkId"])
        return None

    def _fix_leases(self, network: str, interface: Mapping[str, Any], domain_name: str) -> None:
        """Reserve the given addresses in the network's DHCP server."""
        for address in interface.get("addresses", ()):
            host = definitions.dhcp_host(
                interface["mac"], interface.get("hostname") or domain_name, address
            )
            target = ("ip-dhcp-host", "/dev/stdin", "--live", "--config")
            try:
                self.virsh("net-update", network, "modify", *target, stdin=host)
            except ResourceError:
                self.virsh("net-update", network, "add-last", *target, stdin=host)

    def _await_leases(self, call: Call, domain_id: str, interfaces: list[dict[str, Any]]) -> None:
        awaited = {item["mac"] for item in interfaces if item.get("waitForLease")}
        if not awaited:
            return
        left_seconds = call.timeout_seconds or LEASE_TIMEOUT_SECONDS
        while awaited - {mac for mac, addresses in self._leases(domain_id).items() if addresses}:
            if left_seconds <= 0 or call.cancelled.wait(LEASE_CHECK_SECONDS):
                message = (
                    f"couldn't retrieve IP address of domain id: {domain_id}: no lease for "
                    f"{', '.join(sorted(awaited))}; is DHCP enabled on its network, and does the "
                    "guest ask for an address?"
                )
                raise PartialResourceError(message, domain_id, self.found(domain_id, call.inputs))
            left_seconds -= LEASE_CHECK_SECONDS

    def _leases(self, domain_id: str) -> dict[str, list[str]]:
        """Leased addresses by MAC address; none while it is switched off."""
        leases: dict[str, list[str]] = {}
        with suppress(ResourceError):
            for line in self.virsh("domifaddr", domain_id, "--source", "lease").splitlines():
                _, mac, _, address = line.split()
                leases.setdefault(mac.upper(), []).append(address.partition("/")[0])
        return leases

    def find(self, resource_id: str, state: Properties) -> Properties | None:
        """See the base class."""
        if not self.virsh.has("list", resource_id):
            return None
        document = self.virsh.document("dumpxml", "--inactive", resource_id)
        facts = self.virsh.facts("dominfo", resource_id)
        kind = document.find("os/type")
        cpu = document.find("cpu")
        leases = self._leases(resource_id)
        interfaces = document.findall("devices/interface")
        found = state | {
            "name": document.findtext("name"),
            "type": document.get("type"),
            "memory": int(document.findtext("memory") or 0) // 1024,
            "vcpu": int(document.findtext("vcpu") or 0),
            "running": facts["State"] == "running",
            "autostart": facts["Autostart"] == "enable",
            "arch": None if kind is None else kind.get("arch"),
            "machine": state.get("machine") or (None if kind is None else kind.get("machine")),
            "emulator": document.findtext("devices/emulator"),
            "cpu": {} if cpu is None or cpu.get("mode") is None else {"mode": cpu.get("mode")},
            "nvram": {},
        }
        for word in ("kernel", "initrd"):
            if word in state:
                found[word] = document.findtext(f"os/{word}")
        if "cmdlines" in state:
            text = document.findtext("os/cmdline") or ""
            found["cmdlines"] = definitions.split_kernel_command_line(text)
        if "networkInterfaces" in state:
            recorded = state["networkInterfaces"]
            found["networkInterfaces"] = [
                (recorded[index] if index < len(recorded) else {})
                | self._found_interface(interface, leases)
                for index, interface in enumerate(interfaces)
            ]
        return found

    def _found_interface(
        self, interface: ElementTree.Element, leases: Mapping[str, list[str]]
    ) -> Properties:
        mac, source = interface.find("mac"), interface.find("source")
        address = "" if mac is None else mac.get("address", "").upper()
        found = {"mac": address, "addresses": leases.get(address, [])}
        if source is None or source.get("network") is None:
            return found
        name = source.get("network", "")
        return found | {"networkName": name, "networkId": self.virsh("net-uuid", name)}

    def update(self, call: Call) -> Properties:
        """Apply `running` and `autostart`; like the official plugin, record the rest only."""
        running = self.virsh("domstate", call.resource_id) == "running"
        if call.inputs["running"] and not running:
            self.virsh("start", call.resource_id)
        elif running and not call.inputs["running"]:
            self.virsh("destroy", call.resource_id)
        if "autostart" in call.inputs:
            disable = [] if call.inputs["autostart"] else ["--disable"]
            self.virsh("autostart", call.resource_id, *disable)
        return call.state | call.inputs

    def delete(self, call: Call) -> None:
        """Cut its power and forget it; its volumes stay."""
        if not self.virsh.has("list", call.resource_id):
            return
        if self.virsh("domstate", call.resource_id) != "shut off":
            self.virsh("destroy", call.resource_id)
        self._undefine(call.resource_id)

    def _undefine(self, domain_id: str) -> None:
        flags = ("--nvram", "--managed-save", "--snapshots-metadata", "--checkpoints-metadata")
        self.virsh("undefine", domain_id, *flags)


def _plain_device(device: Any) -> Any:
    if not isinstance(device, dict):
        return device
    plain = {name: value for name, value in device.items() if value not in (False, "", [])}
    if isinstance(plain.get("mac"), str):
        plain["mac"] = plain["mac"].upper()
    return plain
