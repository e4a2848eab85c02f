"""Takes one instance of a fleet into the mesh at boot, watches over it, and takes it out again.

The order of joining and leaving is here (docs/claims.md); the parts are in
`claims`, `cloud`, `tunnel`, `metadata` and `system`. It refuses to hold anything that would be
missed: what it writes about its slot is in memory only, and a reboot finds the slot in the table.
"""

import importlib
import importlib.util
import json
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any, TypeVar

import tunnel
from claims import NoFreeSlotError
from metadata import Metadata
from plan.derivation import decode_seed
from system import FailureError, System

if TYPE_CHECKING:
    from cloud import Cloud

SETTINGS = "/etc/fortress/member.json"
FIREWALL = "/etc/fortress/nftables/member.nft"
HEALTH_SETTINGS = "/etc/fortress/health.json"
# In memory only, as is the tunnel's key.
WORKLOAD_ENVIRONMENT = "/run/fortress/workload.env"
DRAINING = "/run/fortress/draining"
STATUS = "/run/fortress/status.json"
WORKLOAD_DIRECTORY = "/usr/local/lib/fortress/workload"
INSTALLED = "/var/lib/fortress/workload-installed"

# Both notices come minutes before the end; the service allows far more questions than this.
WATCH_SECONDS = 2.0
# The door asks once a second and takes a refused answer as drain at once (measured 1.03 s).
DOOR_NOTICES_SECONDS = 2.0
# A surplus member waits this long for one that is leaving, then says so and goes.
SURPLUS_SECONDS = 60.0
RETRY_SECONDS = 2.0
# Ten starts of this length stay below the unit's StartLimitIntervalSec, so that it powers off.
METADATA_SECONDS = 30.0
REPORT_SECONDS = 60.0

ESTABLISHED = "01"
SPOT_INTERRUPTION = "spot interruption"
TERMINATED = "terminated by its group"

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class MemberSettings:
    """What user-data says; nothing in it is secret."""

    fleet: str
    region: str
    endpoint_url: str | None
    group: str
    launch_hook: str | None
    terminate_hook: str | None
    claim_table: str
    seed_parameter: str
    workload_parameter: str
    secrets_version: int
    slot_name: str
    first_index: int
    first_address: str
    slot_count: int
    mesh: tunnel.MeshSettings
    probe_address: str
    probe_port: int
    workload_kind: str
    workload_port: int
    health_port: int
    health_path: str
    workload_hash: str
    environment: str
    join_seconds: int
    drain_seconds: int

    @classmethod
    def parse(cls, text: str) -> "MemberSettings":
        """Read member.json; an unknown or missing key is an error of whoever rendered it."""
        data: dict[str, Any] = json.loads(text)
        return cls(**{**data, "mesh": tunnel.MeshSettings(**data["mesh"])})

    def slots(self) -> dict[str, tuple[int, str]]:
        """Index and mesh address of every slot a member of this generation may claim, by name."""
        first = IPv4Address(self.first_address)
        return {
            self.slot_name.format(index): (index, str(first + index - self.first_index))
            for index in range(self.first_index, self.first_index + self.slot_count)
        }


class StopRequestedError(Exception):
    """The machine shuts down while it was still joining."""


class JoinFailedError(Exception):
    """The member can't serve; the message is its reason."""


def established(table: str, port: int, own_address: str) -> int:
    """Count connections of others to a port in the text of /proc/net/tcp or tcp6."""
    own = IPv4Address(own_address).packed[::-1].hex().upper()
    count = 0
    for line in table.splitlines()[1:]:
        local, remote, state = line.split()[1:4]
        peer = remote.split(":")[0]
        if int(local.split(":")[1], 16) == port and state == ESTABLISHED:
            count += not peer.endswith(own)
    return count


class Member:
    """One instance's life in the fleet."""

    def __init__(
        self, settings: MemberSettings, system: System, metadata: Metadata, cloud: "Cloud"
    ) -> None:
        self._settings = settings
        self._system = system
        self._metadata = metadata
        self._cloud = cloud
        self._slot: str | None = None
        self._deadline = system.monotonic() + settings.join_seconds

    def say(self, line: str) -> None:
        """To the journal and to EC2's console output: the unit sends standard output to both."""
        print(line, flush=True)

    def live(self) -> None:
        """Join, serve until told to leave, leave. What can't join is reported and replaced."""
        try:
            self.join()
        except JoinFailedError as failure:
            if self.give_up(str(failure)) and self.watch() == TERMINATED:
                # Its hook would keep the place of the next member for as long as draining may last.
                self._let_go()
        except StopRequestedError:
            self.leave("shut down while joining", serving=False)
        else:
            self.leave(self.watch(), serving=True)

    def join(self) -> None:
        """Become a serving member of the fleet.

        Raises:
            JoinFailedError: with the reason, when join-seconds have passed.
            StopRequestedError: when the machine shuts down meanwhile.
        """
        settings, system = self._settings, self._system
        system.remove(DRAINING)
        self._attempt("firewall", lambda: system.run(["nft", "-f", FIREWALL]))

        slots = settings.slots()
        self._slot = self._attempt(
            "claim", lambda: self._cloud.claim(list(slots)), patience=SURPLUS_SECONDS
        )
        for note in self._cloud.notes:
            self.say(note)
        index, address = slots[self._slot]
        self.say(f"claimed {self._slot} ({address})")

        seed_text, secrets = self._attempt(
            "secrets",
            lambda: self._cloud.secrets([settings.seed_parameter, settings.workload_parameter]),
        )
        try:
            seed = decode_seed(seed_text)
        except ValueError:
            message = f"{settings.seed_parameter} is not a fleet seed; `pulumi up` writes it"
            raise JoinFailedError(message) from None
        text = tunnel.configuration(settings.mesh, address=address, index=index, seed=seed)
        is_new = self._attempt("tunnel", lambda: tunnel.bring_up(system, text))
        self._attempt("handshake", self._expect_handshake, pause=0.2)
        self._attempt("probe", self._expect_answer, pause=0.5)
        tunnel_mtu = self._attempt("path MTU", lambda: tunnel.fit_mtu(system, settings.mesh))

        system.write(
            WORKLOAD_ENVIRONMENT,
            f"{settings.environment}{secrets}NODE_NAME={self._slot}\nLISTEN_ADDRESS={address}\n",
            mode=0o600,
        )
        system.write(
            HEALTH_SETTINGS,
            json.dumps(
                {
                    "address": address,
                    "health_port": settings.health_port,
                    "port": settings.workload_port,
                    "health_path": settings.health_path,
                }
            ),
        )
        # After a crash of this program the workload still serves: then it is left alone.
        verb = "restart" if is_new else "start"
        self._attempt("workload", lambda: self._start_workload(verb))
        self._attempt("health", lambda: system.run(["systemctl", verb, "fortress-health.service"]))
        self._attempt("workload's health", lambda: self._expect_health(address), pause=0.2)
        self._note_success(address, tunnel_mtu)

    def _expect_handshake(self) -> None:
        if not tunnel.has_handshake(self._system):
            message = (
                f"the hub {self._settings.mesh.hub_endpoint} does not answer: UDP is blocked on "
                "the way, it does not know this key generation, or this clock is behind the one "
                "of the slot's previous member (WireGuard refuses older handshakes)"
            )
            raise FailureError(message)

    def _expect_answer(self) -> None:
        settings = self._settings
        if not self._system.answers(settings.probe_address, settings.probe_port, timeout=2.0):
            message = (
                f"{settings.probe_address}:{settings.probe_port} does not answer through the "
                "tunnel: see the hub's forwarding and firewall"
            )
            raise FailureError(message)

    def _expect_health(self, address: str) -> None:
        if not self._system.says_ok(address, self._settings.health_port, "/health"):
            message = (
                f"the workload does not answer 200 on {self._settings.health_path}; its journal: "
                "journalctl -u fortress-workload"
            )
            raise FailureError(message)

    def _start_workload(self, verb: str) -> None:
        settings, system = self._settings, self._system
        if settings.workload_kind == "script" and system.read(INSTALLED) != settings.workload_hash:
            system.run([f"{WORKLOAD_DIRECTORY}/install"], timeout=self._remaining())
            system.write(INSTALLED, settings.workload_hash)
        system.run(["systemctl", verb, "fortress-workload.service"], timeout=self._remaining())

    def _note_success(self, address: str, tunnel_mtu: int) -> None:
        if self._slot is None:
            return
        slot, settings = self._slot, self._settings
        self._try(lambda: self._cloud.describe(slot, tunnel_mtu))
        if settings.launch_hook is not None:
            self._complete(settings.launch_hook, "CONTINUE")
        self._write_status("serving", address=address, tunnel_mtu=tunnel_mtu)
        self.say(f"{slot} ({address}) serves; tunnel MTU {tunnel_mtu}")

    def watch(self) -> str:
        """Wait until the group, EC2 or systemd says that the end has come; return which."""
        while not self._system.stop_requested(within=WATCH_SECONDS):
            try:
                if self._metadata.read("autoscaling/target-lifecycle-state") == "Terminated":
                    return TERMINATED
                if self._metadata.read("spot/instance-action") is not None:
                    return SPOT_INTERRUPTION
            except OSError as error:
                # A member that serves is not stopped because nobody says whether it should be.
                print(f"metadata: {error}", flush=True)
        return "reboot" if self._is_rebooting() else "shut down"

    def _is_rebooting(self) -> bool:
        try:
            jobs = self._system.run(["systemctl", "list-jobs", "--no-legend", "--plain"], timeout=5)
        except FailureError:
            # Without knowing, the claim is kept: the next member takes over what a dead one held.
            return True
        return any(name in jobs for name in ("reboot.target", "kexec.target"))

    def leave(self, reason: str, *, serving: bool) -> None:
        """Stop new requests, let running ones end, stop, and give the slot back.

        The tunnel ends before the claim is released, so that nobody can hold the slot beside this
        member. A reboot keeps the claim.
        """
        self.say(f"leaving: {reason}")
        if serving:
            self._write_status("draining", reason=reason)
            self._system.write(DRAINING, f"{reason}\n")
            self._wait_for_requests()
        self._stop_serving(keep_claim=reason == "reboot")
        if reason == TERMINATED:
            self._let_go()
        self._write_status("left", reason=reason)
        self.say(f"left: {reason}")
        if reason == SPOT_INTERRUPTION:
            # The group replaces it at once, instead of after what is left of the notice.
            self._try(lambda: self._system.run(["systemctl", "poweroff"]))

    def give_up(self, reason: str) -> bool:
        """Say why, give the slot back and ask to be replaced; without AWS, power off.

        Returns:
            Whether the group knows.
        """
        self.say(f"CANNOT JOIN: {reason}")
        self._write_status("failed", reason=reason)
        self._stop_serving(keep_claim=False)
        if self._settings.launch_hook is not None:
            self._complete(self._settings.launch_hook, "ABANDON")
        end = self._system.monotonic() + REPORT_SECONDS
        while not self._try(self._cloud.report_unhealthy):
            if self._system.monotonic() > end or self._system.stop_requested():
                self.say("powering off, because a stopped instance is replaced too")
                self._try(lambda: self._system.run(["systemctl", "poweroff"]))
                return False
            self._system.sleep(RETRY_SECONDS)
        self.say("reported unhealthy: the group replaces this instance")
        return True

    def _let_go(self) -> None:
        if self._settings.terminate_hook is not None:
            self._complete(self._settings.terminate_hook, "CONTINUE")

    def _stop_serving(self, *, keep_claim: bool) -> None:
        for unit in ("fortress-workload.service", "fortress-health.service"):
            self._try(lambda unit=unit: self._system.run(["systemctl", "stop", unit]))  # type: ignore[misc]
        self._system.remove(WORKLOAD_ENVIRONMENT)
        if not self._try(lambda: tunnel.take_down(self._system)) or keep_claim:
            # A tunnel that is still up keeps its claim: releasing it could make two holders.
            return
        slot = self._slot
        if slot is not None:
            self._try(lambda: self._cloud.release(slot))

    def _wait_for_requests(self) -> None:
        start = self._system.monotonic()
        address = self._settings.slots()[self._slot or ""][1]
        while True:
            elapsed = self._system.monotonic() - start
            if elapsed >= self._settings.drain_seconds:
                self.say(
                    f"drain-seconds {self._settings.drain_seconds} are over with requests running"
                )
                return
            if elapsed >= DOOR_NOTICES_SECONDS and self._running_requests(address) == 0:
                return
            self._system.sleep(0.25)

    def _running_requests(self, address: str) -> int:
        return sum(
            established(
                self._system.read(f"/proc/net/{table}") or "",
                self._settings.workload_port,
                address,
            )
            for table in ("tcp", "tcp6")
        )

    def _complete(self, hook: str, result: str) -> None:
        group = self._settings.group
        self._try(lambda: self._cloud.complete_lifecycle_action(group, hook, result))

    def _write_status(self, state: str, **facts: str | int) -> None:
        self._system.write(STATUS, json.dumps({"state": state, "slot": self._slot, **facts}))

    def _remaining(self) -> float:
        return max(1.0, self._deadline - self._system.monotonic())

    def _try(self, action: Callable[[], object]) -> bool:
        """Do what may fail without stopping what follows."""
        try:
            action()
        except (FailureError, OSError) as error:
            self.say(f"going on: {error}")
            return False
        return True

    def _attempt(
        self,
        step: str,
        action: Callable[[], Result],
        *,
        pause: float = RETRY_SECONDS,
        patience: float | None = None,
    ) -> Result:
        """Repeat a step until it succeeds or the time to join is over.

        Parameters:
            step: its name in the reason.
            action: raises `FailureError` when it has to be repeated.
            pause: seconds between tries.
            patience: seconds to wait for a free slot.
        """
        start = self._system.monotonic()
        said = ""
        while True:
            if self._system.stop_requested():
                raise StopRequestedError
            try:
                return action()
            except NoFreeSlotError as error:
                reason = str(error)
                surplus = patience is not None and self._system.monotonic() - start >= patience
            except (FailureError, OSError) as error:
                reason = str(error)
                surplus = False
            now = self._system.monotonic()
            if surplus or now >= self._deadline:
                message = f"{step}: {reason} (after {now - start:.0f} s)"
                raise JoinFailedError(message)
            if reason != said:
                print(f"{step}: {reason}; trying again", flush=True)
                said = reason
            self._system.stop_requested(within=pause)


def required_packages(workload_kind: str, has: Callable[[str], bool]) -> list[str]:
    """Debian packages that the image lacks.

    Parameters:
        workload_kind: script or container.
        has: whether a program (or, as python:NAME, a module) is there.
    """
    needed: Mapping[str, str] = {
        "python:boto3": "python3-boto3",
        "wg": "wireguard-tools",
        "nft": "nftables",
        "ip": "iproute2",
        "ping": "iputils-ping",
        **({"podman": "podman"} if workload_kind == "container" else {}),
    }
    return [package for program, package in needed.items() if not has(program)]


def has_program(system: System, name: str) -> bool:
    """Whether the image has a program or Python module."""
    if name.startswith("python:"):
        return importlib.util.find_spec(name.removeprefix("python:")) is not None
    return system.finds(name)


def prepare(system: System, settings: MemberSettings) -> None:
    """Install what the image lacks; a baked image (docs/images.md) lacks nothing."""
    missing = required_packages(settings.workload_kind, lambda name: has_program(system, name))
    if not missing:
        return
    print(f"the image lacks {' '.join(missing)}: installing", flush=True)
    apt = ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=120", "-o", "Dpkg::Use-Pty=0"]
    system.run([*apt, "update"], timeout=settings.join_seconds)
    # Ubuntu would look through all processes for services to restart, this one among them.
    quiet = ["DEBIAN_FRONTEND=noninteractive", "NEEDRESTART_SUSPEND=1"]
    argv = ["env", *quiet, *apt, "install", "--yes"]
    system.run([*argv, "--no-install-recommends", *missing], timeout=settings.join_seconds)
    importlib.invalidate_caches()


def instance_id(system: System, metadata: Metadata) -> str:
    """This machine's id, once its network is there: at a reboot both come up side by side.

    Raises:
        FailureError: when the metadata service has not said it for half a minute.
    """
    end = system.monotonic() + METADATA_SECONDS
    while True:
        try:
            instance = metadata.read("instance-id")
            reason = "the metadata service does not know this instance's id"
        except OSError as error:
            instance, reason = None, f"metadata: {error}"
        if instance is not None:
            return instance
        if system.monotonic() >= end or system.stop_requested(within=0.2):
            raise FailureError(reason)


def main() -> int:
    """Live until the machine stops."""
    system = System()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: system.request_stop())
    text = system.read(SETTINGS)
    if text is None:
        print(f"{SETTINGS} is missing: this machine was not started by a fleet", file=sys.stderr)
        return 1
    settings = MemberSettings.parse(text)
    try:
        prepare(system, settings)
        metadata = Metadata()
        instance = instance_id(system, metadata)
    except (FailureError, OSError) as error:
        # Without boto3 or an id nothing can be reported; systemd tries again, then powers off.
        print(f"CANNOT JOIN: {error}", file=sys.stderr)
        return 1
    from cloud import Cloud

    cloud = Cloud(
        region=settings.region,
        endpoint_url=settings.endpoint_url,
        table=settings.claim_table,
        instance=instance,
        system=system,
    )
    Member(settings, system, metadata, cloud).live()
    return 0


if __name__ == "__main__":
    sys.exit(main())
