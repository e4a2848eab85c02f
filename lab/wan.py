"""Owns the distance between Oslo and the cloud: delay, path MTU and loss between two networks.

A small userspace forwarder on a TUN device, because `tc netem` is not in every host's kernel. Which
networks are far from each other is decided by policy routing; bandwidth is what the machine has.

    python -m lab.wan SETTINGS     forward by a JSON file that is read again on SIGHUP
"""

import fcntl
import json
import os
import random
import select
import signal
import struct
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from lab import paths
from lab.errors import LabError
from lab.namespace import Namespace, wait_until

DEVICE: Final = "wan0"
DAEMON: Final = "wan"
ROUTING_TABLE: Final = 100

OSLO_RANGE: Final = "10.20.0.0/24"
AWS_RANGE: Final = "10.64.0.0/16"

# linux/if_tun.h
_TUNSETIFF: Final = 0x400454CA
_IFF_TUN: Final = 0x0001
_IFF_NO_PI: Final = 0x1000

_LARGEST_PACKET: Final = 65536
_PACKETS_PER_WAKE_UP: Final = 256


@dataclass(frozen=True, kw_only=True)
class WanSettings:
    """How far apart the two networks are."""

    delay_milliseconds: float = 14.0
    """One way; 14 there and 14 back are the 28 ms between Oslo and Frankfurt."""
    mtu: int | None = None
    """IP packets larger than this are dropped in silence, as a path with filtered ICMP does."""
    loss: float = 0.0
    """Share of packets that are lost, 0 to 1; 1 cuts the link."""

    def __post_init__(self) -> None:
        if self.delay_milliseconds < 0 or not 0 <= self.loss <= 1:
            message = f"{self}: the delay must not be negative and the loss lies between 0 and 1."
            raise LabError(message)


def start(
    namespace: Namespace, settings: WanSettings | None = None, *, directory: Path = paths.RUN
) -> None:
    """Put the distance between the two networks; nothing changes when it is there.

    Parameters:
        directory: where the forwarder's settings file lives.
    """
    if namespace.daemon_is_running(DAEMON):
        return
    # The device outlives the forwarder: while that is down packets are lost, they take no short
    # cut.
    tun = (
        f"ip tuntap add {DEVICE} mode tun 2>/dev/null || true; "
        f"ip link set {DEVICE} up txqueuelen 5000; "
        # The API's answers to Oslo come back by the device with an address of this host as source.
        f"echo 1 > /proc/sys/net/ipv4/conf/{DEVICE}/accept_local"
    )
    namespace.run(["sh", "-ec", tun])
    # What comes out of the device is past the distance and must not enter it again.
    rules = [("100", f"iif {DEVICE} lookup main")]
    rules += [
        ("110", f"from {OSLO_RANGE} to {AWS_RANGE} lookup {ROUTING_TABLE}"),
        ("111", f"from {AWS_RANGE} to {OSLO_RANGE} lookup {ROUTING_TABLE}"),
    ]
    for preference, rule in rules:
        namespace.run(
            [
                *("sh", "-c"),
                f"ip rule del pref {preference} 2>/dev/null; ip rule add pref {preference} {rule}",
            ]
        )
    namespace.run(["ip", "route", "replace", "default", "dev", DEVICE, "table", str(ROUTING_TABLE)])
    file = _settings_file(directory)
    _write(file, settings or WanSettings())
    namespace.start_daemon(
        DAEMON,
        [sys.executable, "-m", "lab.wan", file],
        log=paths.LOG / "wan.log",
        environment={**os.environ, "PYTHONPATH": str(paths.ROOT)},
    )
    _await_applied(file)


def configure(namespace: Namespace, settings: WanSettings, *, directory: Path = paths.RUN) -> None:
    """Change the running forwarder; returns when it has taken the new settings."""
    file = _settings_file(directory)
    _write(file, settings)
    namespace.signal_daemon(DAEMON, signal.SIGHUP)
    _await_applied(file)


def _settings_file(directory: Path) -> Path:
    return directory / "wan.json"


def _applied_file(settings_file: Path) -> Path:
    return settings_file.with_suffix(".applied")


def _write(file: Path, settings: WanSettings) -> None:
    beside = file.with_suffix(".new")
    beside.write_text(json.dumps(asdict(settings)))
    beside.rename(file)


def _await_applied(file: Path) -> None:
    applied, wanted = _applied_file(file), file.read_text()
    wait_until(
        lambda: applied.exists() and applied.read_text() == wanted,
        30,
        f"the WAN forwarder to take its settings (log: {paths.LOG / 'wan.log'})",
    )


class Forwarder:
    """Gives every packet of a TUN device back after the delay, in the order they came."""

    def __init__(self, device: str, settings_file: Path) -> None:
        self._settings_file = settings_file
        self._settings = WanSettings()
        self._tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        request = struct.pack("16sH22x", device.encode(), _IFF_TUN | _IFF_NO_PI)
        fcntl.ioctl(self._tun, _TUNSETIFF, request)
        self._waiting: deque[tuple[float, bytes]] = deque()
        self.load()

    def load(self) -> None:
        """Take the settings from the file; packets under way keep their time."""
        text = self._settings_file.read_text()
        self._settings = WanSettings(**json.loads(text))
        _applied_file(self._settings_file).write_text(text)

    def run(self) -> None:
        """Forward until the process ends."""
        while True:
            pause = max(0.0, self._waiting[0][0] - time.monotonic()) if self._waiting else None
            # select and not epoll: its time limit has microseconds, and one millisecond is a
            # thirtieth of the delay.
            readable, _, _ = select.select([self._tun], [], [], pause)
            if readable:
                self._take()
            self._give()

    def _take(self) -> None:
        settings = self._settings
        for _ in range(_PACKETS_PER_WAKE_UP):
            try:
                packet = os.read(self._tun, _LARGEST_PACKET)
            except BlockingIOError:
                return
            if settings.mtu is not None and len(packet) > settings.mtu:
                continue
            if settings.loss and random.random() < settings.loss:  # noqa: S311 - not a secret
                continue
            self._waiting.append((time.monotonic() + settings.delay_milliseconds / 1000, packet))

    def _give(self) -> None:
        now = time.monotonic()
        while self._waiting and self._waiting[0][0] <= now:
            packet = self._waiting.popleft()[1]
            try:
                os.write(self._tun, packet)
            except OSError as error:
                # The kernel refuses a packet it could not route; a real link would lose it as well.
                sys.stderr.write(f"lost a packet of {len(packet)} bytes: {error}\n")


def _main() -> None:
    forwarder = Forwarder(DEVICE, Path(sys.argv[1]))
    signal.signal(signal.SIGHUP, lambda *_: forwarder.load())
    forwarder.run()


if __name__ == "__main__":
    _main()
