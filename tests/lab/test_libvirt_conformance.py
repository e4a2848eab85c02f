"""The stand-in for the libvirt plugin does, through the real engine and a real libvirtd of its own,
what was measured of the official 0.5.4: one test per measured case.

Not shown here, because it takes a guest with an operating system: a static address by cloud-init's
network-config, and how long a guest takes to answer. The lab's own `up` shows both.
"""

import itertools
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree

import pytest

from lab.commands import run
from lab.hypervisor import Hypervisor, private_directories
from lab.namespace import Namespace
from lab.plugins.base import CheckCall
from lab.plugins.libvirt import definitions
from lab.plugins.libvirt.domain import Domain
from lab.plugins.libvirt.virsh import Virsh
from tests.lab.engine import Engine, Run

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a private libvirtd takes root")

MEBIBYTE: Final = 1024 * 1024

PROGRAM: Final = """
import json
from pathlib import Path

import pulumi
import pulumi_libvirt as libvirt

told = json.loads(Path("told.json").read_text())
name = told["name"]
provider = libvirt.Provider("provider", uri="qemu:///system")

def as_told(args):
    if not args.type_.startswith("libvirt:"):
        return None
    options = pulumi.ResourceOptions(provider=provider, protect=args.name in told["protected"])
    return pulumi.ResourceTransformationResult(
        props=args.props | told["inputs"].get(args.name, {}),
        opts=pulumi.ResourceOptions.merge(args.opts, options),
    )

pulumi.runtime.register_stack_transformation(as_told)

network = libvirt.Network("network", name=name, mode="open", bridge=f"br-{name}", autostart=True,
    addresses=[f"10.{told['number']}.0.0/24"], dhcp={"enabled": False}, dns={"enabled": False})
pool = libvirt.Pool("pool", name=name, type="dir", target={"path": told["pool"]})
base = libvirt.Volume("base", name="base.qcow2", pool=pool.name, source=told["image"])
root = libvirt.Volume("root", name="root.qcow2", pool=pool.name, base_volume_id=base.id,
    size=64 * 1024 * 1024)
data = libvirt.Volume("data", name="data.raw", pool=pool.name, format="raw", size=8 * 1024 * 1024)
seed = libvirt.CloudInitDisk("seed", name="seed.iso", pool=pool.name, user_data="#cloud-config\\n",
    meta_data=f"instance-id: {name}\\n", network_config="version: 2\\n")
machine = libvirt.Domain("machine", name=name, type="qemu", memory=64, vcpu=1,
    disks=[{"volume_id": root.id}, {"volume_id": data.id}],
    network_interfaces=[{"network_id": network.id, "mac": "52:54:00:AB:CD:EF"} | told["interface"]],
    cloudinit=seed.id, xml={"xslt": told["stylesheet"]},
    consoles=[{"type": "pty", "target_port": "0", "target_type": "serial"}])

pulumi.export("ids", {each._name: each.id for each in
    (network, pool, base, root, data, seed, machine)})
pulumi.export("names", {each._name: each.name for each in (base, root, data)})
pulumi.export("interfaces", machine.network_interfaces)
"""

STYLESHEET: Final = """
<xsl:stylesheet version="1.0" xmlns:xsl="http://www.w3.org/1999/XSL/Transform">
  <xsl:template match="node()|@*">
    <xsl:copy><xsl:apply-templates select="node()|@*"/></xsl:copy>
  </xsl:template>
  <xsl:template match="/domain/devices/disk[@device='disk']/driver">
    <xsl:copy>
      <xsl:apply-templates select="@*"/>
      <xsl:attribute name="cache">none</xsl:attribute>
      <xsl:attribute name="io">native</xsl:attribute>
      <xsl:attribute name="discard">unmap</xsl:attribute>
    </xsl:copy>
  </xsl:template>
</xsl:stylesheet>
"""


@dataclass
class Core:
    """A stack of the resources that one core node is made of, with a private name for each."""

    engine: Engine
    hypervisor: Hypervisor
    number: int
    inputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Changes to the program's inputs, by resource."""
    interface: dict[str, Any] = field(default_factory=dict)
    protected: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"core{self.number}"

    @property
    def pool(self) -> Path:
        return self.engine.directory / "pool"

    @property
    def image(self) -> Path:
        return self.engine.directory / "image.qcow2"

    def tell(self) -> None:
        """Hand the program its settings."""
        told = {
            "name": self.name,
            "number": self.number,
            "pool": str(self.pool),
            "image": str(self.image),
            "stylesheet": STYLESHEET,
            "inputs": self.inputs,
            "interface": self.interface,
            "protected": self.protected,
        }
        (self.engine.directory / "told.json").write_text(json.dumps(told))

    def up(self) -> Run:
        self.tell()
        return self.engine.up()

    def try_up(self) -> Run:
        self.tell()
        return self.engine.try_up()

    def ids(self) -> dict[str, str]:
        found: dict[str, str] = self.engine.outputs()["ids"]
        return found

    def domain(self) -> ElementTree.Element:
        return parsed(self.hypervisor.virsh("dumpxml", self.name))

    def clean_up(self) -> None:
        self.engine.pulumi("state", "unprotect", "--all", "--yes", "--stack=test")
        self.engine.try_destroy()


def replaced(run: Run) -> set[str]:
    return {name for operation, name in run.steps if operation == "replace"}


def changed(run: Run) -> set[str]:
    return {name for operation, name in run.steps if operation != "same"}


def parsed(document: str) -> ElementTree.Element:
    return ElementTree.fromstring(document)  # noqa: S314 - libvirt's own


def make_image(path: Path, size_mebibytes: int) -> None:
    run(["qemu-img", "create", "-q", "-f", "qcow2", path, f"{size_mebibytes}M"])


@pytest.fixture(scope="module")
def hypervisor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Namespace, Hypervisor]]:
    directory = tmp_path_factory.mktemp("hypervisor")
    namespace = Namespace(directory / "namespace", private_directories(directory / "libvirt"))
    namespace.up()
    try:
        # The Debian package makes it; libvirt writes there even for a network without dnsmasq.
        (directory / "libvirt" / "lib" / "dnsmasq").mkdir(parents=True, exist_ok=True)
        hypervisor = Hypervisor(namespace, directory / "libvirt")
        hypervisor.start()
        yield namespace, hypervisor
    finally:
        namespace.down()


numbers = itertools.count(1)


def new_core(directory: Path, place: tuple[Namespace, Hypervisor]) -> Core:
    namespace, hypervisor = place
    directory.mkdir()
    engine = Engine(directory, prefix=namespace.command([]))
    engine.write(PROGRAM)
    core = Core(engine, hypervisor, number=next(numbers))
    make_image(core.image, 48)
    return core


@pytest.fixture
def core(tmp_path: Path, hypervisor: tuple[Namespace, Hypervisor]) -> Iterator[Core]:
    """A core of the test's own, not up yet."""
    core = new_core(tmp_path / "core", hypervisor)
    yield core
    core.clean_up()


@pytest.fixture(scope="module")
def whole_core(
    tmp_path_factory: pytest.TempPathFactory, hypervisor: tuple[Namespace, Hypervisor]
) -> Iterator[Core]:
    """A core that is up, for the tests that only look."""
    core = new_core(tmp_path_factory.mktemp("whole") / "core", hypervisor)
    core.up()
    yield core
    core.clean_up()


def test_a_second_up_of_a_whole_core_changes_nothing(whole_core: Core) -> None:
    assert whole_core.up().unchanged


def test_a_refresh_of_an_untouched_core_finds_no_change(whole_core: Core) -> None:
    assert whole_core.engine.refresh().unchanged
    assert whole_core.up().unchanged


def test_ids_are_paths_of_volumes_and_uuids_of_the_rest(whole_core: Core) -> None:
    ids = whole_core.ids()
    uuid = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    assert ids["root"] == f"{whole_core.pool}/root.qcow2"
    assert re.fullmatch(f"{whole_core.pool}/seed.iso;{uuid}", ids["seed"])
    assert all(re.fullmatch(uuid, ids[name]) for name in ("network", "pool", "machine"))


def test_the_pool_directory_is_made_with_mode_0711(whole_core: Core) -> None:
    assert whole_core.pool.stat().st_mode & 0o7777 == 0o711


def test_the_stylesheet_reaches_disks_and_leaves_the_iso_alone(whole_core: Core) -> None:
    drivers = {
        disk.find("target").get("dev"): disk.find("driver").attrib  # type: ignore[union-attr]
        for disk in whole_core.domain().iterfind("devices/disk")
    }
    tuned = {"name": "qemu", "cache": "none", "io": "native", "discard": "unmap"}
    assert drivers == {
        "vda": tuned | {"type": "qcow2"},
        "vdb": tuned | {"type": "raw"},
        "hdd": {"name": "qemu", "type": "raw"},
    }


def test_an_interface_without_a_lease_has_no_addresses_and_keeps_its_mac(whole_core: Core) -> None:
    (interface,) = whole_core.engine.outputs()["interfaces"]
    assert interface["addresses"] == []
    assert interface["mac"] == "52:54:00:AB:CD:EF"


def test_the_overlay_has_its_own_size_and_the_base_volume_behind_it(whole_core: Core) -> None:
    path = whole_core.pool / "root.qcow2"
    image = json.loads(run(["qemu-img", "info", "-U", "--output=json", path]))
    assert image["virtual-size"] == 64 * MEBIBYTE
    assert image["full-backing-filename"] == f"{whole_core.pool}/base.qcow2"


def test_the_cloud_init_disk_is_labelled_and_holds_the_three_files(whole_core: Core) -> None:
    image = whole_core.pool / "seed.iso"
    assert "Volume id: cidata" in run(["isoinfo", "-d", "-i", image])
    listing = run(["isoinfo", "-f", "-J", "-i", image]).split()
    assert set(listing) == {"/user-data", "/meta-data", "/network-config"}
    assert run(["isoinfo", "-J", "-i", image, "-x", "/user-data"]) == "#cloud-config\n"


def test_a_domain_is_for_kvm_unless_the_program_says_otherwise() -> None:
    call = CheckCall(name="machine", inputs={}, old_inputs={}, random_seed=b"")
    inputs = Domain(Virsh()).check(call)
    document = definitions.domain(
        inputs, disk_volumes=[], interface_networks=[], cloud_init_path=None, architecture="x86_64"
    )
    assert parsed(document).get("type") == "kvm"


def test_changed_memory_replaces_the_domain_and_keeps_its_volumes(core: Core) -> None:
    core.up()
    before = core.ids()
    core.inputs = {"machine": {"memory": 80}}
    ended = core.up()
    steps = ended.operations["machine"]
    assert changed(ended) == {"machine"}
    assert steps.index("delete-replaced") < steps.index("create-replacement")
    after = core.ids()
    assert after["machine"] != before["machine"]
    assert after | {"machine": ""} == before | {"machine": ""}
    assert core.domain().findtext("memory") == str(80 * 1024)


def test_changed_user_data_replaces_cloud_init_disk_and_domain(core: Core) -> None:
    core.up()
    core.inputs = {"seed": {"user_data": "#cloud-config\npackages: []\n"}}
    assert replaced(core.up()) == {"seed", "machine"}
    assert core.up().unchanged


def test_a_changed_volume_size_replaces_volume_and_domain_and_the_data_is_gone(core: Core) -> None:
    core.up()
    core.hypervisor.virsh("destroy", core.name)
    write_data(core)
    core.inputs = {"data": {"size": 16 * MEBIBYTE}}
    assert replaced(core.up()) == {"data", "machine"}
    assert (core.pool / "data.raw").stat().st_size == 16 * MEBIBYTE
    assert read_data(core) == bytes(len(TREASURE))


def test_a_protected_volume_is_not_replaced_and_nothing_of_it_is_touched(core: Core) -> None:
    core.protected = ["data", "machine"]
    core.up()
    write_data(core)
    before = core.ids()
    core.inputs = {"data": {"size": 16 * MEBIBYTE}}
    ended = core.try_up()
    assert not ended.succeeded
    assert "protected" in ended.output
    assert read_data(core) == TREASURE
    assert core.domain().findtext("uuid") == before["machine"]


def test_destroy_has_deleted_the_rest_when_it_fails_at_a_protected_volume(core: Core) -> None:
    core.protected = ["data"]
    core.up()
    ended = core.engine.try_destroy()
    assert not ended.succeeded
    assert "data" in ended.output
    assert "cannot be deleted" in ended.output
    assert core.name not in core.hypervisor.domains(running_only=False)
    assert not (core.pool / "root.qcow2").exists()
    assert (core.pool / "data.raw").exists()
    rest = core.engine.try_destroy("--exclude-protected")
    assert rest.succeeded
    assert not changed(rest)


def test_a_protected_domain_makes_destroy_refuse_before_it_deletes_anything(core: Core) -> None:
    core.protected = ["data", "machine"]
    core.up()
    assert not core.engine.try_destroy().succeeded
    assert core.name in core.hypervisor.domains()


def test_addresses_without_waiting_for_a_lease_replace_the_domain_at_every_up(core: Core) -> None:
    core.inputs = {"network": {"dhcp": {"enabled": True}}}
    core.interface = {"addresses": [f"10.{core.number}.0.11"], "wait_for_lease": False}
    core.up()
    for _ in range(2):
        assert replaced(core.engine.preview()) == {"machine"}


def test_command_line_words_are_sorted_and_a_flag_in_its_own_map_is_stable(core: Core) -> None:
    core.inputs = {
        "machine": kernel_inputs(core)
        | {"cmdlines": [{"root": "/dev/vda", "console": "ttyS0"}, {"_": "quiet"}]}
    }
    core.up()
    system = core.domain().find("os")
    assert system is not None
    assert system.findtext("cmdline") == "console=ttyS0 quiet root=/dev/vda"
    assert core.up().unchanged


@pytest.mark.parametrize(
    "cmdlines",
    [[{"console": "ttyS0", "quiet": ""}], [{"console": "ttyS0", "_": "quiet"}]],
    ids=["an empty value", "a flag among the pairs"],
)
def test_a_badly_written_command_line_replaces_the_domain_at_every_up(
    core: Core, cmdlines: list[dict[str, str]]
) -> None:
    core.inputs = {"machine": kernel_inputs(core) | {"cmdlines": cmdlines}}
    core.up()
    for _ in range(2):
        assert replaced(core.up()) == {"machine"}


def test_kernel_and_initrd_are_plain_paths_of_the_host(core: Core) -> None:
    core.inputs = {"machine": kernel_inputs(core)}
    core.up()
    system = core.domain().find("os")
    assert system is not None
    assert system.findtext("kernel") == str(core.engine.directory / "kernel")
    assert system.findtext("initrd") == str(core.engine.directory / "initrd")
    assert core.up().unchanged


def test_a_domain_switched_off_outside_is_started_in_place_after_a_refresh(core: Core) -> None:
    core.up()
    before = core.ids()["machine"]
    core.hypervisor.virsh("destroy", core.name)
    core.engine.refresh()
    ended = core.up()
    assert changed(ended) == {"machine"}
    assert ended.operations["machine"] == ["update"]
    assert core.hypervisor.domains().count(core.name) == 1
    assert core.domain().findtext("uuid") == before


def test_another_image_under_the_same_path_is_not_noticed(core: Core) -> None:
    core.up()
    make_image(core.image, 56)
    assert core.up().unchanged


def test_a_volume_without_a_name_gets_one_and_is_replaced_by_a_second_one(core: Core) -> None:
    core.inputs = {"data": {"name": None}}
    core.up()
    before = core.engine.outputs()["names"]["data"]
    assert re.fullmatch(r"data-[0-9a-f]{7}", before)
    assert core.up().unchanged
    core.inputs = {"data": {"name": None, "size": 16 * MEBIBYTE}}
    ended = core.up()
    steps = ended.operations["data"]
    assert steps.index("create-replacement") < steps.index("delete-replaced")
    assert core.engine.outputs()["names"]["data"] != before


def test_destroy_leaves_nothing(core: Core) -> None:
    core.up()
    core.engine.destroy()
    assert core.name not in core.hypervisor.domains(running_only=False)
    assert core.name not in core.hypervisor.virsh("net-list", "--all", "--name").split()
    assert core.name not in core.hypervisor.virsh("pool-list", "--all", "--name").split()
    assert not core.pool.exists()


def test_destroy_succeeds_when_everything_is_gone_already(core: Core) -> None:
    core.up()
    for words in (
        ("destroy", core.name),
        ("undefine", core.name),
        ("net-destroy", core.name),
        ("net-undefine", core.name),
        ("pool-destroy", core.name),
        ("pool-undefine", core.name),
    ):
        core.hypervisor.virsh(*words)
    shutil.rmtree(core.pool)
    core.engine.destroy()


def test_what_is_gone_is_made_again_after_a_refresh(core: Core) -> None:
    core.up()
    core.hypervisor.virsh("destroy", core.name)
    core.hypervisor.virsh("undefine", core.name)
    core.engine.refresh()
    assert core.up().operations["machine"] == ["create"]


@pytest.mark.parametrize(
    ("name", "inputs", "complaint"),
    [
        ("machine", {"memory": "plenty"}, "must be of type integer"),
        ("machine", {"colour": "red"}, "unknown input 'colour'"),
        ("machine", {"tpm": {"model": "tpm-tis"}}, "stand-in"),
        ("machine", {"graphics": {"type": "sdl"}}, "not one of spice, vnc, none"),
        ("network", {"mode": "bridged"}, "'bridged' is not one of"),
        ("network", {"addresses": ["10.20.0.0/24x"]}, "is not a range"),
        ("pool", {"path": "/nowhere"}, "not in 'path' as well"),
        ("base", {"size": MEBIBYTE}, "'size' can't be specified beside 'source'"),
    ],
)
def test_a_bad_input_is_refused_before_anything_is_done(
    whole_core: Core, name: str, inputs: dict[str, Any], complaint: str
) -> None:
    whole_core.inputs = {name: inputs}
    refused = whole_core.try_up()
    whole_core.inputs = {}
    assert not refused.succeeded
    assert complaint in refused.output
    assert "Traceback" not in refused.output
    assert not changed(refused)
    assert whole_core.up().unchanged


@pytest.mark.parametrize(
    ("name", "inputs", "complaint"),
    [
        ("base", {"source": "/nowhere.qcow2"}, "cannot be read"),
        ("root", {"size": MEBIBYTE}, "cannot be smaller than its base volume"),
    ],
)
def test_a_volume_that_cannot_be_made_says_why(
    core: Core, name: str, inputs: dict[str, Any], complaint: str
) -> None:
    core.inputs = {name: inputs}
    failed = core.try_up()
    assert not failed.succeeded
    assert complaint in failed.output
    assert "Traceback" not in failed.output


TREASURE: Final = b"personal data"


def write_data(core: Core) -> None:
    with (core.pool / "data.raw").open("r+b") as file:
        file.write(TREASURE)


def read_data(core: Core) -> bytes:
    with (core.pool / "data.raw").open("rb") as file:
        return file.read(len(TREASURE))


def kernel_inputs(core: Core) -> dict[str, Any]:
    """A domain with a kernel that is only defined: what would boot is of no interest here."""
    for name in ("kernel", "initrd"):
        (core.engine.directory / name).write_bytes(b"")
    return {
        "kernel": str(core.engine.directory / "kernel"),
        "initrd": str(core.engine.directory / "initrd"),
        "running": False,
    }
