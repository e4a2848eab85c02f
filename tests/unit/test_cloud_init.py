"""What machines are born with, read by the programs that will read it: cloud-init and libvirt's."""

import base64
import gzip
import re
import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest

import settings
from components.kvm_machine import TEMPLATES
from plan.keys import bootstrap_host_key
from plan.names import fleet_names, mac_address
from render import cloud_init, member
from settings import LibvirtNode, Settings
from tests.unit.golden_files import program_output
from tests.unit.samples import (
    SEED,
    container_workload,
    mesh_of,
    node_of,
    sample,
    sample_data,
)

MAC = mac_address("prod", "oslo-db-01")
# Refuses an empty list, which cloud-init itself has always taken; gone with 23.2 (its issue 4055).
MISTAKE_OF_OLD_SCHEMAS = "users: [] is too short"


def core_node() -> LibvirtNode:
    node = node_of(sample(), "oslo-db-01")
    assert isinstance(node, LibvirtNode)
    return node


def core_user_data() -> str:
    return cloud_init.user_data(
        core_node(),
        authorized_key="ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAcHBwcHBwcHBwcHBwcHBwcHBwcH",
        bootstrap_key=bootstrap_host_key(SEED, "oslo-db-01"),
    )


def core_network_config() -> str:
    of = sample()
    assert of.core is not None
    assert of.core.libvirt is not None
    return cloud_init.network_config(core_node(), of.core.libvirt.network, MAC)


def member_user_data(of: Settings) -> str:
    plan = mesh_of(of).fleet("frankfurt")
    packed = member.user_data(
        facts=member.join_facts(mesh_of(of), hub_public_key="HUBKEY="),
        fleet=of.fleets["frankfurt"],
        plan=plan,
        names=fleet_names("fortress-and-fleet", "prod", "frankfurt", plan.generation),
        group_name="fortress-prod-frankfurt",
        launch_hook="joined",
        terminate_hook="left",
        workload=of.workload,
        database=of.database,
        secrets_version=1,
    )
    return gzip.decompress(base64.b64decode(packed)).decode()


def complaints(text: str, directory: Path) -> set[str]:
    """What cloud-init's own schema has against a user-data, deprecations included."""
    if shutil.which("cloud-init") is None:
        pytest.fail("cloud-init is not installed, so nothing has read this text: install it")
    file = directory / "user-data"
    file.write_text(text)
    checked = subprocess.run(
        ["cloud-init", "schema", "--config-file", file], capture_output=True, text=True, check=False
    )
    said = (checked.stdout + checked.stderr).replace(f"Valid cloud-config: {file}", "")
    said = re.sub(r"Error:|Cloud config schema (errors|deprecations):", "", said)
    return {line.strip() for line in said.splitlines()} - {""}


def test_cloud_init_accepts_a_core_machines_user_data(tmp_path: Path) -> None:
    assert complaints(core_user_data(), tmp_path) == set()


@pytest.mark.parametrize("kind", ["script", "container"])
def test_cloud_init_accepts_a_members_user_data(tmp_path: Path, kind: str) -> None:
    data = sample_data()
    if kind == "container":
        data["workload"] = container_workload()
    of = settings.validate(data)
    assert complaints(member_user_data(of), tmp_path) <= {MISTAKE_OF_OLD_SCHEMAS}


def test_a_mistake_would_not_be_accepted(tmp_path: Path) -> None:
    wrong = core_user_data().replace('"ssh_authorized_keys"', '"ssh_authorised_keys"')
    assert "ssh_authorised_keys" in str(complaints(wrong, tmp_path))


def test_cloud_init_gives_a_core_machines_only_card_its_static_address(tmp_path: Path) -> None:
    file = tmp_path / "network-config"
    file.write_text(core_network_config())
    # The schema of network configurations is newer than Debian 12; this is the parser itself. Of
    # the forms it writes this one needs no root.
    program_output(
        *("cloud-init", "devel", "net-convert", "--network-data", str(file), "--kind", "yaml"),
        *("--distro", "debian", "--output-kind", "eni", "--directory", str(tmp_path)),
    )
    written = "".join(path.read_text() for path in (tmp_path / "etc").rglob("*") if path.is_file())
    for line in (
        f'ATTR{{address}}=="{MAC.lower()}", NAME="lan"',
        "iface lan inet static",
        "    address 10.20.0.11/24",
        "add default gw 10.20.0.1 ",
        "    dns-nameservers 10.20.0.1",
    ):
        assert line in written


# As terraform-provider-libvirt 0.8 hands it to the style sheet: defaults spelt out, in this order.
DOMAIN = """\
<domain type="kvm">
  <name>oslo-db-01</name>
  <memory unit="MiB">8192</memory>
  <vcpu placement="static">4</vcpu>
  <os>
    <type arch="x86_64" machine="pc-i440fx-7.2">hvm</type>
  </os>
  <features>
    <pae></pae>
    <acpi></acpi>
    <apic></apic>
  </features>
  <cpu mode="host-passthrough"></cpu>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type="volume" device="disk">
      <driver name="qemu" type="qcow2"></driver>
      <source pool="fortress" volume="oslo-db-01-root.qcow2"></source>
      <target dev="vda" bus="virtio"></target>
    </disk>
    <disk type="volume" device="disk">
      <driver name="qemu" type="qcow2"></driver>
      <source pool="fortress" volume="oslo-db-01-data.qcow2"></source>
      <target dev="vdb" bus="virtio"></target>
    </disk>
    <disk type="file" device="cdrom">
      <driver name="qemu" type="raw"></driver>
      <source file="/srv/nvme/fortress/oslo-db-01-birth.iso"></source>
      <target dev="hdd" bus="ide"></target>
      <serial>cloudinit</serial>
    </disk>
    <interface type="network">
      <mac address="52:54:00:20:00:11"></mac>
      <source network="oslo"></source>
      <model type="virtio"></model>
    </interface>
    <console type="pty">
      <target type="serial" port="0"></target>
    </console>
    <channel type="unix">
      <target type="virtio" name="org.qemu.guest_agent.0"></target>
    </channel>
    <rng model="virtio">
      <backend model="random">/dev/urandom</backend>
    </rng>
  </devices>
</domain>
"""
SHEETS = ["domain.xslt", "domain-emulated.xslt"]


def styled(sheet: str, text: str, directory: Path) -> ElementTree.Element:
    """The domain after the style sheet, applied as the plugin does: by xsltproc."""
    file = directory / "domain.xml"
    file.write_text(text)
    done = program_output("xsltproc", "--nomkdir", "--nonet", str(TEMPLATES / sheet), str(file))
    assert not done.startswith("<?xml"), "libvirt's provider expects none"
    # Made two lines above from the text above.
    return ElementTree.fromstring(done)  # noqa: S314


@pytest.mark.parametrize("sheet", SHEETS)
def test_disks_bypass_the_hosts_page_cache_and_the_cdrom_stays_as_it_is(
    sheet: str, tmp_path: Path
) -> None:
    domain = styled(sheet, DOMAIN, tmp_path)
    drivers = {
        disk.find("target").get("dev"): disk.find("driver").attrib  # type: ignore[union-attr]
        for disk in domain.findall("devices/disk")
    }
    wanted = {"type": "qcow2", "cache": "none", "io": "native", "discard": "unmap"}
    assert drivers == {
        "vda": {"name": "qemu", **wanted},
        "vdb": {"name": "qemu", **wanted},
        "hdd": {"name": "qemu", "type": "raw"},
    }


@pytest.mark.parametrize("sheet", SHEETS)
def test_only_the_data_volume_is_found_by_the_serial_data(sheet: str, tmp_path: Path) -> None:
    domain = styled(sheet, DOMAIN, tmp_path)
    serials = {
        disk.find("target").get("dev"): disk.findtext("serial")  # type: ignore[union-attr]
        for disk in domain.findall("devices/disk")
    }
    assert serials == {"vda": None, "vdb": "data", "hdd": "cloudinit"}


@pytest.mark.parametrize("sheet", SHEETS)
def test_what_was_there_before_is_not_there_twice(sheet: str, tmp_path: Path) -> None:
    already = DOMAIN.replace('type="qcow2"></driver>', 'type="qcow2" cache="writeback"></driver>')
    already = already.replace("</disk>", "<serial>other</serial></disk>", 2)
    once = styled(sheet, already, tmp_path)
    (data,) = [d for d in once.findall("devices/disk") if d.find("target[@dev='vdb']") is not None]
    assert [serial.text for serial in data.findall("serial")] == ["data"]
    assert data.find("driver[@cache='none']") is not None


@pytest.mark.parametrize("sheet", SHEETS)
def test_a_style_sheet_changes_nothing_else(sheet: str, tmp_path: Path) -> None:
    def lines(element: ElementTree.Element) -> list[str]:
        text = ElementTree.tostring(element, encoding="unicode")
        return [line.strip() for line in re.sub(r">\s*<", ">\n<", text).splitlines()]

    after = lines(styled(sheet, DOMAIN, tmp_path))
    # Parsed above.
    before = lines(ElementTree.fromstring(DOMAIN))  # noqa: S314
    added = [line for line in after if line not in before]
    driver = '<driver name="qemu" type="qcow2" cache="none" io="native" discard="unmap" />'
    expected = [driver, driver, "<serial>data</serial>"]
    if sheet == "domain-emulated.xslt":
        expected[:0] = ["<tcg>", '<tb-cache unit="MiB">256</tb-cache>', "</tcg>"]
    assert added == expected
    assert len(after) == len(before) + len(added) - 2, "only the two drivers were replaced"
