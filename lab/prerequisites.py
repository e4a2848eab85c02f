"""Owns what the machine must be and have before a lab starts; it needs nothing but Python itself.

python3 -m lab.prerequisites      check, install Debian packages, run scripts/setup
"""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from lab import packages, paths
from lab.errors import LabError
from lab.running import refuse_another_lab, this_lab_is_running
from lab.steps import say, step

MEMORY_GIB: Final = 6
"""Four guests, libvirt, the cloud, Pulumi and its plugins take under 5 GiB under emulation."""

DISK_GIB: Final = 10
"""An image with its building directory (4 GiB), the guests' disks, the toolchain, Go's cache."""

OLDEST_DEBIAN: Final = 12


def check() -> None:
    """Look at the machine before anything is changed.

    Raises:
        LabError: it cannot carry a lab, or carries another one; the message says what to do.
    """
    if os.geteuid() != 0:
        message = (
            "you are not root: the lab needs root for its own namespaces and virtual machines "
            "(it changes nothing of this machine's network). Run it as root or with sudo."
        )
        raise LabError(message)
    _check_system()
    refuse_another_lab()
    # What runs already has its share.
    if not this_lab_is_running():
        _check_memory()
        for directory in (paths.ROOT, paths.CACHE):
            _check_disk(directory)


def _check_system() -> None:
    release = platform.freedesktop_os_release()
    name, version = release.get("ID", "?"), release.get("VERSION_ID", "0")
    if name != "debian" or int(version.partition(".")[0]) < OLDEST_DEBIAN:
        message = (
            f"this is {name} {version}; the lab installs Debian packages and builds its guests "
            f"from this machine's Debian mirror, so it needs Debian {OLDEST_DEBIAN} or newer. "
            "Run it in such a machine, virtual or not."
        )
        raise LabError(message)
    if platform.machine() != "x86_64":
        message = f"this machine is {platform.machine()}; the lab's guests are x86_64 only."
        raise LabError(message)


def _check_memory() -> None:
    lines = Path("/proc/meminfo").read_text().splitlines()
    available_kib = next(int(line.split()[1]) for line in lines if line.startswith("MemAvail"))
    if available_kib < MEMORY_GIB * 1024**2:
        message = (
            f"{available_kib / 1024**2:.1f} GiB of memory are available; the lab needs "
            f"{MEMORY_GIB} GiB for its guests. End what uses it, or take a larger machine."
        )
        raise LabError(message)


def _check_disk(directory: Path) -> None:
    existing = directory
    while not existing.exists():
        existing = existing.parent
    free_gib = shutil.disk_usage(existing).free / 1024**3
    if free_gib < DISK_GIB:
        message = (
            f"{free_gib:.1f} GiB are free under {existing}; the lab needs {DISK_GIB} GiB for its "
            "image, disks and toolchain. Make room, or set XDG_CACHE_HOME to a larger disk."
        )
        raise LabError(message)


def _main() -> None:
    check()
    with step("Debian packages"):
        packages.install(say)
    with step("scripts/setup"):
        done = subprocess.run([paths.ROOT / "scripts" / "setup", "--dev"], check=False)
        if done.returncode != 0:
            message = "scripts/setup failed: see its messages above."
            raise LabError(message)


if __name__ == "__main__":
    try:
        _main()
    except LabError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted: the next scripts/lab up goes on from here.")
