"""Owns the calls of virsh and the other programs that touch libvirt, and the parsing of what they
print. It knows no resource type of the plugin."""

import tempfile
import threading
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

from lab.commands import run
from lab.errors import LabError
from lab.plugins.base import ResourceError

DEFAULT_URI: Final = "qemu:///system"
QCOW2_MAGIC: Final = b"QFI\xfb"


class Virsh:
    """A connection's worth of virsh: the URI and the locks that libvirt itself does not hold."""

    def __init__(self, uri: str = DEFAULT_URI) -> None:
        self.uri = uri
        # A pool cannot be refreshed while a volume of it is being filled; a network is defined and
        # started in two steps.
        self.locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def __call__(self, *words: str, stdin: str | None = None) -> str:
        """Run one virsh command and give what it prints.

        Raises:
            ResourceError: it failed.
        """
        return run_program(["virsh", "-q", "-c", self.uri, *words], stdin=stdin)

    def names(self, listing: str, *options: str) -> list[str]:
        """The names or UUIDs that a listing command gives, one per line."""
        return [line.strip() for line in self(listing, *options).splitlines()]

    def has(self, listing: str, uuid: str) -> bool:
        """Whether a domain (`list`), network (`net-list`) or pool (`pool-list`) exists."""
        return uuid in self.names(listing, "--all", "--uuid")

    def document(self, *words: str) -> ElementTree.Element:
        """The XML that a dump command prints."""
        return ElementTree.fromstring(self(*words))  # noqa: S314 - libvirt's own

    def facts(self, *words: str) -> dict[str, str]:
        """The `Key: value` lines that an info command prints."""
        pairs = (line.partition(":") for line in self(*words).splitlines())
        return {key.strip(): value.strip() for key, _, value in pairs}

    def volume(self, path: str, pool: str) -> ElementTree.Element | None:
        """A volume's XML, None when it is gone; its pool is started if it was stopped.

        Raises:
            ResourceError: libvirt cannot tell.
        """
        if pool not in self.names("pool-list", "--all", "--name"):
            return None
        if pool not in self.names("pool-list", "--name"):
            self("pool-start", pool)
        with self.locks[pool]:
            self("pool-refresh", pool)
            name = Path(path).name
            listed = (line.split() for line in self("vol-list", pool).splitlines())
            if [name, path] not in listed:
                return None
            return self.document("vol-dumpxml", "--pool", pool, name)


def run_program(words: Sequence[str | Path], *, stdin: str | None = None) -> str:
    """Run a program and give its output without the last newlines.

    Raises:
        ResourceError: it failed or is not installed.
    """
    try:
        return run(words, stdin=stdin).rstrip("\n")
    except LabError as error:
        raise ResourceError(str(error)) from error


def transformed(document: str, stylesheet: str | None) -> str:
    """A definition after an XSL transformation, unchanged without one.

    Raises:
        ResourceError: the stylesheet is no legal one.
    """
    if not stylesheet:
        return document
    with tempfile.NamedTemporaryFile("w", suffix=".xsl") as file:
        file.write(stylesheet)
        file.flush()
        return run_program(["xsltproc", "--nomkdir", "--nonet", file.name, "-"], stdin=document)


def cloud_init_image(directory: Path, files: dict[str, str]) -> Path:
    """Make a NoCloud ISO of the files in `directory`.

    Raises:
        ResourceError: genisoimage failed.
    """
    for name, text in files.items():
        (directory / name).write_text(text, encoding="utf-8")
    image = directory / "image.iso"
    sources = [directory / name for name in files]
    # Quiet, because it reports its progress where errors belong.
    run_program(
        [
            "genisoimage",
            "-quiet",
            "-output",
            image,
            "-volid",
            "cidata",
            "-joliet",
            "-rock",
            *sources,
        ]
    )
    return image


def image_format(path: Path) -> str:
    """`qcow2` or `raw`, by the first bytes.

    Raises:
        ResourceError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return "qcow2" if file.read(len(QCOW2_MAGIC)) == QCOW2_MAGIC else "raw"
    except OSError as error:
        message = f"source {str(path)!r} cannot be read ({error.strerror}): name a local image file"
        raise ResourceError(message) from error
