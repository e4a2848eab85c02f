"""SovereignCore: the machines in Oslo, made or found, brought to a common baseline."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pulumi
import pulumi_libvirt as libvirt

from components.host import (
    FIRST_CONTACT_LIMIT,
    UNLIMITED,
    Host,
    command,
    connect,
    run_script,
    script_files,
    shell_script,
)
from components.kvm_machine import KvmMachine, KvmMachineArgs
from plan.derivation import decode_seed
from plan.keys import authorized_key, bootstrap_host_key, host_key
from plan.mesh import MeshPlan
from plan.names import mac_address
from render.baseline import baseline_content
from render.cloud_init import network_config, user_data
from settings import CoreSettings, ExistingNode, LibvirtNode, Role, Settings

BOOTSTRAP_HOST_KEY = "/etc/ssh/ssh_host_ecdsa_key"


@dataclass(frozen=True, kw_only=True)
class SovereignCoreArgs:
    """What the core is made of.

    Attributes:
        settings: the stack's settings; `core` must be given.
        core: its core part.
        mesh: addresses and roles of all nodes.
        stack: name that keeps machines of several stacks apart.
        seed: mesh seed, base64.
        ssh_private_key: OpenSSH private key without passphrase.
    """

    settings: Settings
    core: CoreSettings
    mesh: MeshPlan
    stack: str
    seed: pulumi.Output[str]
    ssh_private_key: pulumi.Output[str]


class SovereignCore(pulumi.ComponentResource):
    """Machines in Oslo on KVM hosts or existing servers, ready for their roles.

    Creates network, pool, base volume and machines where the placement is libvirt, installs the
    host scripts and applies the baseline everywhere. Services come later: they bind to addresses
    of the mesh.

    Attributes:
        hosts: by node name, each usable only after its baseline.
    """

    hosts: Mapping[str, Host]

    def __init__(
        self, name: str, args: SovereignCoreArgs, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("fortress:index:SovereignCore", name, None, opts)
        network = self._network(name, args)
        machines = self._machines(name, args, network)
        self.hosts = {
            node.name: self._ready(
                name,
                args,
                node,
                self._new_machine(name, args, node, machines[node.name])
                if isinstance(node, LibvirtNode)
                else self._found_machine(args, node, network),
            )
            for node in args.core.nodes
        }
        self.register_outputs({"hosts": sorted(self.hosts)})

    def _network(self, name: str, args: SovereignCoreArgs) -> libvirt.Network | None:
        shared = args.core.libvirt
        if shared is None or not any(isinstance(node, LibvirtNode) for node in args.core.nodes):
            return None
        return libvirt.Network(
            f"{name}-network",
            name=shared.network.name,
            mode=shared.network.mode,
            bridge=shared.network.bridge,
            # On an existing bridge the addresses are the LAN's own business.
            addresses=None if shared.network.mode == "bridge" else [str(shared.network.range)],
            dhcp=None if shared.network.mode == "bridge" else {"enabled": False},
            autostart=True,
            opts=pulumi.ResourceOptions(parent=self),
        )

    def _machines(
        self, name: str, args: SovereignCoreArgs, network: libvirt.Network | None
    ) -> dict[str, KvmMachine]:
        shared = args.core.libvirt
        if shared is None or network is None:
            return {}
        nodes = [node for node in args.core.nodes if isinstance(node, LibvirtNode)]
        child = pulumi.ResourceOptions(parent=self)
        pool = libvirt.Pool(
            f"{name}-pool",
            name=shared.pool.name,
            type="dir",
            target={"path": shared.pool.path},
            opts=child,
        )
        base = libvirt.Volume(
            f"{name}-base",
            name=f"base-{shared.image.sha256[:12]}.qcow2",
            pool=pool.name,
            source=shared.image.source,
            format="qcow2",
            opts=child,
        )
        login = args.ssh_private_key.apply(authorized_key)
        result = {}
        for node in nodes:
            mac = mac_address(args.stack, node.name)
            result[node.name] = KvmMachine(
                f"{name}-{node.name}",
                KvmMachineArgs(
                    node=node,
                    libvirt=shared,
                    pool_name=pool.name,
                    network_id=network.id,
                    base_volume_id=base.id,
                    mac_address=mac,
                    user_data=pulumi.Output.all(login, args.seed).apply(_birth(node)),
                    network_config=network_config(node, shared.network, mac),
                    protect=args.settings.protect and Role.DATABASE in node.roles,
                ),
                pulumi.ResourceOptions(parent=self),
            )
        return result

    def _new_machine(
        self, name: str, args: SovereignCoreArgs, node: LibvirtNode, machine: KvmMachine
    ) -> Host:
        """Meet a new machine by its bootstrap key and give it the host key it keeps."""
        seed = args.seed.apply(decode_seed)
        newborn = Host(
            name=node.name,
            user=node.user,
            connection=connect(
                address=str(node.address),
                user=node.user,
                private_key=args.ssh_private_key,
                host_key=seed.apply(lambda s: bootstrap_host_key(s, node.name).public_line),
                dial_error_limit=UNLIMITED,
            ),
            identity=machine.identity,
        )
        identity = command(
            f"{name}-{node.name}-identity",
            create=shell_script("identity.sh", node.user),
            stdin=seed.apply(lambda s: host_key(s, node.name).private_file),
            host=newborn,
            parent=self,
            limit=FIRST_CONTACT_LIMIT,
        )
        return Host(
            name=node.name,
            user=node.user,
            connection=connect(
                address=str(node.address),
                user=node.user,
                private_key=args.ssh_private_key,
                host_key=seed.apply(lambda s: host_key(s, node.name).public_line),
            ),
            identity=machine.identity,
            after=(identity,),
        )

    @staticmethod
    def _found_machine(
        args: SovereignCoreArgs, node: ExistingNode, network: libvirt.Network | None
    ) -> Host:
        shared = args.core.libvirt
        within = shared is not None and node.address in shared.network.range
        return Host(
            name=node.name,
            user=node.user,
            connection=connect(
                address=str(node.address),
                user=node.user,
                private_key=args.ssh_private_key,
                host_key=node.host_key,
                port=node.ssh_port,
            ),
            # A server that was installed anew has another host key.
            identity=node.host_key,
            # A server that is plugged into a network of ours answers only once that exists.
            after=(network,) if network is not None and within else (),
        )

    def _ready(
        self, name: str, args: SovereignCoreArgs, node: LibvirtNode | ExistingNode, host: Host
    ) -> Host:
        scripts = command(
            f"{name}-{node.name}-scripts",
            create=shell_script("install_scripts.sh", node.user),
            stdin=json.dumps(script_files(), sort_keys=True),
            host=host,
            parent=self,
        )
        content = baseline_content(node=node, settings=args.settings, mesh=args.mesh)
        if isinstance(node, LibvirtNode):
            content = {**content, "retire_host_keys": [BOOTSTRAP_HOST_KEY]}
        baseline = run_script(
            f"{name}-{node.name}-baseline",
            script="baseline",
            content=content,
            host=host,
            parent=self,
            after=(scripts,),
        )
        return Host(
            name=host.name,
            user=host.user,
            connection=host.connection,
            identity=host.identity,
            after=(baseline,),
        )


def _birth(node: LibvirtNode) -> Callable[[Sequence[str]], str]:
    return lambda values: user_data(
        node,
        authorized_key=values[0],
        bootstrap_key=bootstrap_host_key(decode_seed(values[1]), node.name),
    )
