"""Owns fixtures that several lab tests share."""

import getpass
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab.driving import Lab
from tests.lab.engine import Engine


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs the one lab of this machine; all else may run side by side."""
    for item in items:
        if "lab" in getattr(item, "fixturenames", ()):
            item.add_marker("whole_lab")


@pytest.fixture(scope="session")
def _lab_at_the_end() -> Iterator[None]:
    yield
    Lab().command("down", "--purge", check=False)


@pytest.fixture(scope="module")
def lab(request: pytest.FixtureRequest, _lab_at_the_end: None) -> Iterator[Lab]:
    """The whole system on this machine, as `scripts/lab up` makes it.

    A module takes over what the one before left running, unless something failed there.
    """
    failed_before = request.session.testsfailed
    running = Lab()
    running.command("up", timeout_seconds=3600)
    yield running
    if request.session.testsfailed > failed_before:
        running.command("down", "--purge", check=False)


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    """An empty stack of its own."""
    directory = tmp_path / "project"
    directory.mkdir()
    return Engine(directory)


@dataclass(frozen=True)
class SshHost:
    """A real sshd on the loopback; `home` is a directory that commands may write to."""

    port: int
    user: str
    private_key: str
    host_key: str
    other_host_key: str
    home: Path

    def connection(self, **changes: object) -> str:
        """Python text of the `connection` input."""
        values: dict[str, object] = {
            "host": "127.0.0.1",
            "port": self.port,
            "user": self.user,
            "private_key": self.private_key,
            "host_key": self.host_key,
            "dial_error_limit": 2,
            "per_dial_timeout": 5,
        }
        return repr(values | changes)


def free_port() -> int:
    """A TCP port of the loopback on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def ssh_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshHost]:
    """A private sshd with keys and configuration of its own; the machine's is not touched."""
    sshd = shutil.which("sshd", path="/usr/sbin:/usr/bin:/sbin")
    if sshd is None:
        pytest.fail("sshd is not installed, but this test needs one: python3 -m lab.packages")
    directory = tmp_path_factory.mktemp("sshd")
    for name in ("host", "other", "user"):
        key = directory / name
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    authorized = directory / "authorized_keys"
    shutil.copyfile(directory / "user.pub", authorized)
    authorized.chmod(0o600)
    port = free_port()
    configuration = directory / "sshd_config"
    configuration.write_text(
        f"Port {port}\n"
        "ListenAddress 127.0.0.1\n"
        f"HostKey {directory / 'host'}\n"
        f"AuthorizedKeysFile {authorized}\n"
        f"PidFile {directory / 'sshd.pid'}\n"
        # pytest's directories belong to whoever runs it, below a world-writable one.
        "StrictModes no\n"
        "UsePAM no\n"
        "PasswordAuthentication no\n"
        "PermitRootLogin prohibit-password\n"
        "AcceptEnv GREETING\n"
        "Subsystem sftp internal-sftp\n",
        encoding="utf-8",
    )
    home = directory / "home"
    home.mkdir()
    if getpass.getuser() == "root":
        # sshd insists on it, and only its service file would make it.
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    log = directory / "sshd.log"
    daemon = subprocess.Popen([sshd, "-D", "-f", configuration, "-E", log])
    try:
        _await_listener(port, daemon, log)
        yield SshHost(
            port=port,
            user=getpass.getuser(),
            private_key=(directory / "user").read_text(encoding="utf-8"),
            host_key=_public(directory / "host.pub"),
            other_host_key=_public(directory / "other.pub"),
            home=home,
        )
    finally:
        daemon.terminate()
        daemon.wait(10)


def _public(path: Path) -> str:
    return " ".join(path.read_text(encoding="utf-8").split()[:2])


def _await_listener(port: int, daemon: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and daemon.poll() is None:
        try:
            with socket.create_connection(("127.0.0.1", port), 1):
                return
        except ConnectionRefusedError:
            time.sleep(0.02)
    pytest.fail(f"sshd did not start: {log.read_text(encoding='utf-8')}")
