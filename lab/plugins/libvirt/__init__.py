"""Owns the stand-in for the official `libvirt` 0.5.4 resource plugin: the five types that the
program uses, done with virsh, with that plugin's measured behaviour. It is not a second libvirt
plugin: what the program does not use is refused by name."""

import os
from pathlib import Path
from typing import Final, NoReturn

from lab.plugins.base import Plugin, Properties, Schema, serve
from lab.plugins.libvirt.domain import Domain
from lab.plugins.libvirt.network import Network
from lab.plugins.libvirt.storage import CloudInitDisk, Pool, Volume
from lab.plugins.libvirt.virsh import DEFAULT_URI, Virsh

VERSION: Final = "0.5.4"
"""The official release whose behaviour this is."""

SCHEMA_FILE: Final = Path(__file__).parent.parent / "schemas" / "libvirt.json"


def main() -> NoReturn:
    """Serve the engine until it ends the plugin."""
    virsh = Virsh()

    def configure(settings: Properties) -> None:
        virsh.uri = settings.get("uri") or os.environ.get("LIBVIRT_DEFAULT_URI") or DEFAULT_URI

    types = (Network, Pool, Volume, CloudInitDisk, Domain)
    serve(
        Plugin(
            name="libvirt",
            version=VERSION,
            schema=Schema.load(SCHEMA_FILE),
            resources=[resource(virsh) for resource in types],
            configure=configure,
        )
    )
