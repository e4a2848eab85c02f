"""One KVM machine in Oslo: root volume, protected data volume, birth data, domain."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pulumi
import pulumi_libvirt as libvirt

from settings import LibvirtNode, LibvirtSettings

GIB = 1024**3
TEMPLATES = Path(__file__).resolve().parent.parent / "render" / "templates"


@dataclass(frozen=True, kw_only=True)
class KvmMachineArgs:
    """What a machine is made of.

    Attributes:
        node: size and address.
        libvirt: the host's pool, network and image.
        pool_name: pool of all volumes.
        network_id: libvirt network.
        base_volume_id: base image.
        mac_address: of its only card, upper case.
        user_data: cloud-config; holds the bootstrap host key, so it is secret.
        network_config: cloud-init network configuration, version 2.
        protect: refuse to delete machine and data volume.
    """

    node: LibvirtNode
    libvirt: LibvirtSettings
    pool_name: pulumi.Input[str]
    network_id: pulumi.Input[str]
    base_volume_id: pulumi.Input[str]
    mac_address: str
    user_data: pulumi.Input[str]
    network_config: str
    protect: bool


def command_lines(arguments: dict[str, str]) -> list[dict[str, str]]:
    """Kernel arguments as libvirt takes them: a bare flag stands in a map of its own under `_`.

    An empty value, or `_` beside other keys, would replace the domain at every run.
    """
    valued = {key: value for key, value in arguments.items() if value}
    lines = [valued] if valued else []
    return lines + [{"_": key} for key, value in arguments.items() if not value]


class KvmMachine(pulumi.ComponentResource):
    """A machine whose data volume outlives it.

    Birth data (user-data, network-config) is fixed at birth: a later change of them would replace
    the machine, and everything that may change is done by scripts instead.

    Attributes:
        identity: the domain's UUID.
        domain: what others wait for.
    """

    identity: pulumi.Output[str]
    domain: libvirt.Domain

    def __init__(
        self, name: str, args: KvmMachineArgs, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("fortress:index:KvmMachine", name, None, opts)
        node = args.node
        child = pulumi.ResourceOptions(parent=self)
        root = libvirt.Volume(
            f"{name}-root",
            name=f"{node.name}-root.qcow2",
            pool=args.pool_name,
            base_volume_id=args.base_volume_id,
            size=node.root_gib * GIB,
            format="qcow2",
            opts=child,
        )
        volumes = [root]
        if node.data_gib is not None:
            volumes.append(
                libvirt.Volume(
                    f"{name}-data",
                    name=f"{node.name}-data.qcow2",
                    pool=args.pool_name,
                    size=node.data_gib * GIB,
                    format="qcow2",
                    # libvirt changes no volume in place: every change would be a new, empty one.
                    opts=pulumi.ResourceOptions(
                        parent=self,
                        protect=args.protect,
                        ignore_changes=["name", "pool", "size", "format", "source"],
                    ),
                )
            )
        birth = libvirt.CloudInitDisk(
            f"{name}-birth",
            name=f"{node.name}-birth.iso",
            pool=args.pool_name,
            user_data=args.user_data,
            meta_data=f"instance-id: {node.name}\nlocal-hostname: {node.name}\n",
            network_config=args.network_config,
            opts=pulumi.ResourceOptions(
                parent=self, ignore_changes=["userData", "metaData", "networkConfig"]
            ),
        )
        image = args.libvirt.image
        self.domain = libvirt.Domain(
            f"{name}-domain",
            name=node.name,
            type=args.libvirt.domain_type,
            vcpu=node.vcpu,
            memory=node.memory_mib,
            cpu={"mode": "host-passthrough"} if args.libvirt.domain_type == "kvm" else None,
            kernel=image.kernel,
            initrd=image.initrd,
            cmdlines=command_lines(image.kernel_arguments) or None,
            disks=[{"volume_id": volume.id} for volume in volumes],
            cloudinit=birth.id,
            # No `addresses`: with a static address the plugin would replace the domain each time.
            network_interfaces=[
                {"network_id": args.network_id, "mac": args.mac_address, "wait_for_lease": False}
            ],
            consoles=[{"type": "pty", "target_type": "serial", "target_port": "0"}],
            autostart=True,
            running=True,
            xml={"xslt": self._style_sheet(args.libvirt.domain_type)},
            opts=pulumi.ResourceOptions(parent=self, protect=args.protect),
        )
        self.identity = self.domain.id
        self.register_outputs({"identity": self.identity})

    @staticmethod
    def _style_sheet(domain_type: str) -> str:
        sheets: Sequence[str] = ("domain.xslt", "domain-emulated.xslt")
        return (TEMPLATES / sheets[domain_type == "qemu"]).read_text()
