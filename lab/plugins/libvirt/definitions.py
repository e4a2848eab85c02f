"""Owns the libvirt XML of networks, pools, volumes and domains. It asks libvirt nothing: whatever a
definition needs to know beyond a resource's inputs is handed in."""

import ipaddress
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from xml.etree import ElementTree

from lab.plugins.base import InputError

Inputs = Mapping[str, Any]

NETWORK_MODES: Final = ("nat", "none", "route", "open", "bridge")
SMALLEST_RANGE: Final = 8
"""Fewest addresses of a network, as in the official plugin."""

# Both from terraform-provider-libvirt 0.8.1: its locally administered WWN prefix, and the QEMU
# project's MAC prefix.
WWN_PREFIX: Final = "05abcd"
MAC_PREFIX: Final = "52:54:00"


@dataclass(frozen=True)
class DiskVolume:
    """A volume as a domain's disk refers to it."""

    pool: str
    name: str
    image_format: str


def network(inputs: Inputs) -> str:
    """The XML of a virtual network.

    Raises:
        InputError: the mode is unknown, a bridged network has no bridge, or an address is no
            range or too small a range.
    """
    mode = inputs.get("mode", "nat").lower()
    if mode not in NETWORK_MODES:
        raise InputError(path="mode", reason=f"{mode!r} is not one of {', '.join(NETWORK_MODES)}")
    root = ElementTree.Element("network")
    _text(root, "name", inputs["name"])
    if mode != "none":
        forward = _element(root, "forward", mode=mode)
        if mode == "nat":
            _element(_element(forward, "nat"), "port", start="1024", end="65535")
    if mode == "bridge":
        if not inputs.get("bridge"):
            raise InputError(
                path="bridge", reason="mode 'bridge' joins a bridge that exists: name it here"
            )
        _element(root, "bridge", name=inputs["bridge"])
    else:
        _element(root, "bridge", name=inputs.get("bridge"), stp="on")
    if inputs.get("mtu"):
        _element(root, "mtu", size=str(inputs["mtu"]))
    dns = inputs.get("dns", {})
    if inputs.get("domain"):
        local_only = "yes" if dns.get("localOnly") else None
        _element(root, "domain", name=inputs["domain"], localOnly=local_only)
    if mode != "bridge":
        if dns.get("enabled") is not None:
            _element(root, "dns", enable="yes" if dns["enabled"] else "no")
        with_dhcp = inputs.get("dhcp", {}).get("enabled", True)
        for address in inputs.get("addresses", ()):
            root.append(_address_range(address, with_dhcp=with_dhcp))
    return _serialize(root)


def _address_range(address: str, *, with_dhcp: bool) -> ElementTree.Element:
    """The first address is the host's own, the others but the broadcast are for leases."""
    try:
        # A host address stands for its network, as in the official plugin.
        whole = ipaddress.ip_network(address, strict=False)
    except ValueError as error:
        reason = f"{address!r} is not a range such as '10.20.0.0/24' ({error})"
        raise InputError(path="addresses", reason=reason) from error
    if whole.num_addresses < SMALLEST_RANGE:
        reason = f"{address!r} is too small a range: take at least {SMALLEST_RANGE} addresses"
        raise InputError(path="addresses", reason=reason)
    element = ElementTree.Element(
        "ip", family=f"ipv{whole.version}", address=str(whole[1]), prefix=str(whole.prefixlen)
    )
    if with_dhcp:
        _element(_element(element, "dhcp"), "range", start=str(whole[2]), end=str(whole[-2]))
    return element


def dhcp_host(mac: str, hostname: str, address: str) -> str:
    """The XML of a fixed lease in a network's DHCP section."""
    return _serialize(ElementTree.Element("host", mac=mac, name=hostname, ip=address))


def pool(name: str, path: str) -> str:
    """The XML of a directory pool."""
    root = ElementTree.Element("pool", type="dir")
    _text(root, "name", name)
    _text(_element(root, "target"), "path", path)
    return _serialize(root)


def volume(
    name: str,
    *,
    image_format: str,
    capacity_bytes: int,
    backing: tuple[str, str] | None = None,
) -> str:
    """The XML of a volume; `backing` is the path and format of the volume it is an overlay of.

    Unlike the official plugin's it is sparse, also when raw: a lab's data disks are mostly empty.
    """
    root = ElementTree.Element("volume")
    _text(root, "name", name)
    _text(root, "capacity", str(capacity_bytes), unit="bytes")
    _text(root, "allocation", "0")
    target = _element(root, "target")
    _element(target, "format", type=image_format)
    _text(_element(target, "permissions"), "mode", "0644")
    if backing is not None:
        path, backing_format = backing
        store = _element(root, "backingStore")
        _text(store, "path", path)
        _element(store, "format", type=backing_format)
    return _serialize(root)


def domain(
    inputs: Inputs,
    *,
    disk_volumes: Sequence[DiskVolume],
    interface_networks: Sequence[str | None],
    cloud_init_path: str | None,
    architecture: str,
) -> str:
    """The XML of a virtual machine.

    Parameters:
        disk_volumes: for each of the disks, the volume that it names.
        interface_networks: for each of the interfaces, the libvirt network it is on, or None when
            it is on a bridge.
        cloud_init_path: file of the ISO to attach as CD-ROM.

    Raises:
        InputError: a graphics type is not known, or a console port is no number.
    """
    root = ElementTree.Element("domain", type=inputs.get("type", "kvm"))
    _text(root, "name", inputs["name"])
    if inputs.get("description"):
        _text(root, "description", inputs["description"])
    _text(root, "memory", str(inputs.get("memory", 512)), unit="MiB")
    _text(root, "vcpu", str(inputs.get("vcpu", 1)))
    if inputs.get("cpu", {}).get("mode"):
        _element(root, "cpu", mode=inputs["cpu"]["mode"])
    system = _element(root, "os")
    machine = {"machine": inputs["machine"]} if inputs.get("machine") else {}
    _text(system, "type", "hvm", arch=architecture, **machine)
    for word in ("kernel", "initrd"):
        if inputs.get(word):
            _text(system, word, inputs[word])
    command_line = kernel_command_line(inputs.get("cmdlines", ()))
    if command_line:
        _text(system, "cmdline", command_line)
    features = _element(root, "features")
    for feature in ("pae", "acpi", "apic"):
        _element(features, feature)
    devices = _element(root, "devices")
    if inputs.get("emulator"):
        _text(devices, "emulator", inputs["emulator"])
    _disks(devices, inputs.get("disks", ()), disk_volumes)
    if cloud_init_path is not None:
        _cloud_init_disk(devices, cloud_init_path)
    for interface, network_name in zip(
        inputs.get("networkInterfaces", ()), interface_networks, strict=True
    ):
        _interface(devices, interface, network_name)
    for console in inputs.get("consoles", ()):
        _console(devices, console)
    _graphics(devices, inputs.get("graphics"))
    channel = _element(devices, "channel", type="unix")
    _element(channel, "target", type="virtio", name="org.qemu.guest_agent.0")
    _text(_element(devices, "rng", model="virtio"), "backend", "/dev/urandom", model="random")
    return _serialize(root)


def kernel_command_line(maps: Iterable[Mapping[str, str]]) -> str:
    """The words of all maps, sorted; those of the key `_` stand alone."""
    pairs = [pair for words in maps for pair in words.items()]
    return " ".join(sorted(value if key == "_" else f"{key}={value}" for key, value in pairs))


def split_kernel_command_line(command_line: str) -> list[dict[str, str]]:
    """The maps in which the official plugin reads a command line back.

    Words without a value end up in a last map of their own, and empty values are lost: whoever
    writes either differently is told of a difference at every run.
    """
    maps: list[dict[str, str]] = []
    current: dict[str, str] = {}
    flags: list[str] = []
    for word in command_line.split():
        key, has_value, value = word.partition("=")
        if not has_value:
            flags.append(word)
            continue
        if key in current:
            maps.append(current)
            current = {}
        if value:
            current[key] = value
    if current:
        maps.append(current)
    if flags:
        maps.append({"_": " ".join(flags)})
    return maps


def random_mac() -> str:
    """A MAC address of QEMU's range."""
    return ":".join([MAC_PREFIX, *(f"{octet:02X}" for octet in secrets.token_bytes(3))]).upper()


def refuse_bad_devices(inputs: Inputs) -> None:
    """Check what can be checked of a domain before its volumes exist.

    Raises:
        InputError: a graphics type is not known, or a console port is no number.
    """
    devices = ElementTree.Element("devices")
    _graphics(devices, inputs.get("graphics"))
    for console in inputs.get("consoles", ()):
        _console(devices, console)


def _disks(
    devices: ElementTree.Element, disks: Sequence[Inputs], volumes: Sequence[DiskVolume]
) -> None:
    scsi_count = 0
    for index, (disk, source) in enumerate(zip(disks, volumes, strict=True)):
        element = _element(devices, "disk", type="volume", device="disk")
        _element(element, "driver", name="qemu", type=source.image_format)
        _element(element, "source", pool=source.pool, volume=source.name)
        if disk.get("scsi"):
            _element(element, "target", dev=f"sd{_drive_letters(scsi_count)}", bus="scsi")
            _text(element, "wwn", disk.get("wwn") or WWN_PREFIX + secrets.token_hex(5))
            scsi_count += 1
        else:
            _element(element, "target", dev=f"vd{_drive_letters(index)}", bus="virtio")
    if scsi_count:
        _element(devices, "controller", type="scsi", model="virtio-scsi")


def _cloud_init_disk(devices: ElementTree.Element, path: str) -> None:
    element = _element(devices, "disk", type="file", device="cdrom")
    _element(element, "driver", name="qemu", type="raw")
    _element(element, "source", file=path)
    _element(element, "target", dev="hdd", bus="ide")
    _element(element, "readonly")
    # By this serial the official plugin knows which CD-ROM is not one of the disks.
    _text(element, "serial", "cloudinit")


def _interface(devices: ElementTree.Element, interface: Inputs, network_name: str | None) -> None:
    if network_name is not None:
        element = _element(devices, "interface", type="network")
        _element(element, "source", network=network_name)
    else:
        element = _element(devices, "interface", type="bridge")
        _element(element, "source", bridge=interface["bridge"])
    _element(element, "mac", address=interface["mac"])
    _element(element, "model", type="virtio")


def _console(devices: ElementTree.Element, console: Inputs) -> None:
    if not console["targetPort"].isdigit():
        reason = f"targetPort {console['targetPort']!r} is not a port number such as '0'"
        raise InputError(path="consoles", reason=reason)
    path = console.get("sourcePath")
    if console["type"] == "tcp":
        element = _element(devices, "console", type="tcp")
        _element(
            element,
            "source",
            mode="bind",
            host=console.get("sourceHost", "127.0.0.1"),
            service=console.get("sourceService", "0"),
        )
        _element(element, "protocol", type="telnet")
    elif console["type"] == "pty" or path is None:
        element = _element(devices, "console", type="pty")
        if path is not None:
            _element(element, "source", path=path)
    else:
        # Whatever the type says, the official plugin makes a device of it, never a file.
        element = _element(devices, "console", type="dev")
        _element(element, "source", path=path)
    _element(element, "target", port=console["targetPort"], type=console.get("targetType"))


def _graphics(devices: ElementTree.Element, graphics: Inputs | None) -> None:
    if graphics is None or graphics.get("type") == "none":
        return
    kind = graphics.get("type", "spice")
    if kind not in ("spice", "vnc"):
        raise InputError(path="graphics", reason=f"type {kind!r} is not one of spice, vnc, none")
    automatic = "yes" if graphics.get("autoport", True) else "no"
    element = _element(devices, "graphics", type=kind, autoport=automatic)
    listen_type = graphics.get("listenType", "none")
    address = graphics.get("listenAddress", "127.0.0.1") if listen_type == "address" else None
    _element(element, "listen", type=listen_type, address=address)


def _drive_letters(index: int) -> str:
    letters = ""
    index += 1
    while index:
        index, letter = divmod(index - 1, 26)
        letters = chr(ord("a") + letter) + letters
    return letters


def _element(
    parent: ElementTree.Element, tag: str, **attributes: str | None
) -> ElementTree.Element:
    given = {name: value for name, value in attributes.items() if value is not None}
    return ElementTree.SubElement(parent, tag, given)


def _text(
    parent: ElementTree.Element, tag: str, text: str, **attributes: str
) -> ElementTree.Element:
    element = ElementTree.SubElement(parent, tag, attributes)
    element.text = text
    return element


def _serialize(root: ElementTree.Element) -> str:
    return ElementTree.tostring(root, encoding="unicode")
