"""Owns the life of virtual networks."""

from typing import ClassVar

from lab.plugins.base import Call, Created, Properties, ResourceError
from lab.plugins.libvirt import definitions
from lab.plugins.libvirt.resource import LibvirtResource
from lab.plugins.libvirt.virsh import transformed


class Network(LibvirtResource):
    """A virtual network of libvirt's."""

    token = "libvirt:index/network:Network"
    defaults: ClassVar = {"mode": "nat"}
    computed = frozenset({"autostart", "bridge", "dhcp", "dns"})
    unsupported = frozenset({"dns.forwarders", "dns.hosts", "dns.srvs", "dnsmasqOptions", "routes"})

    def refuse(self, inputs: Properties) -> None:
        """See the base class."""
        definitions.network(inputs)

    def create(self, call: Call) -> Created:
        """Define and start it."""
        name = call.inputs["name"]
        document = transformed(definitions.network(call.inputs), self.stylesheet(call.inputs))
        with self.virsh.locks["networks"]:
            self.virsh("net-define", "/dev/stdin", stdin=document)
            try:
                self.virsh("net-start", name)
            except ResourceError:
                self.virsh("net-undefine", name)
                raise
        if call.inputs.get("autostart"):
            self.virsh("net-autostart", name)
        network_id = self.virsh("net-uuid", name)
        return Created(network_id, self.found(network_id, call.inputs))

    def find(self, resource_id: str, state: Properties) -> Properties | None:
        """See the base class."""
        if not self.virsh.has("net-list", resource_id):
            return None
        document = self.virsh.document("net-dumpxml", resource_id)
        bridge = document.find("bridge")
        return state | {
            "name": document.findtext("name"),
            "bridge": "" if bridge is None else bridge.get("name", ""),
            "autostart": self.virsh.facts("net-info", resource_id)["Autostart"] == "yes",
            "dhcp": {"enabled": document.find("ip/dhcp") is not None} | state.get("dhcp", {}),
            "dns": state.get("dns", {}),
        }

    def update(self, call: Call) -> Properties:
        """Apply `autostart`; like the official plugin, record the rest and change nothing."""
        autostart = call.inputs.get("autostart", False)
        self.virsh("net-autostart", call.resource_id, *([] if autostart else ["--disable"]))
        return self.found(call.resource_id, call.state | call.inputs)

    def delete(self, call: Call) -> None:
        """Stop and undefine it."""
        if not self.virsh.has("net-list", call.resource_id):
            return
        if call.resource_id in self.virsh.names("net-list", "--uuid"):
            self.virsh("net-destroy", call.resource_id)
        self.virsh("net-undefine", call.resource_id)
