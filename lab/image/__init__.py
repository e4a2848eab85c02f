"""Owns the guests' image: builds it from the host's own Debian mirror and caches it by its recipe.

It stands for a stock cloud image: packages and boot settings only, nothing of the product.
"""

import fcntl
import hashlib
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lab import paths
from lab.commands import run
from lab.errors import LabError

RELEASE: Final = "trixie"
DISK_SIZE_GIB: Final = 4
"""Sparse; the packages fill a little over 1 GiB of it."""

_HERE: Final = Path(__file__).parent
_RECIPE_FILES: Final = ("packages.txt", "prepare.sh", "customize.sh", "initrd.sh")

_BOOTSTRAP_OPTIONS: Final = (
    *("--mode=root", "--variant=minbase", "--format=directory", "--dpkgopt=force-unsafe-io"),
    *("--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/locale/*"),
    "--dpkgopt=path-exclude=/usr/share/doc/*",
)

# A small journal: members are cut off without warning, and the default one is 64 MiB.
_FILE_SYSTEM_OPTIONS: Final = (
    *("-q", "-t", "ext4", "-L", "root", "-J", "size=16", "-E", "lazy_itable_init=0"),
)

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Image:
    """One built image: a whole-disk ext4 file system, booted by handing over kernel and initrd."""

    disk: Path
    kernel: Path
    initrd: Path
    recipe_hash: str
    """SHA-256 over the recipe, in hexadecimal; its first eight digits name the AMI."""
    disk_hash: str
    """SHA-256 of the disk file, in hexadecimal."""


def recipe_hash() -> str:
    """SHA-256 over all of ours that decides the content; the mirror's state is not part of it."""
    digest = hashlib.sha256(
        repr((RELEASE, DISK_SIZE_GIB, _BOOTSTRAP_OPTIONS, _FILE_SYSTEM_OPTIONS)).encode()
    )
    for name in _RECIPE_FILES:
        digest.update(name.encode() + b"\0" + (_HERE / name).read_bytes() + b"\0")
    return digest.hexdigest()


def ensure(progress: Progress) -> Image:
    """Give the image of the present recipe, building it when the cache has none (a minute).

    Raises:
        LabError: the host's apt names no Debian mirror, or a step of the build failed.
    """
    key = recipe_hash()
    directory = paths.IMAGES / key
    if not directory.is_dir():
        paths.IMAGES.mkdir(parents=True, exist_ok=True)
        with (paths.IMAGES / ".lock").open("w") as lock:
            # Held by another clone's build, of which this one may then profit.
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not directory.is_dir():
                _build(directory, progress)
    return Image(
        disk=directory / "disk.qcow2",
        kernel=directory / "vmlinuz",
        initrd=directory / "initrd.img",
        recipe_hash=key,
        disk_hash=(directory / "disk.sha256").read_text().strip(),
    )


def _build(directory: Path, progress: Progress) -> None:
    for leftover in paths.IMAGES.glob(".building-*"):
        shutil.rmtree(leftover)
    work = Path(tempfile.mkdtemp(prefix=".building-", dir=paths.IMAGES))
    work.chmod(0o755)
    root, result = work / "root", work / "result"
    result.mkdir()
    try:
        progress(f"image: installing Debian {RELEASE} and {len(_packages())} packages")
        _bootstrap(root, work / "mmdebstrap.log")
        progress("image: writing the file system")
        shutil.copy(_only(root / "boot", "vmlinuz-*"), result / "vmlinuz")
        with (result / "initrd.img").open("wb") as file:
            subprocess.run(["sh", _HERE / "initrd.sh", root], stdout=file, check=True)
        raw = work / "disk.raw"
        run(["truncate", f"--size={DISK_SIZE_GIB}G", raw])
        run(["mke2fs", *_FILE_SYSTEM_OPTIONS, "-d", root, raw])
        progress("image: converting the disk")
        disk = result / "disk.qcow2"
        run(["qemu-img", "convert", "-O", "qcow2", raw, disk])
        with disk.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        (result / "disk.sha256").write_text(digest + "\n")
        result.rename(directory)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _bootstrap(root: Path, log: Path) -> None:
    sources = debian_sources()
    command = [
        # mmdebstrap mounts /proc and /sys under the new root; in a mount namespace of its own
        # nothing stays behind.
        *("unshare", "--mount", "--propagation", "private"),
        *("mmdebstrap", *_BOOTSTRAP_OPTIONS, "--include=" + ",".join(_packages())),
        f'--setup-hook=sh {shlex.quote(str(_HERE / "prepare.sh"))} "$1"',
        f'--customize-hook=sh {shlex.quote(str(_HERE / "customize.sh"))} "$1"',
        *(RELEASE, str(root), *sources),
    ]
    with log.open("wb") as output:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, check=False
        )
    if done.returncode != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        message = (
            f"mmdebstrap ended with status {done.returncode}; the guests' image needs a reachable "
            f"Debian mirror that carries {RELEASE}. Its last lines:\n{tail}"
        )
        raise LabError(message)


def debian_sources() -> list[str]:
    """The host's own mirrors as sources for the guests' release.

    Raises:
        LabError: apt knows no index of Debian's.
    """
    listed = run(
        [
            *("apt-get", "indextargets", "--format", "$(LABEL) $(REPO_URI)"),
            *("Created-By: Packages", "Origin: Debian"),
        ]
    )
    mirrors: dict[str, str] = {}
    for line in listed.splitlines():
        label, _, address = line.partition(" ")
        mirrors.setdefault(label, address)
    if "Debian" not in mirrors:
        message = (
            "apt on this host names no Debian mirror (no index with origin Debian); the guests' "
            "image is built from it. Configure one in /etc/apt and run apt-get update."
        )
        raise LabError(message)
    suites = [("Debian", RELEASE), ("Debian", f"{RELEASE}-updates")]
    suites += [("Debian-Security", f"{RELEASE}-security")]
    return [f"deb {mirrors[label]} {suite} main" for label, suite in suites if label in mirrors]


def _packages() -> list[str]:
    lines = (_HERE / "packages.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def _only(directory: Path, pattern: str) -> Path:
    found = list(directory.glob(pattern))
    if len(found) != 1:
        message = (
            f"{directory} holds {len(found)} files {pattern}, but one is expected: "
            "the kernel package was not installed as it should be."
        )
        raise LabError(message)
    return found[0]
