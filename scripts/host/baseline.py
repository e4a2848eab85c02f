"""Prepares a core machine for any role: checks it, then packages, kernel, firewall, SSH, updates.

Content: {node, memory_mib, ssh_ranges, before_packages: [File], packages, modules: File,
sysctl: File, scheduler: File, firewall: {rules: File, loader: File, units: [File]}, sshd: File,
updates: File, retire_host_keys?: [path]}. All refusals come before the first change. It owns no
service.
"""

import os
import re
import shutil
from collections.abc import Iterable
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

from files import (
    File,
    HostError,
    await_condition,
    enable_unit,
    install_packages,
    main,
    package_is_installed,
    put_back_on_failure,
    report,
    run,
    succeeds,
    unit_is_active,
    write_file,
    write_files,
)

SUPPORTED = {("debian", "12"), ("debian", "13"), ("ubuntu", "22.04"), ("ubuntu", "24.04")}
# The kernel keeps some memory for itself, on small machines a larger part of it.
MEMORY_SLACK_PARTS = 10
MEMORY_SLACK_MIB = 96
# PostgreSQL, HAProxy and their libraries unpack to about 400 MiB.
FREE_MIB = 1024
FIREWALL_UNIT = "fortress-firewall.service"
LASTING_HOST_KEY = "/etc/ssh/ssh_host_ed25519_key"


def check_system(os_release: str) -> None:
    """Refuse a system this was not written for.

    Raises:
        HostError: naming what was found.
    """
    values = dict(re.findall(r'^([A-Z_]+)="?(.*?)"?$', os_release, flags=re.MULTILINE))
    found = values.get("ID", "unknown"), values.get("VERSION_ID", "without a version")
    if found not in SUPPORTED:
        msg = (
            f"this machine runs {' '.join(found)}: only Debian 12 and 13, Ubuntu 22.04 and 24.04 "
            "are supported, because package names and defaults differ elsewhere. Reinstall it"
        )
        raise HostError(msg)


def check_memory(meminfo: str, declared_mib: int) -> None:
    """Refuse a machine with clearly less memory than declared: the database's sizes follow from it.

    Parameters:
        meminfo: text of /proc/meminfo.
        declared_mib: memory-mib of the settings.

    Raises:
        HostError: naming both numbers.
    """
    found = re.search(r"^MemTotal:\s+(\d+) kB", meminfo, flags=re.MULTILINE)
    total_mib = int(found[1]) // 1024 if found else 0
    if total_mib < declared_mib - max(MEMORY_SLACK_MIB, declared_mib // MEMORY_SLACK_PARTS):
        msg = (
            f"this machine has {total_mib} MiB of memory, but its memory-mib is {declared_mib}: "
            "the database's memory settings would not fit. Give it more, or lower memory-mib"
        )
        raise HostError(msg)


def check_source(source: str | None, allowed_ranges: Iterable[str]) -> None:
    """Refuse a firewall that would shut out whoever is applying it.

    Parameters:
        source: address this session comes from, or None when it is not an SSH session.
        allowed_ranges: IPv4 ranges that may open SSH.

    Raises:
        HostError: when the address is in none of them.
    """
    if source is None:
        return
    address = ip_address(source.partition("%")[0])
    ranges = list(allowed_ranges)
    if not any(address in ip_network(allowed) for allowed in ranges):
        msg = (
            f"this SSH session comes from {address}, which is in none of core.ssh.allowed-ranges "
            f"({', '.join(ranges)}): the firewall would shut the next one out. Add its range"
        )
        raise HostError(msg)


def session_source() -> str | None:
    """Where the SSH session this process belongs to comes from; sudo hides it from us alone."""
    process = os.getpid()
    while process > 1:
        try:
            environment = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
            status = Path(f"/proc/{process}/status").read_text()
        except OSError:
            return None
        for entry in environment:
            if entry.startswith(b"SSH_CONNECTION="):
                return entry.partition(b"=")[2].split()[0].decode()
        parent = re.search(r"^PPid:\s+(\d+)", status, flags=re.MULTILINE)
        process = int(parent[1]) if parent else 0
    return None


def check_disk(packages: Iterable[str]) -> None:
    """Refuse a root file system that would fill up while packages are installed.

    Raises:
        HostError: naming what is free.
    """
    free_mib = shutil.disk_usage("/").free // 2**20
    missing = [name for name in packages if not package_is_installed(name)]
    if missing and free_mib < FREE_MIB:
        msg = (
            f"the root file system has {free_mib} MiB free, but {', '.join(missing)} must be "
            f"installed and need up to {FREE_MIB}. Make room, or give it a larger disk"
        )
        raise HostError(msg)


def load_modules(file: File) -> list[str]:
    """Load kernel modules now and at boot; return what changed."""
    for module in file["content"].split():
        if not succeeds(["modprobe", module]):
            msg = (
                f"the kernel has no module {module}, which the network needs. Install a full "
                "kernel (Debian: linux-image-amd64 or -arm64; Ubuntu: linux-generic) and reboot"
            )
            raise HostError(msg)
    return sorted(write_files([file]))


def kernel_settings(text: str) -> dict[str, str]:
    """Read sysctl.d(5): names and values, white space made single."""
    pairs = (line.split("=", 1) for line in text.splitlines() if line and line[0] != "#")
    return {name.strip(): " ".join(value.split()) for name, value in pairs}


def apply_kernel_settings(file: File) -> list[str]:
    """Set what differs and keep it for the next boot; return what changed.

    Raises:
        HostError: when the kernel refuses a value or does not know its name.
    """
    changed = []
    for name, wanted in kernel_settings(file["content"]).items():
        path = Path("/proc/sys", *name.split("."))
        try:
            if " ".join(path.read_text().split()) == wanted:
                continue
            path.write_text(wanted)
        except OSError as error:
            msg = (
                f"the kernel does not take {name} = {wanted} ({error.strerror}): the setting needs "
                "a full Debian or Ubuntu kernel, and no container around it. Install one and reboot"
            )
            raise HostError(msg) from None
        changed.append(name)
    return sorted(write_files([file])) + changed


def selected_scheduler(text: str) -> str:
    """The scheduler in force: the one in brackets, or the only one."""
    marked = re.search(r"\[(\S+)\]", text)
    return marked[1] if marked else text.strip()


def _schedulers() -> dict[str, str]:
    return {
        path.parts[3]: selected_scheduler(path.read_text())
        for path in sorted(Path("/sys/block").glob("*/queue/scheduler"))
        if path.parts[3].startswith(("nvme", "vd"))
    }


def apply_scheduler(file: File) -> list[str]:
    """Let NVMe and virtio disks go without an I/O scheduler; return what changed.

    Raises:
        HostError: when a disk keeps another one.
    """
    changed = sorted(write_files([file]))
    if changed:
        run(["udevadm", "control", "--reload"])
    wrong = {disk: found for disk, found in _schedulers().items() if found != "none"}
    if wrong:
        run(["udevadm", "trigger", "--action=change", "--subsystem-match=block", "--settle"])
        await_condition(
            f"the I/O scheduler of {', '.join(wrong)} did not become none. Look for another udev "
            "rule that sets it: grep -r queue/scheduler /etc/udev /usr/lib/udev",
            lambda: set(_schedulers().values()) <= {"none"},
            30,
        )
    return changed + [f"scheduler of {disk}: {found} to none" for disk, found in wrong.items()]


def apply_firewall(rules: File, loader: File, units: list[File]) -> list[str]:
    """Load our own tables now and at every boot; return what changed."""
    changed = []
    paths = [file["path"] for file in (rules, loader, *units)]
    with put_back_on_failure(paths, then=lambda: run(["systemctl", "daemon-reload"])):
        if write_file(rules, validate=["nft", "--check", "--file", "{}"]):
            changed.append(rules["path"])
        changed += sorted(write_files([loader, *units]))
        if changed:
            run(["systemctl", "daemon-reload"])
        if enable_unit(FIREWALL_UNIT):
            changed.append(f"{FIREWALL_UNIT} enabled")
        in_force = succeeds(["nft", "list", "table", "inet", "fortress"])
        if changed or not in_force or not unit_is_active(FIREWALL_UNIT):
            run(["systemctl", "reload-or-restart", FIREWALL_UNIT])
            run(["nft", "list", "table", "inet", "fortress"])
    if not changed and not in_force:
        changed.append("firewall loaded again")
    return changed


def apply_ssh(file: File, retired_keys: list[str]) -> list[str]:
    """Close SSH to passwords and forget retired host keys; return what changed.

    Raises:
        HostError: when sshd refuses the result, or something else in its configuration wins.
    """
    # The unit makes it, but only while it runs; sshd -t insists on it.
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    changed = []
    with put_back_on_failure([file["path"]]):
        if write_file(file, validate=["sshd", "-t", "-f", "{}"]):
            changed.append(file["path"])
        run(["sshd", "-t"])
        effective = run(["sshd", "-T"]).splitlines()
        if "passwordauthentication no" not in effective:
            msg = (
                "sshd would still take passwords: /etc/ssh/sshd_config does not begin with "
                "`Include /etc/ssh/sshd_config.d/*.conf`, or sets PasswordAuthentication before. "
                "Put that line first"
            )
            raise HostError(msg)
    retired = [Path(key) for key in retired_keys if Path(key).exists()]
    if retired and not Path(LASTING_HOST_KEY).exists():
        msg = (
            f"{LASTING_HOST_KEY} is missing, so the bootstrap key cannot be retired: sshd would "
            "have none. Replace this machine, or put the key back"
        )
        raise HostError(msg)
    for key in retired:
        key.unlink()
        key.with_name(f"{key.name}.pub").unlink(missing_ok=True)
        changed.append(f"{key} removed")
    if changed:
        run(["sshd", "-t"])
        run(["systemctl", "reload", "ssh.service"])
    return changed


def apply(content: dict[str, Any]) -> None:
    """Bring the machine to its baseline."""
    check_system(Path("/etc/os-release").read_text())
    if not Path("/run/systemd/system").is_dir():
        msg = "systemd does not run this machine, and every service here is one of its units"
        raise HostError(msg)
    check_memory(Path("/proc/meminfo").read_text(), content["memory_mib"])
    check_source(session_source(), content["ssh_ranges"])
    check_disk(content["packages"])
    changed = sorted(write_files(content["before_packages"]))
    changed += [f"{name} installed" for name in install_packages(content["packages"])]
    changed += load_modules(content["modules"])
    changed += apply_kernel_settings(content["sysctl"])
    changed += apply_scheduler(content["scheduler"])
    changed += apply_firewall(**content["firewall"])
    changed += apply_ssh(content["sshd"], content.get("retire_host_keys", []))
    if write_file(content["updates"], validate=["apt-config", "-c", "{}", "dump"]):
        changed.append(content["updates"]["path"])
    report(changed)


if __name__ == "__main__":
    main(apply)
