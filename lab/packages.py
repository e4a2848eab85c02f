"""Owns the Debian packages of the machine that the lab and its tests run on; guests have their own.

    python3 -m lab.packages      install what is missing

It only adds. No service of a package that it brings is started, now or at the next boot: a server
that a person did not ask for has no business listening on the machine.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from lab.errors import LabError

LIST: Final = Path(__file__).with_name("packages.txt")
POLICY: Final = Path("/usr/sbin/policy-rc.d")
"""Debian's door for forbidding packages to start their services (invoke-rc.d(8))."""

APT: Final = ("apt-get", "-o", "DPkg::Lock::Timeout=300", "-o", "Acquire::Retries=3")


def wanted() -> list[str]:
    """Names of all packages that the lab and its tests use."""
    lines = (line.strip() for line in LIST.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def missing() -> list[str]:
    """The wanted packages that are not installed.

    Raises:
        LabError: the machine has no dpkg.
    """
    if shutil.which("dpkg-query") is None:
        message = (
            "this machine has no dpkg, but the lab knows its programs by Debian packages: "
            "use Debian 12 or newer"
        )
        raise LabError(message)
    query = subprocess.run(
        ["dpkg-query", "--show", "--showformat", "${Package} ${db:Status-Status}\n", *wanted()],
        capture_output=True,
        text=True,
        check=False,
    )
    present = {
        name for name, status in map(str.split, query.stdout.splitlines()) if status == "installed"
    }
    return [name for name in wanted() if name not in present]


def install(report: Callable[[str], None] = print) -> None:
    """Install what is missing.

    Parameters:
        report: receives one line for each step.

    Raises:
        LabError: no root, or apt-get failed.
    """
    names = missing()
    if not names:
        return
    if os.geteuid() != 0:
        message = (
            f"these Debian packages are missing and only root may install them: {' '.join(names)}; "
            f"run this as root, or: sudo apt-get install --no-install-recommends {' '.join(names)}"
        )
        raise LabError(message)
    report(f"installing {len(names)} Debian packages: {' '.join(names)}")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    with _no_service_starts():
        _apt(["update", "--quiet=2"], environment)
        _apt(["install", "--yes", "--quiet=2", "--no-install-recommends", *names], environment)
    _disable_services(names)


def _apt(arguments: Sequence[str], environment: dict[str, str]) -> None:
    done = subprocess.run(
        [*APT, *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        message = (
            f"apt-get {arguments[0]} failed: {(done.stderr or done.stdout).strip()[-1000:]}; "
            "check the machine's package sources and network, then try again"
        )
        raise LabError(message)


@contextmanager
def _no_service_starts() -> Iterator[None]:
    if POLICY.exists():
        yield
        return
    POLICY.write_text("#!/bin/sh\nexit 101\n", encoding="utf-8")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink()


def _disable_services(names: Sequence[str]) -> None:
    if not Path("/run/systemd/system").is_dir():
        return
    listing = subprocess.run(
        ["dpkg-query", "--listfiles", *names], capture_output=True, text=True, check=True
    )
    units = {
        Path(line).name
        for line in listing.stdout.splitlines()
        if "/systemd/system/" in line and line.endswith((".service", ".socket", ".timer"))
    }
    # Template units cannot be disabled as such, and their instances were never enabled.
    plain = sorted(unit for unit in units if "@." not in unit)
    subprocess.run(["systemctl", "disable", "--quiet", *plain], check=False, capture_output=True)


if __name__ == "__main__":
    try:
        install()
    except LabError as error:
        sys.exit(f"error: {error}")
