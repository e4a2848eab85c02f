"""Owns the life of pools, volumes and cloud-init disks."""

import tempfile
import uuid
from pathlib import Path
from typing import ClassVar
from xml.etree import ElementTree

from lab.plugins.base import Call, Created, InputError, Properties, ResourceError
from lab.plugins.libvirt import definitions
from lab.plugins.libvirt.resource import LibvirtResource
from lab.plugins.libvirt.virsh import Virsh, cloud_init_image, image_format, transformed


class Pool(LibvirtResource):
    """A directory of volumes."""

    token = "libvirt:index/pool:Pool"
    computed = frozenset({"allocation", "available", "capacity", "target"})
    replacing = frozenset({"target"})
    unsupported = frozenset({"allocation", "available", "capacity", "source"})

    def refuse(self, inputs: Properties) -> None:
        """See the base class."""
        if inputs["type"] != "dir":
            raise InputError(
                path="type", reason=f"{inputs['type']!r}: the lab's stand-in does 'dir' only"
            )
        if ("path" in inputs) == ("path" in inputs.get("target", {})):
            raise InputError(
                path="target.path", reason="give the directory here, and not in 'path' as well"
            )

    def create(self, call: Call) -> Created:
        """Define it, make its directory and start it."""
        name = call.inputs["name"]
        if name in self.virsh.names("pool-list", "--all", "--name"):
            message = f"storage pool '{name}' already exists: choose another name, or remove it"
            raise ResourceError(message)
        path = call.inputs.get("path") or call.inputs["target"]["path"]
        document = transformed(definitions.pool(name, path), self.stylesheet(call.inputs))
        self.virsh("pool-define", "/dev/stdin", stdin=document)
        try:
            self.virsh("pool-build", name)
            self.virsh("pool-autostart", name)
            self.virsh("pool-start", name)
        except ResourceError:
            self.virsh("pool-undefine", name)
            raise
        pool_id = self.virsh("pool-uuid", name)
        return Created(pool_id, self.found(pool_id, call.inputs))

    def find(self, resource_id: str, state: Properties) -> Properties | None:
        """See the base class."""
        if not self.virsh.has("pool-list", resource_id):
            return None
        document = self.virsh.document("pool-dumpxml", resource_id)
        path = document.findtext("target/path")
        found: Properties = state | {
            "name": document.findtext("name"),
            "type": document.get("type"),
            "target": {} if "path" in state else {"path": path},
        }
        if "path" in state:
            found["path"] = path
        for size in ("capacity", "allocation", "available"):
            found[size] = int(document.findtext(size) or 0)
        return found

    def delete(self, call: Call) -> None:
        """Stop it, remove its directory, which must be empty, and undefine it."""
        if not self.virsh.has("pool-list", call.resource_id):
            return
        name = self.virsh("pool-name", call.resource_id)
        with self.virsh.locks[name]:
            if call.resource_id in self.virsh.names("pool-list", "--uuid"):
                self.virsh("pool-destroy", name)
            try:
                self.virsh("pool-delete", name)
            except ResourceError:
                directory = self.virsh.document("pool-dumpxml", name).findtext("target/path", "")
                if Path(directory).exists():
                    self.virsh("pool-start", name)
                    raise
            self.virsh("pool-undefine", name)


class Volume(LibvirtResource):
    """A disk image in a pool: copied from a file, an overlay of another volume, or blank."""

    token = "libvirt:index/volume:Volume"
    defaults: ClassVar = {"pool": "default"}
    computed = frozenset({"format", "size"})

    def refuse(self, inputs: Properties) -> None:
        """See the base class."""
        for other in ("size", "baseVolumeId", "baseVolumeName"):
            if "source" in inputs and other in inputs:
                reason = f"'{other}' can't be specified beside 'source'"
                raise InputError(path=other, reason=reason)
        if "baseVolumeId" in inputs and "baseVolumeName" in inputs:
            reason = "'baseVolumeName' can't be specified beside 'baseVolumeId'"
            raise InputError(path="baseVolumeName", reason=reason)
        if isinstance(inputs.get("source"), str) and "://" in inputs["source"]:
            raise InputError(
                path="source", reason="the lab's stand-in takes local files only: copy it first"
            )

    def create(self, call: Call) -> Created:
        """Make it, and fill it when it has a source."""
        inputs = call.inputs
        pool, name = inputs["pool"], inputs["name"]
        capacity_bytes, form, backing = self._shape(inputs)
        document = transformed(
            definitions.volume(
                name, image_format=form, capacity_bytes=capacity_bytes, backing=backing
            ),
            self.stylesheet(inputs),
        )
        with self.virsh.locks[pool]:
            self.virsh("pool-refresh", pool)
            try:
                self.virsh("vol-create", pool, "/dev/stdin", stdin=document)
            except ResourceError as failure:
                # As the official plugin does, so that a volume once let go can be taken up again.
                if "exists already" not in str(failure):
                    raise
                call.log(f"volume {name} was there already and is left as it is")
            if "source" in inputs:
                self._upload(pool, name, inputs["source"])
            path = self.virsh("vol-path", "--pool", pool, name)
        return Created(path, self.found(path, inputs))

    def _shape(self, inputs: Properties) -> tuple[int, str, tuple[str, str] | None]:
        """Capacity in bytes, format, and the backing volume's path and format."""
        if "source" in inputs:
            source = Path(inputs["source"])
            form = image_format(source)
            if form == "qcow2" != inputs.get("format", form):
                message = (
                    f"format {inputs['format']!r}: {source} is a qcow2 image, and the only format "
                    "it can be given is qcow2"
                )
                raise ResourceError(message)
            return source.stat().st_size, form, None
        form = inputs.get("format", "qcow2")
        base = self._base(inputs)
        if base is None:
            return inputs.get("size", 1), form, None
        base_bytes = int(base.findtext("capacity") or 0)
        size_bytes = inputs.get("size", base_bytes)
        if size_bytes < base_bytes:
            message = (
                f"size {size_bytes}: an overlay cannot be smaller than its base volume "
                f"({base_bytes} bytes); give at least that, or leave it out"
            )
            raise ResourceError(message)
        return size_bytes, form, (base.findtext("target/path", ""), volume_format(base))

    def _base(self, inputs: Properties) -> ElementTree.Element | None:
        if "baseVolumeId" in inputs:
            return self.virsh.document("vol-dumpxml", inputs["baseVolumeId"])
        if "baseVolumeName" in inputs:
            pool = inputs.get("baseVolumePool") or inputs["pool"]
            return self.virsh.document("vol-dumpxml", "--pool", pool, inputs["baseVolumeName"])
        return None

    def _upload(self, pool: str, name: str, source: str) -> None:
        try:
            self.virsh("vol-upload", "--pool", pool, name, source)
        except ResourceError:
            self.virsh("vol-delete", "--pool", pool, name)
            raise
        # Only now does libvirt see the capacity that the image itself names.
        self.virsh("pool-refresh", pool)

    def find(self, resource_id: str, state: Properties) -> Properties | None:
        """See the base class."""
        document = self.virsh.volume(resource_id, state["pool"])
        if document is None:
            return None
        return state | {
            "name": document.findtext("name"),
            "size": int(document.findtext("capacity") or 0),
            "format": volume_format(document),
        }

    def delete(self, call: Call) -> None:
        """Remove it and all data in it."""
        _delete_volume(self.virsh, call.resource_id, call.state["pool"])


class CloudInitDisk(LibvirtResource):
    """An ISO image for cloud-init's NoCloud source."""

    token = "libvirt:index/cloudInitDisk:CloudInitDisk"
    defaults: ClassVar = {"pool": "default"}

    def create(self, call: Call) -> Created:
        """Build the image and put it into the pool."""
        inputs = call.inputs
        pool, name = inputs["pool"], inputs["name"]
        with tempfile.TemporaryDirectory() as directory:
            image = cloud_init_image(
                Path(directory),
                {
                    "user-data": inputs.get("userData", ""),
                    "meta-data": inputs.get("metaData", ""),
                    "network-config": inputs.get("networkConfig", ""),
                },
            )
            document = definitions.volume(
                name, image_format="raw", capacity_bytes=image.stat().st_size
            )
            with self.virsh.locks[pool]:
                self.virsh("pool-refresh", pool)
                self.virsh("vol-create", pool, "/dev/stdin", stdin=document)
                try:
                    self.virsh("vol-upload", "--pool", pool, name, str(image))
                except ResourceError:
                    self.virsh("vol-delete", "--pool", pool, name)
                    raise
                path = self.virsh("vol-path", "--pool", pool, name)
        return Created(f"{path};{uuid.uuid4()}", inputs)

    def find(self, resource_id: str, state: Properties) -> Properties | None:
        """See the base class; its content is not read back."""
        if self.virsh.volume(image_path(resource_id), state["pool"]) is None:
            return None
        return state

    def delete(self, call: Call) -> None:
        """Remove it."""
        _delete_volume(self.virsh, image_path(call.resource_id), call.state["pool"])


def volume_format(volume: ElementTree.Element) -> str:
    """Image format in a volume's XML."""
    element = volume.find("target/format")
    return "raw" if element is None else element.get("type", "raw")


def image_path(cloud_init_id: str) -> str:
    """File of a CloudInitDisk. Raises ResourceError if the text is no such id."""
    path, separator, _ = cloud_init_id.partition(";")
    if not separator:
        message = (
            f"cloudinit {cloud_init_id!r} is not a valid key: give the id of a CloudInitDisk, "
            "which has the form 'path;uuid'"
        )
        raise ResourceError(message)
    return path


def _delete_volume(virsh: Virsh, path: str, pool: str) -> None:
    if virsh.volume(path, pool) is not None:
        with virsh.locks[pool]:
            virsh("vol-delete", "--pool", pool, Path(path).name)
