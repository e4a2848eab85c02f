"""Owns one network, mount, process and host-name namespace of its own and the daemons inside it.

A process namespace besides the others means that ending its first process ends everything ever
started inside, libvirt's guests and dnsmasq included: the kernel does the cleaning up. What runs
inside is the callers' business.
"""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from lab.commands import run
from lab.errors import LabError

INSIDE_VARIABLE: Final = "FORTRESS_LAB_NAMESPACE"
"""Set for everything started inside, to the namespace's directory: no need to enter again."""

# Strict reverse path filtering would drop what returns through the WAN device; libvirt's bridges
# are routed between.
_SYSCTLS: Final = {
    "net/ipv4/ip_forward": "1",
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/default/rp_filter": "0",
    "net/ipv4/conf/all/send_redirects": "0",
    "net/ipv4/conf/default/send_redirects": "0",
}

# bash reaps what is orphaned here, as the first process of a process namespace must.
_HOLDER: Final = "trap 'exit 0' TERM; sleep infinity & while :; do wait; done"


@dataclass(frozen=True, kw_only=True)
class ProcessIdentity:
    """A process told apart from a later one with the same number."""

    pid: int
    start_ticks: int
    """Clock ticks between the kernel's start and the process's, from /proc/PID/stat."""
    boot_id: str

    @classmethod
    def of(cls, pid: int) -> "ProcessIdentity | None":
        """The identity of a living process, None when there is none with that number."""
        try:
            # The second field is the name in parentheses and may itself hold spaces.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        if fields[0] in {"Z", "X"}:
            return None
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return cls(pid=pid, start_ticks=int(fields[19]), boot_id=boot_id)

    def is_alive(self) -> bool:
        """Whether this very process still runs."""
        return ProcessIdentity.of(self.pid) == self


class Namespace:
    """The namespaces of one lab, recorded in one directory so that later processes find them.

    Parameters:
        directory: absolute, owned by this object alone; removed by `down`.
        binds: host paths to be covered by private directories (host path → private directory); both
        are made when
            absent except the host path, which must exist.
    """

    def __init__(self, directory: Path, binds: Mapping[Path, Path] | None = None) -> None:
        self.directory = directory
        self._binds = dict(binds or {})
        self._holder_file = directory / "holder.json"
        self._pids = directory / "pids"

    def is_up(self) -> bool:
        """Whether the namespaces exist, seen from the host or from inside."""
        return self._is_inside() or self.holder() is not None

    def up(self) -> None:
        """Create the namespaces; nothing happens when they exist.

        Raises:
            LabError: the kernel refused one of them.
        """
        if self.is_up():
            return
        self._pids.mkdir(parents=True, exist_ok=True)
        unshare = subprocess.Popen(
            [
                *(
                    "unshare",
                    "--mount",
                    "--net",
                    "--uts",
                    "--ipc",
                    "--pid",
                    "--fork",
                    "--mount-proc",
                ),
                *("--kill-child", "--propagation", "private", "bash", "-c", _HOLDER),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        identity = ProcessIdentity.of(_only_child(unshare))
        if identity is None:
            message = "the namespaces' first process ended at once; is memory left on this machine?"
            raise LabError(message)
        try:
            self._arrange(identity.pid)
        except BaseException:
            # Only a complete namespace is recorded, so an interrupted start leaves nothing a later
            # one would trust.
            os.kill(identity.pid, signal.SIGKILL)
            unshare.wait()
            raise
        _write_atomically(self._holder_file, json.dumps(identity.__dict__))

    def holder(self) -> ProcessIdentity | None:
        """The namespaces' first process as the host sees it, None when they do not exist."""
        try:
            identity = ProcessIdentity(**json.loads(self._holder_file.read_text()))
        except FileNotFoundError:
            return None
        return identity if identity.is_alive() else None

    def down(self) -> None:
        """End everything inside, with the namespaces and their mounts, and remove the directory."""
        holder = self.holder()
        if holder is not None:
            os.kill(holder.pid, signal.SIGKILL)
            wait_until(lambda: not holder.is_alive(), 30, "the namespaces' first process to end")
        shutil.rmtree(self.directory, ignore_errors=True)

    def command(self, words: Sequence[str | Path]) -> list[str]:
        """The same command to be started from here and run inside.

        Raises:
            LabError: the namespaces do not exist.
        """
        plain = [str(word) for word in words]
        if self._is_inside():
            return plain
        holder = self.holder()
        if holder is None:
            message = "the lab is not running: start it with scripts/lab up."
            raise LabError(message)
        # nsenter alone would leave the command in the root directory.
        return [
            *("nsenter", f"--target={holder.pid}", "--mount", "--net", "--uts", "--ipc", "--pid"),
            *("env", f"--chdir={Path.cwd()}", f"{INSIDE_VARIABLE}={self.directory}"),
            *plain,
        ]

    def run(
        self,
        words: Sequence[str | Path],
        *,
        stdin: str | None = None,
        environment: Mapping[str, str] | None = None,
        timeout_seconds: float | None = None,
    ) -> str:
        """Run a program inside to its end and give its standard output; see `lab.commands.run`."""
        return run(
            self.command(words),
            stdin=stdin,
            environment=environment,
            timeout_seconds=timeout_seconds,
        )

    def popen(
        self,
        words: Sequence[str | Path],
        *,
        stdin: int | IO[str] | None = subprocess.DEVNULL,
        stdout: int | IO[str] | None = None,
        stderr: int | IO[str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[str]:
        """Start a program inside; the caller waits for it."""
        return subprocess.Popen(
            self.command(words),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=environment,
            text=True,
        )

    def start_daemon(
        self,
        name: str,
        words: Sequence[str | Path],
        *,
        log: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start a program that goes on by itself inside; nothing happens when `name` is running.

        It holds a lock on its pid file for as long as it lives, which is how the others know.
        """
        if self.daemon_is_running(name):
            return
        log.parent.mkdir(parents=True, exist_ok=True)
        self._pids.mkdir(parents=True, exist_ok=True)
        pid_file = self._pids / name
        starter = 'echo $$ >"$0" && exec flock --no-fork --exclusive --wait 10 "$0" "$@"'
        with log.open("ab") as output:
            subprocess.Popen(
                self.command(["sh", "-c", starter, pid_file, *words]),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,
            )
        try:
            wait_until(lambda: self.daemon_is_running(name), 30, f"{name} to start")
        except LabError as error:
            message = f"{name} did not start; its log {log} ends:\n{_tail(log)}"
            raise LabError(message) from error

    def daemon_is_running(self, name: str) -> bool:
        """Whether the daemon holds its lock."""
        try:
            with (self._pids / name).open() as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def daemons(self) -> list[str]:
        """Names of the daemons that are running."""
        if not self._pids.is_dir():
            return []
        return sorted(
            file.name for file in self._pids.iterdir() if self.daemon_is_running(file.name)
        )

    def signal_daemon(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a running daemon; nothing happens when it does not run."""
        if self.daemon_is_running(name):
            pid = (self._pids / name).read_text().strip()
            self.run(["kill", f"-{int(number)}", pid])

    def stop_daemon(self, name: str, grace_seconds: float = 10) -> None:
        """End a daemon, by force after `grace_seconds`."""
        self.signal_daemon(name, signal.SIGTERM)
        try:
            wait_until(lambda: not self.daemon_is_running(name), grace_seconds, f"{name} to end")
        except LabError:
            self.signal_daemon(name, signal.SIGKILL)
            wait_until(lambda: not self.daemon_is_running(name), 10, f"{name} to be killed")

    def _is_inside(self) -> bool:
        return os.environ.get(INSIDE_VARIABLE) == str(self.directory)

    def _arrange(self, pid: int) -> None:
        """Private /run and /sys and the binds, then loopback and forwarding; only inside."""
        for private in self._binds.values():
            private.mkdir(parents=True, exist_ok=True)
        # A private /run keeps libvirtd from the host's D-Bus and with it from its systemd, firewall
        # and policy daemons.
        steps: list[list[str]] = [
            ["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run"],
            ["mount", "-t", "sysfs", "sysfs", "/sys"],
        ]
        for host, private in self._binds.items():
            if not str(host).startswith("/run/") and not host.is_dir():
                message = f"{host} does not exist; its package is not installed (lab/packages.txt)."
                raise LabError(message)
            steps.append(["mkdir", "-p", str(host)])
            steps.append(["mount", "--bind", str(private), str(host)])
        steps.append(["ip", "link", "set", "lo", "up"])
        steps.extend(
            ["sh", "-c", f"echo {value} >/proc/sys/{name}"] for name, value in _SYSCTLS.items()
        )
        for step in steps:
            run(
                [
                    *("nsenter", f"--target={pid}", "--mount", "--net", "--uts", "--ipc", "--pid"),
                    *step,
                ]
            )


def wait_until(
    condition: Callable[[], bool], seconds: float, what: str, interval_seconds: float = 0.05
) -> None:
    """Return as soon as the condition holds.

    Raises:
        LabError: it did not within `seconds`; the message names `what` was awaited.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            message = f"waited {seconds:g} seconds in vain for {what}."
            raise LabError(message)
        time.sleep(interval_seconds)


@contextmanager
def exclusive(file: Path, message: str) -> Iterator[None]:
    """Hold a lock for as long as the block runs.

    Raises:
        LabError: with `message`, when another process holds it.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LabError(message) from error
        yield


def _only_child(parent: subprocess.Popen[str]) -> int:
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    found: list[str] = []

    def has_started() -> bool:
        found[:] = children.read_text().split() if children.exists() else []
        # Before unshare's child has become bash, mounts made in its namespace would still reach the
        # host.
        started = bool(found) and Path(f"/proc/{found[0]}/comm").read_text().strip() == "bash"
        return started or parent.poll() is not None

    wait_until(has_started, 10, "the namespaces to be created")
    if not found:
        said = parent.stderr.read().strip() if parent.stderr else ""
        message = (
            f"the kernel refused the lab's namespaces ({said}); "
            "root with all capabilities is needed."
        )
        raise LabError(message)
    return int(found[0])


def _write_atomically(file: Path, text: str) -> None:
    beside = file.with_suffix(".new")
    beside.write_text(text)
    beside.rename(file)


def _tail(log: Path, lines: int = 15) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
