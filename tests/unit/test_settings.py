"""Settings: every rule has its message, and every stack file in the repository is accepted."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import settings
from settings import SettingsError
from tests.unit.samples import sample_data

ROOT = Path(settings.__file__).parent
STACK_FILES = sorted(ROOT.glob("Pulumi.*.yaml"))
# What `scripts/lab up` fills in, in a form that passes.
LAB_VALUES = {
    "${lab:domain-type}": "qemu",
    "${lab:pool-directory}": "/var/lib/pool",
    "${lab:image-sha256}": "07" * 32,
    "${lab:oslo-web-02-host-key}": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAcHBwcHBwcHBw",
}


def stack_settings(path: Path) -> Any:
    text = path.read_text()
    for placeholder, value in LAB_VALUES.items():
        text = text.replace(placeholder, value)
    return yaml.safe_load(text)["config"]["fortress-and-fleet:settings"]


@pytest.mark.parametrize("path", STACK_FILES, ids=lambda path: path.name)
def test_every_stack_file_in_the_repository_is_accepted(path: Path) -> None:
    settings.validate(stack_settings(path))


def test_production_is_the_example_that_the_documentation_promises() -> None:
    production = settings.validate(stack_settings(ROOT / "Pulumi.prod.yaml"))
    assert production.core is not None
    (node,) = production.core.nodes
    assert node.placement == "libvirt"
    assert (node.name, node.vcpu, node.memory_mib) == ("oslo-db-01", 4, 8192)
    fleet = production.fleets["frankfurt"]
    assert (fleet.region, fleet.instance_types, fleet.min_size, fleet.max_size) == (
        "eu-central-1",
        ("t3.medium",),
        1,
        8,
    )


def test_settings_cannot_be_changed_after_they_were_checked() -> None:
    checked = settings.validate(sample_data())
    with pytest.raises(ValueError, match="frozen"):
        checked.protect = False  # type: ignore[misc]


Change = Callable[[dict[str, Any]], None]


def put(path: str, value: object) -> Change:
    def change(data: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        here: Any = data
        for part in parents:
            here = here[int(part)] if isinstance(here, list) else here.setdefault(part, {})
        here[int(last) if isinstance(here, list) else last] = value

    return change


def drop(path: str) -> Change:
    def change(data: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        here: Any = data
        for part in parents:
            here = here[int(part)] if isinstance(here, list) else here[part]
        del here[last]

    return change


def add_fleet(**changes: object) -> Change:
    def change(data: dict[str, Any]) -> None:
        fleet = copy.deepcopy(data["fleets"]["frankfurt"])
        fleet.update({"block": "10.100.0.128/26", "vpc-range": "10.65.0.0/16"})
        fleet.update({key.replace("_", "-"): value for key, value in changes.items()})
        data["fleets"]["london"] = fleet

    return change


def spill_in_a_core(data: dict[str, Any]) -> None:
    data["layout"] = "core"
    put("fleets.frankfurt.scaling", {"kind": "spill-pressure", "target-percent": 10})(data)


def function(**changes: object) -> Change:
    job: dict[str, object] = {
        "directory": "workload/demo",
        "runtime": "python3.13",
        "handler": "serve.main",
    }
    job.update({key.replace("_", "-"): value for key, value in changes.items()})
    return put("fleets.frankfurt.functions", {"job": job})


BAD = [
    ("a misspelt key", put("mesh.keepalive", 25), "settings.mesh.keepalive: unknown setting"),
    ("a wrong type", put("mesh.port", "many"), "settings.mesh.port: 'many' is not accepted"),
    ("a port out of range", put("mesh.port", 70000), "settings.mesh.port: 70000"),
    ("no core", drop("core"), "layout single builds the core itself"),
    ("a missing address", drop("core.nodes.0.address"), "core.nodes.0.address: is missing"),
    ("two hubs", put("core.nodes.1.roles", ["hub", "frontend"]), "have the role hub; exactly one"),
    (
        "no database",
        put("core.nodes.0.roles", ["hub", "frontend", "edge"]),
        "no node has the role database",
    ),
    ("no frontend", put("core.nodes.1.roles", ["edge"]), "have the role edge; exactly one"),
    (
        "a database without a volume",
        drop("core.nodes.0.data-gib"),
        "role database but no data-gib",
    ),
    ("two nodes of one name", put("core.nodes.1.name", "oslo-db-01"), "two core nodes have"),
    ("two nodes at one address", put("core.nodes.1.address", "10.20.0.11"), "the address 10.20"),
    ("no KVM host", drop("core.libvirt"), "placement libvirt but core.libvirt is missing"),
    (
        "an address outside the network",
        put("core.nodes.0.address", "10.21.0.11"),
        "not a free address",
    ),
    ("bridge mode without a bridge", drop("core.libvirt.network.bridge"), "mode bridge needs"),
    ("a host key that is none", put("core.nodes.1.host-key", "abc"), "not a public SSH host key"),
    ("min above max", put("fleets.frankfurt.min-size", 9), "min-size 9 is above max-size 8"),
    (
        "a block too small for two generations",
        put("fleets.frankfurt.block", "10.100.0.64/29"),
        "fewer than twice max-size 8",
    ),
    (
        "a block outside the mesh",
        put("fleets.frankfurt.block", "10.101.0.0/26"),
        "is not inside mesh.range",
    ),
    (
        "two fleets in one block",
        add_fleet(block="10.100.0.64/27"),
        "overlaps fleets.london.block",
    ),
    ("a VPC in the LAN", put("fleets.frankfurt.vpc-range", "10.20.0.0/16"), "overlaps"),
    ("a VPC in the mesh", put("fleets.frankfurt.vpc-range", "10.100.0.0/16"), "overlaps"),
    ("a VPC too large", put("fleets.frankfurt.vpc-range", "10.64.0.0/15"), "between /16 and /24"),
    ("a VPC too small", put("fleets.frankfurt.vpc-range", "10.64.0.0/25"), "between /16 and /24"),
    (
        "zones as a number",
        put("fleets.frankfurt.availability-zones", 3),
        "fleets.frankfurt.availability-zones: 3 is not accepted",
    ),
    (
        "a hub whose public address lies in the tunnel",
        put("core.nodes.0.public-address", "10.100.0.1"),
        "node oslo-db-01 has public-address 10.100.0.1 inside mesh.range 10.100.0.0/24",
    ),
    (
        "a node in a VPC",
        put("core.nodes.1.address", "10.64.0.12"),
        "node oslo-web-02 has address 10.64.0.12 inside fleets.frankfurt.vpc-range",
    ),
    ("two VPCs alike", add_fleet(vpc_range="10.64.128.0/17"), "overlaps"),
    ("an image given twice", put("fleets.frankfurt.image.id", "ami-12345678"), "by id or by owner"),
    (
        "types that need two images",
        put("fleets.frankfurt.instance-types", ["t3.medium", "t4g.medium"]),
        "instance-types t3.medium (x86_64), t4g.medium (arm64) need different images",
    ),
    (
        "a workload without health path",
        drop("workload.health-path"),
        "settings.workload.health-path: is missing and has no default. Add it",
    ),
    ("a health path with a query", put("workload.health-path", "/health?x=1"), "absolute HTTP"),
    ("a workload that is not there", put("workload.directory", "nowhere"), "has no file `install`"),
    ("ports that meet", put("workload.health-port", 8080), "workload.health-port are both 8080"),
    ("a port used twice", put("door.statistics-port", 5432), "door.statistics-port are both 5432"),
    ("a database of PostgreSQL's own", put("database.name", "postgres"), "belongs to PostgreSQL"),
    ("an unknown region", put("fleets.frankfurt.region", "Frankfurt"), "region: 'Frankfurt'"),
    (
        "the old name of the target",
        put("fleets.frankfurt.target-cpu-percent", 60),
        "fleets.frankfurt.target-cpu-percent: unknown setting",
    ),
    (
        "spill pressure without a target",
        put("fleets.frankfurt.scaling", {"kind": "spill-pressure"}),
        "fleets.frankfurt.scaling.target-percent: is missing",
    ),
    (
        "a target that leaves members without work",
        put("fleets.frankfurt.scaling", {"kind": "spill-pressure", "target-percent": 20}),
        "target-percent 20 would never fill max-size 8: 5 members with 20 % each",
    ),
    (
        "spill pressure in a core without fleets",
        spill_in_a_core,
        "fleets.frankfurt.scaling is spill-pressure with layout core",
    ),
    (
        "a function that touches personal data",
        function(touches_personal_data=True),
        "functions.job: touches-personal-data is true: personal data is processed in Oslo only",
    ),
    (
        "a function without code",
        function(directory="nowhere"),
        "functions.job: directory nowhere holds no file",
    ),
    (
        "a function without its handler",
        function(handler="absent.run"),
        "handler absent.run needs the file workload/demo/absent.py",
    ),
    (
        "a function with Lambda's own variable",
        function(environment={"AWS_REGION": "eu-west-1"}),
        "environment has AWS_REGION",
    ),
    ("a mesh inside the LAN", put("mesh.range", "10.20.0.0/16"), "overlaps"),
]


def test_a_fleet_follows_its_processors_unless_told_otherwise() -> None:
    data = sample_data()
    assert settings.validate(data).fleets["frankfurt"].scaling == settings.CpuScaling()
    put("fleets.frankfurt.scaling", {"kind": "spill-pressure", "target-percent": 12.5})(data)
    assert settings.validate(data).fleets["frankfurt"].scaling.target_percent == 12.5


def test_a_function_has_no_address_and_few_runs_unless_asked_for_more() -> None:
    data = sample_data()
    function()(data)
    job = settings.validate(data).fleets["frankfurt"].functions["job"]
    assert (job.function_url, job.concurrency, job.touches_personal_data) == (False, 5, False)


@pytest.mark.parametrize(
    ("change", "message"), [row[1:] for row in BAD], ids=[row[0] for row in BAD]
)
def test_a_broken_rule_is_told_with_value_and_remedy(change: Change, message: str) -> None:
    data = sample_data()
    change(data)
    with pytest.raises(SettingsError) as raised:
        settings.validate(data)
    text = str(raised.value)
    assert message in text
    assert "Traceback" not in text
    assert "pydantic" not in text
