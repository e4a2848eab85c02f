"""The typed door for everything a person can set: one object per stack, checked once, frozen.

Owns the shape of `fortress-and-fleet:settings` in `Pulumi.<stack>.yaml` and every rule that can be
checked before the first resource is touched. It is the only reader of `pulumi.Config`. Secrets
(`mesh-seed`, passwords, the SSH key) are separate keys and never enter this model. It refuses to
compute anything: addresses, keys and names follow in `plan`.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

if TYPE_CHECKING:
    import pulumi

PROJECT = "fortress-and-fleet"
ROOT = Path(__file__).resolve().parent

# RFC 1035 section 2.3.1 limits a label to 63; names here become parts of host names, resource
# names and HAProxy server names with suffixes, so they stop earlier.
NAME_PATTERN = r"^[a-z][a-z0-9-]{0,30}[a-z0-9]$"

# EC2 instance types guide, "naming conventions": a g after the generation is AWS's Arm processor;
# a1 is older than that rule.
ARM_PATTERN = r"(a1|[a-z]+\d+[a-z]*g[a-z]*)\..+"

Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Port = Annotated[int, Field(ge=1, le=65535)]


def _host_key(value: str) -> str:
    if re.fullmatch(r"(ssh-ed25519|ecdsa-sha2-nistp256|ssh-rsa) [A-Za-z0-9+/=]+( .*)?", value):
        return value
    msg = (
        f"{value!r} is not a public SSH host key. It is pinned, so that nobody can stand between "
        "Pulumi and the machine. Read it there: cat /etc/ssh/ssh_host_ed25519_key.pub"
    )
    raise ValueError(msg)


def _free_database_name(value: str) -> str:
    if value in {"postgres", "template0", "template1", "public"} or value.startswith("pg_"):
        msg = (
            f"{value!r} belongs to PostgreSQL itself; the application's database must be nobody "
            "else's. Choose another name"
        )
        raise ValueError(msg)
    return value


def _absolute_http_path(value: str) -> str:
    if re.fullmatch(r"/[A-Za-z0-9._~/-]*", value):
        return value
    msg = (
        f"{value!r} is not an absolute HTTP path without query: it goes into HAProxy's "
        "configuration as it is. Write for example /health"
    )
    raise ValueError(msg)


def _architecture(instance_type: str) -> str:
    return "arm64" if re.fullmatch(ARM_PATTERN, instance_type) else "x86_64"


HostKey = Annotated[str, AfterValidator(_host_key)]
HttpPath = Annotated[str, AfterValidator(_absolute_http_path)]


class SettingsError(Exception):
    """A setting that breaks a rule; the message holds value, rule, reason and remedy."""


class Role(StrEnum):
    """What a core node does; a node may have one role or all of them."""

    HUB = "hub"
    DATABASE = "database"
    FRONTEND = "frontend"
    EDGE = "edge"


class Layout(StrEnum):
    """Which half of the system a stack holds."""

    SINGLE = "single"
    CORE = "core"
    EDGE = "edge"


class Model(BaseModel):
    """Frozen, kebab-case in YAML, unknown keys are errors."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=lambda name: name.replace("_", "-"),
        populate_by_name=False,
        validate_default=True,
    )


class MeshSettings(Model):
    """The WireGuard network: hub in Oslo, every other machine a spoke."""

    range: IPv4Network = Field(
        default=IPv4Network("10.100.0.0/24"), description="Addresses of the whole mesh."
    )
    port: Annotated[int, Field(ge=1, le=65534)] = Field(
        default=51820,
        description="UDP port of the hub; the next one serves the hub's odd key generations.",
    )
    accept_previous_hub: bool = Field(
        default=True,
        description="Whether members of fleets' previous generations still reach the hub by its "
        "previous key, at its other port, while they are replaced.",
    )
    mtu: int = Field(
        default=1360,
        ge=1280,
        le=8920,
        description="Bytes per packet in the tunnel; members lower it on a smaller path.",
    )
    keepalive_seconds: int = Field(
        default=25, ge=0, le=65535, description="Spokes' persistent keepalive (wg(8))."
    )


class SshSettings(Model):
    """How Pulumi reaches core nodes, and from where anybody may."""

    allowed_ranges: tuple[IPv4Network, ...] = Field(
        min_length=1, description="Source ranges that may open SSH on core nodes."
    )


class PoolSettings(Model):
    """libvirt storage pool, a directory on the KVM host."""

    name: Name = "fortress"
    path: str = Field(default="/var/lib/libvirt/fortress", pattern=r"^/\S+$")


class NetworkSettings(Model):
    """libvirt network of the core nodes."""

    name: Name = "oslo"
    mode: Literal["bridge", "nat", "route", "open"] = "bridge"
    bridge: str | None = Field(
        default=None, description="Host bridge: existing for mode bridge, made for the others."
    )
    range: IPv4Network
    gateway: IPv4Address
    name_servers: tuple[IPv4Address, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.mode == "bridge" and self.bridge is None:
            msg = (
                "mode bridge needs `bridge`, the name of an existing bridge on the KVM host, "
                "because libvirt does not make it. Add for example bridge: br0"
            )
            raise ValueError(msg)
        if self.gateway not in self.range:
            msg = (
                f"gateway {self.gateway} is outside range {self.range}, so no machine could reach "
                "it. Give the router's address inside the range"
            )
            raise ValueError(msg)
        return self


class ImageSettings(Model):
    """Base image of core machines: a cloud image with cloud-init, raw or qcow2."""

    source: str = Field(description="Path on the machine that runs Pulumi, or an http(s) URL.")
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] = Field(
        description="Of the file; libvirt does not notice another file under the same path."
    )
    kernel: str | None = Field(
        default=None, description="Kernel on the KVM host, for images without a boot loader."
    )
    initrd: str | None = None
    kernel_arguments: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.kernel is None and (self.initrd or self.kernel_arguments):
            msg = (
                "initrd and kernel-arguments are used only with `kernel`: an image with a boot "
                "loader brings its own. Give kernel, or leave them out"
            )
            raise ValueError(msg)
        return self


class LibvirtSettings(Model):
    """The KVM host in Oslo and what its machines share."""

    uri: str = Field(pattern=r"^qemu(\+[a-z]+)?://\S+$")
    domain_type: Literal["kvm", "qemu"] = Field(
        default="kvm", description="qemu is emulation: for the lab and hosts without KVM."
    )
    pool: PoolSettings = PoolSettings()
    network: NetworkSettings
    image: ImageSettings


class NodeSettings(Model):
    """What every core node has, whatever it runs on."""

    name: Name
    roles: frozenset[Role] = Field(min_length=1)
    address: IPv4Address = Field(description="Address Pulumi reaches by SSH.")
    public_address: IPv4Address | None = Field(
        default=None, description="Where the fleet finds the hub and users the door; else address."
    )
    mesh_address: IPv4Address | None = Field(
        default=None, description="Else by position: the hub has .1, the others follow from .2."
    )
    generation: int = Field(default=0, ge=0, description="Raise to give this node a new key.")
    memory_mib: int = Field(ge=512, description="The database's memory settings follow from it.")


class LibvirtNode(NodeSettings):
    """A KVM machine that the program makes."""

    placement: Literal["libvirt"]
    user: Name = "fortress"
    vcpu: int = Field(default=2, ge=1, le=256)
    root_gib: int = Field(default=10, ge=4)
    data_gib: int | None = Field(
        default=None, ge=1, description="Separate, protected volume for PostgreSQL."
    )

    @model_validator(mode="after")
    def _database_has_a_volume(self) -> Self:
        if Role.DATABASE in self.roles and self.data_gib is None:
            msg = (
                f"node {self.name} has the role database but no data-gib: the database lives on a "
                "volume of its own, which survives the machine. Add data-gib: 50"
            )
            raise ValueError(msg)
        return self


class ExistingNode(NodeSettings):
    """A machine that is already there, reached by SSH; never deleted."""

    placement: Literal["existing"]
    user: str = Field(default="root", pattern=r"^[a-z_][a-z0-9_-]*$")
    ssh_port: Port = 22
    host_key: HostKey
    data_device: str | None = Field(
        default=None,
        pattern=r"^/dev/\S+$",
        description="Empty disk for PostgreSQL; without it the root file system is used.",
    )


Node = Annotated[LibvirtNode | ExistingNode, Field(discriminator="placement")]


class CoreSettings(Model):
    """The fortress in Oslo."""

    ssh: SshSettings
    libvirt: LibvirtSettings | None = None
    nodes: tuple[Node, ...] = Field(min_length=1)


class DatabaseSettings(Model):
    """One application database with two roles: Oslo's and the fleet's."""

    name: Annotated[
        str, Field(pattern=r"^[a-z][a-z0-9_]{0,40}$"), AfterValidator(_free_database_name)
    ] = "app"
    port: Port = 5432
    max_connections: int = Field(default=200, ge=20, le=5000)
    fleet_privileges: tuple[Literal["select", "insert", "update", "delete"], ...] = Field(
        default=("select",),
        description="What the fleet's role may do, and only in the schema named fleet.",
    )


class WorkloadCommon(Model):
    """What every kind of workload says of itself."""

    port: Port = 8080
    health_port: Port = Field(
        default=8081,
        description="Where a machine answers HEAD /health for itself and its workload.",
    )
    health_path: HttpPath = Field(
        description="The workload's own: answers 200 when it is ready; asked by GET."
    )
    environment: dict[Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")], str] = Field(
        default_factory=dict, description="Plain values only; it reaches the launch template."
    )
    log_output: bool = Field(
        default=False,
        description="Keep the workload's output in members' journal; it may hold personal data.",
    )


class ScriptWorkload(WorkloadCommon):
    """A directory with an executable `install` (run as root, once per content) and `start`."""

    kind: Literal["script"]
    directory: str = Field(description="Relative to the repository.")

    @model_validator(mode="after")
    def _directory_is_complete(self) -> Self:
        for part in ("install", "start"):
            if not (ROOT / self.directory / part).is_file():
                msg = (
                    f"workload directory {self.directory} has no file `{part}`: `install` prepares "
                    "a machine and `start` serves. Add it, or correct directory"
                )
                raise ValueError(msg)
        return self


class ContainerWorkload(WorkloadCommon):
    """An image run by podman."""

    kind: Literal["container"]
    image: str = Field(pattern=r"^\S+$", description="With tag or digest.")


Workload = Annotated[ScriptWorkload | ContainerWorkload, Field(discriminator="kind")]


class DoorSettings(Model):
    """HAProxy: Oslo first, the fleet when Oslo is full or down."""

    http_port: Port = 80
    https_port: Port = 443
    tls: bool = Field(
        default=False, description="Serve https with the secret door-certificate (PEM, with key)."
    )
    statistics_port: Port = Field(default=8404, description="On the mesh address only.")
    oslo_connections: int = Field(
        default=64, ge=1, description="Concurrent requests per Oslo frontend before it is full."
    )
    fleet_connections: int = Field(
        default=64, ge=1, description="Concurrent requests per fleet member."
    )
    oslo_only_paths: tuple[HttpPath, ...] = Field(
        default=(), description="Path prefixes whose data may not be processed abroad."
    )


class AmazonImage(Model):
    """The fleet's image: by id, or an owner's newest whose name and processor fit."""

    id: Annotated[str, Field(pattern=r"^ami-[0-9a-f]{8,17}$")] | None = None
    owner: str | None = Field(default=None, description="Account id, self or amazon.")
    name: str | None = Field(default=None, description="With * as wildcard.")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        by_name = self.owner is not None and self.name is not None
        if (self.id is None) != by_name:
            msg = (
                "an image is given by id or by owner and name, because both "
                "could disagree. Keep one: id: ami-…, or owner and name: debian-13-amd64-*"
            )
            raise ValueError(msg)
        return self


class CpuScaling(Model):
    """As many members as keep their mean processor use at the target."""

    kind: Literal["cpu"] = "cpu"
    target_percent: int = Field(default=60, ge=10, le=90)


class SpillScaling(Model):
    """As many members as keep each one's part of the door's requests at the target."""

    kind: Literal["spill-pressure"]
    target_percent: float = Field(
        gt=0,
        le=90,
        description="Requests that found Oslo full, in percent of all, that one member shall take.",
    )


Scaling = Annotated[CpuScaling | SpillScaling, Field(discriminator="kind")]


class FunctionSettings(Model):
    """A Lambda function beside a fleet: a stateless job without a way into the mesh."""

    directory: str = Field(description="Relative to the repository; becomes the zip.")
    runtime: str = Field(pattern=r"^[a-z0-9.]+$", description="AWS's identifier: python3.13.")
    handler: str = Field(pattern=r"^[A-Za-z0-9_./:-]{1,128}$")
    memory_mib: int = Field(default=128, ge=128, le=10240)
    timeout_seconds: int = Field(default=30, ge=1, le=900)
    architecture: Literal["arm64", "x86_64"] = "arm64"
    concurrency: int = Field(
        default=5, ge=1, le=1000, description="Runs at a time, reserved from the account's limit."
    )
    environment: dict[Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]+$")], str] = Field(
        default_factory=dict, description="Plain values only; everybody who sees it sees them."
    )
    function_url: bool = Field(
        default=False, description="An address for callers with AWS credentials."
    )
    touches_personal_data: bool = Field(
        default=False, description="A function that does is refused: it belongs in Oslo."
    )

    @model_validator(mode="after")
    def _no_personal_data(self) -> Self:
        if self.touches_personal_data:
            msg = (
                "touches-personal-data is true: personal data is processed in Oslo only, and a "
                "function runs at AWS. Make it a part of the workload, with its path in "
                "door.oslo-only-paths, or take the personal data out of what it is given"
            )
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _code_is_there(self) -> Self:
        directory = ROOT / self.directory
        if not (directory.is_dir() and any(path.is_file() for path in directory.rglob("*"))):
            msg = (
                f"directory {self.directory} holds no file, and the function is made of its "
                "content. Add the code, or correct directory"
            )
            raise ValueError(msg)
        module = self.handler.rpartition(".")[0].replace(".", "/")
        if self.runtime.startswith("python") and not (directory / f"{module}.py").is_file():
            msg = (
                f"handler {self.handler} needs the file {self.directory}/{module}.py, which is not "
                "there. Write it as FILE.FUNCTION, FILE without .py"
            )
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _environment_is_ours(self) -> Self:
        for name in self.environment:
            if name.startswith(("AWS_", "LAMBDA_")):
                msg = (
                    f"environment has {name}, but Lambda keeps names that begin with AWS_ and "
                    "LAMBDA_ for itself. Choose another name"
                )
                raise ValueError(msg)
        return self


class FleetSettings(Model):
    """One Auto Scaling Group of stateless frontends in one region."""

    region: Annotated[str, Field(pattern=r"^[a-z]{2,4}(-[a-z]+)+-\d$")]
    endpoint_url: str | None = Field(
        default=None,
        pattern=r"^https?://\S+$",
        description="Another AWS-compatible API; for pulumi-aws and the members alike.",
    )
    block: IPv4Network = Field(description="Mesh addresses of this fleet, both halves.")
    generation: int = Field(default=0, ge=0, description="Raise to give the fleet new keys.")
    accept_previous_generation: bool = Field(
        default=True,
        description="Whether members of generation - 1 are still let in while they are replaced.",
    )
    preference: int = Field(default=0, ge=0, description="Order at the door; lowest first.")
    min_size: int = Field(default=1, ge=0)
    max_size: int = Field(ge=1)
    instance_types: tuple[Annotated[str, Field(pattern=r"^[a-z0-9-]+\.[a-z0-9-]+$")], ...] = Field(
        default=("t3.medium",), min_length=1
    )
    spot_percent: int = Field(default=0, ge=0, le=100)
    refresh_healthy_percent: int = Field(
        default=100,
        ge=0,
        le=100,
        description="Share of the members that serves while members are replaced; at 100 new ones "
        "serve before old ones leave.",
    )
    image: AmazonImage
    vpc_range: IPv4Network
    availability_zones: tuple[Literal["a", "b", "c", "d", "e", "f"], ...] = Field(
        default=("a", "b"),
        min_length=1,
        description="Their letters; not every region has the first ones (ap-northeast-1: a, c, d).",
    )
    root_gib: int = Field(default=8, ge=4)
    scaling: Scaling = CpuScaling()
    # AWS holds a launching instance for two hours at most (PutLifecycleHook, HeartbeatTimeout).
    join_seconds: int = Field(
        default=300, ge=30, le=6900, description="A member that does not serve by then is replaced."
    )
    drain_seconds: int = Field(
        default=30, ge=1, le=3600, description="How long running requests may end when leaving."
    )
    functions: dict[Name, FunctionSettings] = Field(default_factory=dict)

    @property
    def architecture(self) -> str:
        """What the instance types' processors run, in EC2's words: x86_64 or arm64."""
        return _architecture(self.instance_types[0])

    @model_validator(mode="after")
    def _one_image_fits_all_types(self) -> Self:
        found = {kind: _architecture(kind) for kind in self.instance_types}
        if len(set(found.values())) > 1:
            listed = ", ".join(f"{kind} ({runs})" for kind, runs in found.items())
            msg = (
                f"instance-types {listed} need different images, and a fleet's members all boot "
                "from one. Keep the types of one architecture, or make two fleets"
            )
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.min_size > self.max_size:
            msg = (
                f"min-size {self.min_size} is above max-size {self.max_size}, so no size would be "
                "right. Lower min-size or raise max-size"
            )
            raise ValueError(msg)
        if self.block.num_addresses < 2 * self.max_size:
            needed = 32 - (2 * self.max_size - 1).bit_length()
            msg = (
                f"block {self.block} has {self.block.num_addresses} addresses, fewer than twice "
                f"max-size {self.max_size}: even and odd key generations each need half of it "
                f"while keys rotate. Give at least a /{needed}, or lower max-size"
            )
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _network_holds_subnets(self) -> Self:
        # VPC user guide, "VPC CIDR blocks" and "Subnet sizing": both from /16 to /28.
        if not 16 <= self.vpc_range.prefixlen <= 24:
            msg = (
                f"vpc-range {self.vpc_range} is not between /16 and /24: AWS takes no larger "
                "network, and a sixteenth of it, one zone's subnet, no smaller than /28. Give for "
                "example a /20"
            )
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _target_is_reachable(self) -> Self:
        target, others = self.scaling.target_percent, self.max_size - 1
        if self.scaling.kind == "spill-pressure" and target * others >= 100:
            msg = (
                f"scaling.target-percent {target:g} would never fill max-size {self.max_size}: "
                f"{math.ceil(100 / target)} members with {target:g} % each take all requests there "
                f"are. Give less than {100 / others:.3g}, or lower max-size"
            )
            raise ValueError(msg)
        return self


class Settings(Model):
    """Everything a stack says about itself, except its secrets."""

    layout: Layout = Field(
        default=Layout.SINGLE,
        description="single: core and fleets; core: without the fleets' AWS; edge: only that.",
    )
    core_stack: str | None = Field(
        default=None,
        pattern=r"^[^/\s]+/[^/\s]+/[^/\s]+$",
        description="For layout edge: the stack that holds the core, organization/project/stack.",
    )
    protect: bool = Field(
        default=True, description="Refuse to delete the database's volume and machine."
    )
    mesh: MeshSettings = MeshSettings()
    core: CoreSettings | None = None
    database: DatabaseSettings = DatabaseSettings()
    workload: Workload
    door: DoorSettings = DoorSettings()
    fleets: dict[Name, FleetSettings] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _layout_is_complete(self) -> Self:
        if self.layout is Layout.EDGE:
            if self.core_stack is None:
                msg = (
                    "layout edge takes the core from another stack: give core-stack "
                    "(organization/project/stack)"
                )
                raise ValueError(msg)
            elsewhere = sorted(
                self.model_fields_set & {"core", "database", "door", "mesh", "protect"}
            )
            if elsewhere:
                msg = (
                    f"layout edge takes {', '.join(elsewhere)} from core-stack "
                    f"{self.core_stack}: set here too, both could disagree. Leave it out"
                )
                raise ValueError(msg)
        elif self.core is None or self.core_stack is not None:
            msg = (
                f"layout {self.layout} builds the core itself: give core, and leave core-stack out"
            )
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _door_can_reach_its_key(self) -> Self:
        for name, fleet in self.fleets.items():
            if self.layout is not Layout.SINGLE and fleet.scaling.kind == "spill-pressure":
                msg = (
                    f"fleets.{name}.scaling is spill-pressure with layout {self.layout}: the door "
                    "needs a key of AWS for it, and a core of its own creates nothing there and "
                    "waits for no other stack. Use scaling cpu, or layout single"
                )
                raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _core_is_consistent(self) -> Self:
        if self.core is None:
            return self
        nodes = self.core.nodes
        for what, values in (
            ("name", [node.name for node in nodes]),
            ("address", [str(node.address) for node in nodes]),
        ):
            twice = [value for value in values if values.count(value) > 1]
            if twice:
                msg = (
                    f"two core nodes have the {what} {twice[0]}: each is known by its own. "
                    f"Change one {what}"
                )
                raise ValueError(msg)
        for role, why in (
            (Role.HUB, "the mesh has one centre, because an address belongs to one peer only"),
            (Role.DATABASE, "writes go to one place"),
            (Role.EDGE, "the door has one address"),
        ):
            holders = [node.name for node in nodes if role in node.roles]
            if len(holders) != 1:
                found = f"nodes {', '.join(holders)} have" if holders else "no node has"
                msg = (
                    f"{found} the role {role}; exactly one must: {why}. "
                    f"{'Keep it on one' if holders else 'Give it to one'} of "
                    f"{', '.join(node.name for node in nodes)}"
                )
                raise ValueError(msg)
        if not any(Role.FRONTEND in node.roles for node in nodes):
            msg = "no node has the role frontend: the door prefers Oslo. Give it to one node"
            raise ValueError(msg)
        for node in nodes:
            if node.placement == "libvirt":
                if self.core.libvirt is None:
                    msg = (
                        f"node {node.name} has placement libvirt but core.libvirt is missing: it "
                        "names the KVM host, pool, network and image. Add it, or use existing"
                    )
                    raise ValueError(msg)
                network = self.core.libvirt.network
                if node.address not in network.range or node.address == network.gateway:
                    msg = (
                        f"node {node.name} has address {node.address}, which is not a free address "
                        f"of network {network.name} ({network.range}, gateway {network.gateway}). "
                        "Choose another inside the range"
                    )
                    raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _ports_are_told_apart(self) -> Self:
        ports = {
            "database.port": self.database.port,
            "workload.port": self.workload.port,
            "workload.health-port": self.workload.health_port,
            "door.http-port": self.door.http_port,
            "door.https-port": self.door.https_port,
            "door.statistics-port": self.door.statistics_port,
        }
        for (one, a), (other, b) in itertools.combinations(ports.items(), 2):
            if a == b:
                msg = (
                    f"{one} and {other} are both {a}: one machine may have every role, and two "
                    f"services can't share a port. Change one of them"
                )
                raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _ranges_do_not_overlap(self) -> Self:
        ranges: list[tuple[str, IPv4Network]] = []
        if self.layout is not Layout.EDGE:
            ranges.append(("mesh.range", self.mesh.range))
        if self.core is not None and self.core.libvirt is not None:
            ranges.append(("core.libvirt.network.range", self.core.libvirt.network.range))
        ranges += [(f"fleets.{name}.vpc-range", f.vpc_range) for name, f in self.fleets.items()]
        for (one, a), (other, b) in itertools.combinations(ranges, 2):
            if a.overlaps(b):
                msg = (
                    f"{one} {a} overlaps {other} {b}: a packet for a shared address could take "
                    "either way. Move one of them"
                )
                raise ValueError(msg)
        nodes = () if self.core is None else self.core.nodes
        addresses = [
            (node.name, key, address)
            for node in nodes
            for key, address in (("address", node.address), ("public-address", node.public_address))
            if address is not None
        ]
        for (node_name, key, address), (name, network) in itertools.product(addresses, ranges):
            if address in network and name != "core.libvirt.network.range":
                msg = (
                    f"node {node_name} has {key} {address} inside {name} {network}: the machine "
                    "would be looked for in the wrong network. Move one of them"
                )
                raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _blocks_are_free(self) -> Self:
        for name, fleet in self.fleets.items():
            # Layout edge learns the mesh's range, and which block lies in it, from the core stack.
            if self.layout is not Layout.EDGE and not fleet.block.subnet_of(self.mesh.range):
                msg = (
                    f"fleets.{name}.block {fleet.block} is not inside mesh.range "
                    f"{self.mesh.range}, so the hub would not route it. Choose a block inside, or "
                    "widen mesh.range"
                )
                raise ValueError(msg)
        for (one, a), (other, b) in itertools.combinations(self.fleets.items(), 2):
            if a.block.overlaps(b.block):
                msg = (
                    f"fleets.{one}.block {a.block} overlaps fleets.{other}.block {b.block}: an "
                    "address belongs to one peer only. Give each fleet a block of its own"
                )
                raise ValueError(msg)
        return self


def _yaml_path(location: tuple[int | str, ...]) -> str:
    """A setting's path as written in YAML: pydantic also names the chosen kind of a union."""
    kinds = {"libvirt", "existing", "script", "container", "cpu", "spill-pressure"}
    parts = [
        str(part)
        for before, part in itertools.pairwise(("", *location))
        if not (part in kinds and (isinstance(before, int) or before in {"workload", "scaling"}))
    ]
    return ".".join(parts)


def message_of(error: ValidationError) -> str:
    """Turn pydantic's report into one line per broken rule, with the setting's path in YAML."""
    lines = []
    for item in error.errors(include_url=False):
        path = _yaml_path(item["loc"])
        text = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            text = "unknown setting: a misspelt one would be ignored silently. Correct or remove it"
        elif item["type"] == "missing":
            text = "is missing and has no default. Add it"
        elif item["type"] != "value_error":
            text = f"{item['input']!r} is not accepted: {text[0].lower()}{text[1:]}. Correct it"
        lines.append(f"settings{'.' + path if path else ''}: {text}")
    return "\n".join(lines)


def validate(data: object) -> Settings:
    """Check a settings object as read from YAML.

    Raises:
        SettingsError: with one line for each broken rule.
    """
    try:
        return Settings.model_validate(data)
    except ValidationError as error:
        raise SettingsError(message_of(error)) from None


def load(config: pulumi.Config) -> Settings:
    """Read and check the stack's settings.

    Raises:
        SettingsError: when the object is absent or breaks a rule.
    """
    data: Any = config.get_object("settings")
    if data is None:
        msg = (
            f"{PROJECT}:settings is missing in the stack file: it describes the whole system. "
            "Start from a copy of Pulumi.prod.yaml or Pulumi.dev.yaml"
        )
        raise SettingsError(msg)
    return validate(data)


SECRET_REMEDIES = {
    "mesh-seed": "scripts/secrets new-seed | pulumi config set --secret mesh-seed",
    "ssh-private-key": "pulumi config set --secret ssh-private-key < ~/.ssh/fortress_ed25519",
    "database-password": (
        "scripts/secrets new-password | pulumi config set --secret database-password"
    ),
    "fleet-database-password": (
        "scripts/secrets new-password | pulumi config set --secret fleet-database-password"
    ),
    "door-certificate": "cat chain.pem key.pem | pulumi config set --secret door-certificate",
}


def core_of(settings: Settings) -> CoreSettings:
    """The core's part of the settings.

    Raises:
        SettingsError: when another stack holds it.
    """
    if settings.core is None:
        msg = (
            f"layout {settings.layout} has no core of its own, but this stack builds one. Use "
            "layout single or core"
        )
        raise SettingsError(msg)
    return settings.core


def load_secret(
    config: pulumi.Config, key: str, check: Callable[[str], object]
) -> pulumi.Output[str]:
    """Read one secret as a secret Output, after its form has been checked.

    Parameters:
        config: the project's configuration.
        key: the secret's name.
        check: raises ValueError, without repeating the value, when its form is wrong.

    Raises:
        SettingsError: when it is absent or of the wrong form, with the command that sets it.
    """
    plain = config.get(key)
    secret = config.get_secret(key)
    if plain is None or secret is None:
        msg = (
            f"the secret {PROJECT}:{key} is missing: this stack can't be built without it, and it "
            f"is kept encrypted in the stack file. Set it: {SECRET_REMEDIES[key]}"
        )
        raise SettingsError(msg)
    try:
        check(plain)
    except ValueError as error:
        msg = f"{PROJECT}:{key}: {error}. Set it: {SECRET_REMEDIES[key]}"
        raise SettingsError(msg) from None
    return secret
