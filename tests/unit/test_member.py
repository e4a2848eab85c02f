"""A member's life with a pretended machine and AWS: the order of things and every way out."""

import base64
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from claims import NoFreeSlotError
from member import (
    DRAINING,
    Member,
    MemberSettings,
    established,
    instance_id,
    prepare,
    required_packages,
)
from metadata import Metadata
from plan.derivation import encode, fleet_seed
from plan.keys import public_key, slot_keys
from plan.names import fleet_names
from render.member import join_facts, member_settings
from settings import ROOT
from system import FailureError, System
from tests.unit.samples import SEED, mesh_of, sample
from tunnel import CONFIGURATION, MeshSettings, configuration, fit_mtu

SLOT = "frankfurt-0-03"
ADDRESS = "10.100.0.67"


def settings_of(**changes: Any) -> MemberSettings:
    system = sample()
    mesh = mesh_of(system)
    rendered = member_settings(
        facts=join_facts(mesh, hub_public_key="HUB="),
        fleet=system.fleets["frankfurt"],
        plan=mesh.fleet("frankfurt"),
        names=fleet_names("fortress", "prod", "frankfurt", 0),
        group_name="group",
        launch_hook="joined",
        terminate_hook="left",
        workload=system.workload,
        database=system.database,
        secrets_version=1,
    )
    return replace(MemberSettings.parse(json.dumps(rendered)), **changes)


class Machine(System):
    """A machine whose clock moves only when somebody waits, and that notes what is done to it."""

    def __init__(self, events: list[str]) -> None:
        super().__init__()
        self.events = events
        self.now = 0.0
        self.files: dict[str, str] = {}
        self.modes: dict[str, int] = {}
        self.failing: dict[str, int] = {}
        self.path_mtu = 1500
        self.has_wg0 = False
        self.jobs = ""
        self.is_healthy = True
        self.reaches_hub = True
        self.reaches_database = True
        self.connections: list[int] = []
        self.on_wait: Callable[[float], None] = lambda now: None

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1_800_000_000.0 + self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.on_wait(self.now)

    def stop_requested(self, *, within: float = 0.0) -> bool:
        if within and not super().stop_requested():
            self.sleep(within)
        return super().stop_requested()

    def run(self, argv: Sequence[str], *, timeout: float = 60.0) -> str:
        line = " ".join(argv)
        for part, times in self.failing.items():
            if part in line and times > 0:
                self.failing[part] -= 1
                message = f"{part} failed"
                raise FailureError(message)
        if argv[0] == "ping":
            size = int(argv[argv.index("-s") + 1]) + 28
            if size > self.path_mtu:
                self.now += 1
                message = "no answer"
                raise FailureError(message)
            return ""
        if line.startswith("ip link show"):
            if not self.has_wg0:
                message = "no wg0"
                raise FailureError(message)
            return ""
        if line.startswith("systemctl list-jobs"):
            return self.jobs
        self.events.append(line)
        if argv[0] == "wg-quick":
            self.has_wg0 = True
        if line.startswith("ip link delete"):
            self.has_wg0 = False
        if argv[0] == "wg":
            return f"HUB=\t{1_800_000_000 if self.reaches_hub else 0}\n"
        return ""

    def read(self, path: str) -> str | None:
        if path == "/proc/net/tcp":
            count = self.connections.pop(0) if self.connections else 0
            line = " 0: 4300640A:1F90 0100640A:C350 01 0:0 0:0 0 0 0 0\n"
            return "header\n" + line * count
        return self.files.get(path)

    def write(self, path: str, content: str, *, mode: int = 0o644) -> None:
        self.files[path] = content
        self.modes[path] = mode
        if path == DRAINING:
            self.events.append("draining")

    def remove(self, path: str) -> None:
        self.files.pop(path, None)

    def answers(self, address: str, port: int, *, timeout: float) -> bool:
        return self.reaches_database

    def says_ok(self, address: str, port: int, path: str) -> bool:
        return self.is_healthy


class PretendedCloud:
    """Answers like `cloud.Cloud` and notes what it was asked."""

    def __init__(self, events: list[str]) -> None:
        self.events = events
        self.notes: list[str] = []
        self.errors: dict[str, list[Exception]] = {}
        self.seed = encode(fleet_seed(SEED, "frankfurt", 0))
        self.when_reported: Callable[[], None] = lambda: None

    def _do(self, what: str, *facts: object) -> None:
        pending = self.errors.get(what, [])
        if pending:
            raise pending[0] if len(pending) == 1 else pending.pop(0)
        self.events.append(" ".join([what, *map(str, facts)]))

    def claim(self, slots: Sequence[str]) -> str:
        self._do("claim")
        return SLOT

    def secrets(self, names: Sequence[str]) -> list[str]:
        self._do("secrets")
        return [self.seed, 'PGPASSWORD="hush"\n']

    def describe(self, slot: str, tunnel_mtu: int) -> None:
        self._do("describe", slot, tunnel_mtu)

    def release(self, slot: str) -> bool:
        self._do("release", slot)
        return True

    def report_unhealthy(self) -> None:
        self._do("report_unhealthy")
        self.when_reported()

    def complete_lifecycle_action(self, group: str, hook: str, result: str) -> None:
        self._do("complete", group, hook, result)


class World:
    """One member and everything around it."""

    def __init__(self, **changes: Any) -> None:
        self.events: list[str] = []
        self.machine = Machine(self.events)
        self.cloud = PretendedCloud(self.events)
        self.facts: dict[str, str] = {}
        self.cloud.when_reported = lambda: self.facts.update(
            {"autoscaling/target-lifecycle-state": "Terminated"}
        )
        self.member = Member(
            settings_of(**changes),
            self.machine,
            Metadata(self._answer),
            self.cloud,  # type: ignore[arg-type]
        )

    def _answer(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
        if method == "PUT":
            return 200, "token"
        value = self.facts.get(path.removeprefix("/latest/meta-data/"))
        return (404, "") if value is None else (200, value)

    def at(self, seconds: float, action: Callable[[], None]) -> None:
        """Do something once the machine's clock has come that far."""
        before = self.machine.on_wait
        done: list[bool] = []

        def check(now: float) -> None:
            before(now)
            if now >= seconds and not done:
                done.append(True)
                action()

        self.machine.on_wait = check

    def order(self, *events: str) -> None:
        positions = [self.events.index(event) for event in events]
        assert positions == sorted(positions), self.events

    def status(self) -> Any:
        return json.loads(self.machine.files["/run/fortress/status.json"])


def test_a_member_serves_only_after_claim_tunnel_probe_and_workload() -> None:
    world = World()
    world.member.join()
    world.order(
        "nft -f /etc/fortress/nftables/member.nft",
        "claim",
        "secrets",
        f"wg-quick up {CONFIGURATION}",
        "/usr/local/lib/fortress/workload/install",
        "systemctl restart fortress-workload.service",
        "systemctl restart fortress-health.service",
        f"describe {SLOT} 1360",
        "complete group joined CONTINUE",
    )
    assert world.status() == {
        "state": "serving",
        "slot": SLOT,
        "address": ADDRESS,
        "tunnel_mtu": 1360,
    }


def test_secrets_are_for_root_only_and_in_memory() -> None:
    world = World()
    world.member.join()
    secret = [path for path, text in world.machine.files.items() if "hush" in text]
    keys = [path for path, text in world.machine.files.items() if "PrivateKey" in text]
    assert [*secret, *keys] == ["/run/fortress/workload.env", "/run/fortress/wg0.conf"]
    assert {world.machine.modes[path] for path in [*secret, *keys]} == {0o600}
    environment = world.machine.files["/run/fortress/workload.env"]
    assert f"NODE_NAME={SLOT}\nLISTEN_ADDRESS={ADDRESS}\n" in environment
    assert 'PGUSER="app_fleet"\n' in environment


def test_the_workload_is_installed_once_per_content() -> None:
    world = World(workload_hash="one")
    world.machine.files["/var/lib/fortress/workload-installed"] = "one"
    world.member.join()
    assert "/usr/local/lib/fortress/workload/install" not in world.events


def test_a_member_program_that_starts_again_leaves_tunnel_and_workload_alone() -> None:
    world = World()
    world.member.join()
    world.events.clear()
    world.member.join()
    assert "systemctl start fortress-workload.service" in world.events
    assert not [event for event in world.events if "restart" in event or "wg-quick" in event]


def test_steps_are_repeated_until_they_succeed() -> None:
    world = World()
    world.cloud.errors = {
        "claim": [FailureError("throttled"), FailureError("throttled"), FailureError("x")]
    }
    world.machine.failing = {"wg-quick": 1, "nft": 2}
    world.at(10, lambda: world.cloud.errors.clear())
    world.member.join()
    assert world.status()["state"] == "serving"


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (
            lambda w: w.cloud.errors.update(claim=[FailureError("AccessDenied")]),
            "claim: AccessDenied",
        ),
        (
            lambda w: w.cloud.errors.update(secrets=[FailureError("no parameter")]),
            "secrets: no param",
        ),
        (lambda w: setattr(w.cloud, "seed", "short"), "is not a fleet seed"),
        (lambda w: w.machine.failing.update({"wg show": 10**6}), "handshake: wg show failed"),
        (
            lambda w: setattr(w.machine, "reaches_hub", False),
            "handshake: the hub 198.51.100.11:51820 does not answer: UDP is blocked",
        ),
        (lambda w: setattr(w.machine, "reaches_database", False), "probe: 10.100.0.1:5432 does"),
        (lambda w: setattr(w.machine, "path_mtu", 100), "path MTU: no packet of 576 bytes"),
        (lambda w: w.machine.failing.update({"/install": 10**6}), "workload: /install failed"),
        (lambda w: setattr(w.machine, "is_healthy", False), "workload's health: the workload"),
    ],
)
def test_what_can_not_join_in_time_says_why_gives_its_slot_back_and_is_replaced(
    break_it: Callable[[World], None], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    world = World()
    break_it(world)
    world.member.live()
    assert f"CANNOT JOIN: {reason}" in capsys.readouterr().out.replace(
        "/fortress/prod/frankfurt/generation-0/seed ", ""
    )
    assert world.status()["state"] == "failed"
    world.order("report_unhealthy", "complete group left CONTINUE")
    assert "complete group joined ABANDON" in world.events
    assert CONFIGURATION not in world.machine.files
    assert (f"release {SLOT}" in world.events) == ("claim" in world.events)
    assert world.machine.now <= 300 + 40


def test_a_surplus_member_waits_a_minute_for_a_slot_and_then_says_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    world = World()
    world.cloud.errors = {"claim": [NoFreeSlotError("no free slot among 32")]}
    world.member.live()
    assert "CANNOT JOIN: claim: no free slot among 32 (after 60 s)" in capsys.readouterr().out
    assert "report_unhealthy" in world.events


def test_a_slot_that_frees_up_in_time_is_taken() -> None:
    world = World()
    world.cloud.errors = {"claim": [NoFreeSlotError("no free slot")]}
    world.at(30, lambda: world.cloud.errors.clear())
    world.member.join()
    assert world.status()["state"] == "serving"


def test_a_member_that_can_not_even_report_powers_off() -> None:
    world = World()
    world.cloud.errors = {
        name: [FailureError("no way to AWS")] for name in ("claim", "report_unhealthy")
    }
    world.member.live()
    assert world.events[-1] == "systemctl poweroff"


@pytest.mark.parametrize(
    ("fact", "completes"),
    [
        (("autoscaling/target-lifecycle-state", "Terminated"), True),
        (("spot/instance-action", '{"action":"terminate"}'), False),
    ],
)
def test_a_member_that_is_told_to_leave_drains_then_stops_then_releases(
    fact: tuple[str, str], completes: bool
) -> None:
    world = World()
    world.machine.connections = [3, 2, 2, 1]
    world.at(100, lambda: world.facts.update([fact]))
    world.member.live()
    world.order(
        "draining",
        "systemctl stop fortress-workload.service",
        "ip link delete dev wg0",
        f"release {SLOT}",
    )
    if completes:
        world.order(f"release {SLOT}", "complete group left CONTINUE")
    assert ("complete group left CONTINUE" in world.events) == completes
    # Nobody waits for the rest of a spot notice: what is off is replaced.
    assert (world.events[-1] == "systemctl poweroff") == (not completes)
    assert world.status()["state"] == "left"


def test_running_requests_are_waited_for_but_not_forever() -> None:
    world = World(drain_seconds=20)
    world.machine.connections = [1] * 1000
    world.member.join()
    start = world.machine.now
    world.member.leave("shut down", serving=True)
    assert world.machine.now - start == pytest.approx(20)
    assert f"release {SLOT}" in world.events


def test_draining_lasts_until_the_door_has_noticed() -> None:
    world = World()
    world.member.join()
    start = world.machine.now
    world.member.leave("shut down", serving=True)
    assert 2.0 <= world.machine.now - start < 3.0


@pytest.mark.parametrize(
    ("jobs", "is_released"),
    [("12 poweroff.target start waiting", True), ("12 reboot.target start waiting", False)],
)
def test_a_shutdown_releases_the_slot_and_a_reboot_keeps_it(jobs: str, is_released: bool) -> None:
    world = World()
    world.machine.jobs = jobs
    world.at(50, world.machine.request_stop)
    world.member.live()
    assert (f"release {SLOT}" in world.events) == is_released
    assert "ip link delete dev wg0" in world.events


def test_a_shutdown_while_joining_undoes_what_was_done() -> None:
    world = World()
    world.machine.reaches_database = False
    world.at(5, world.machine.request_stop)
    world.member.live()
    world.order("claim", "ip link delete dev wg0", f"release {SLOT}")
    assert "report_unhealthy" not in world.events


def test_a_tunnel_that_stays_up_keeps_its_claim() -> None:
    world = World()
    world.member.join()
    world.machine.failing = {"ip link delete": 10**6}
    world.member.leave("shut down", serving=True)
    assert f"release {SLOT}" not in world.events


def test_leaving_goes_on_when_aws_does_not_answer_and_says_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    world = World()
    world.at(50, lambda: world.facts.update({"autoscaling/target-lifecycle-state": "Terminated"}))
    world.at(
        50,
        lambda: world.cloud.errors.update(
            release=[FailureError("no release")], complete=[FailureError("no hook")]
        ),
    )
    world.member.live()
    assert world.status()["state"] == "left"
    said = capsys.readouterr().out
    assert "going on: no release\n" in said
    assert "going on: no hook\n" in said


def test_a_silent_metadata_service_stops_nobody() -> None:
    world = World()
    world.member.join()
    answers = iter([(500, ""), (500, "")])
    good = world.member._metadata._request

    def flaky(method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
        return next(answers, None) or good(method, path, headers)

    world.member._metadata._request = flaky
    world.at(100, lambda: world.facts.update({"spot/instance-action": "{}"}))
    assert world.member.watch() == "spot interruption"
    assert world.machine.now >= 100


def test_a_token_that_the_service_refuses_is_renewed() -> None:
    tokens: list[str] = []

    def answer(method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
        if method == "PUT":
            tokens.append(f"token-{len(tokens)}")
            return 200, tokens[-1]
        return (200, "i-1") if headers["X-aws-ec2-metadata-token"] == "token-1" else (401, "")

    assert Metadata(answer).read("instance-id") == "i-1"
    assert tokens == ["token-0", "token-1"]


@pytest.mark.parametrize("largest", [1360, 1308, 1236, 1000, 577, 576])
def test_the_tunnel_gets_the_largest_mtu_that_passes(largest: int) -> None:
    events: list[str] = []
    machine = Machine(events)
    machine.path_mtu = largest
    mesh = MeshSettings(
        range="10.100.0.0/24",
        mtu=1360,
        keepalive_seconds=25,
        hub_endpoint="198.51.100.11:51820",
        hub_public_key="HUB=",
        hub_address="10.100.0.1",
    )
    assert fit_mtu(machine, mesh) == largest
    expected = [] if largest == 1360 else [f"ip link set dev wg0 mtu {largest}"]
    assert events == expected


def test_own_health_probes_and_other_states_are_no_running_requests() -> None:
    table = (
        "  sl  local_address rem_address   st\n"
        "   0: 4300640A:1F90 00000000:0000 0A\n"
        "   1: 4300640A:1F90 0100640A:C350 01\n"
        "   2: 4300640A:1F90 4300640A:C351 01\n"
        "   3: 4300640A:1F91 0100640A:C352 01\n"
        "   4: 4300640A:1F90 0100640A:C353 06\n"
    )
    assert established(table, 8080, ADDRESS) == 1


def test_member_json_expands_to_the_slots_of_the_plan() -> None:
    plan = mesh_of(sample()).fleet("frankfurt")
    assert settings_of().slots() == {
        slot.name: (slot.index, str(slot.address)) for slot in plan.claimable
    }


def test_nothing_is_installed_that_the_image_has() -> None:
    assert required_packages("container", lambda program: True) == []
    assert required_packages("script", lambda program: program not in {"wg", "python:boto3"}) == [
        "python3-boto3",
        "wireguard-tools",
    ]


@pytest.mark.parametrize(("lacking", "commands"), [(set(), 0), ({"wg", "python:boto3"}, 2)])
def test_the_mirror_is_asked_only_for_what_is_missing(
    lacking: set[str], commands: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("member.has_program", lambda system, name: name not in lacking)
    done: list[str] = []
    prepare(Machine(done), settings_of())
    assert len(done) == commands
    if done:
        assert done[0].endswith(" update")
        assert done[1].endswith("--no-install-recommends python3-boto3 wireguard-tools")


def metadata_after(seconds: float, machine: Machine) -> Metadata:
    def answer(method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
        if machine.now < seconds:
            raise OSError(101, "Network is unreachable")
        return 200, "token" if method == "PUT" else "i-0123456789abcdef0"

    return Metadata(answer)


def test_a_machine_whose_network_comes_after_the_program_waits_for_its_id() -> None:
    machine = Machine([])
    assert instance_id(machine, metadata_after(4, machine)) == "i-0123456789abcdef0"
    assert 4 <= machine.now < 5


def test_a_machine_that_is_never_told_its_id_says_so_early_enough_to_be_powered_off() -> None:
    machine = Machine([])
    with pytest.raises(FailureError, match="Network is unreachable"):
        instance_id(machine, metadata_after(1e9, machine))
    unit = (ROOT / "render/templates/fortress-member.service.j2").read_text()
    limits = dict(re.findall(r"^(StartLimit\w+|RestartSec)=(\d+)$", unit, flags=re.MULTILINE))
    one_start = machine.now + int(limits["RestartSec"])
    assert int(limits["StartLimitBurst"]) * one_start < int(limits["StartLimitIntervalSec"])


def test_the_tunnel_s_keys_are_those_the_hub_lists_for_the_slot(tmp_path: Path) -> None:
    slot = mesh_of(sample()).fleet("frankfurt").slots[3]
    text = configuration(
        settings_of().mesh,
        address=str(slot.address),
        index=slot.index,
        seed=fleet_seed(SEED, "frankfurt", 0),
    )
    keys = slot_keys(SEED, (slot,))[slot]
    private = next(line for line in text.splitlines() if line.startswith("PrivateKey"))
    assert public_key(base64.b64decode(private.split(" = ")[1])) == keys.public_key
    assert f"PresharedKey = {keys.preshared_key}\n" in text
    assert f"Address = {ADDRESS}/32\n" in text
    if shutil.which("wg-quick") is not None:
        path = tmp_path / "wg0.conf"
        path.write_text(text)
        path.chmod(0o600)
        # wg-quick insists on root, which everybody is in a user namespace of their own.
        stripped = subprocess.run(
            ["unshare", "--map-root-user", "wg-quick", "strip", path],
            capture_output=True,
            text=True,
            check=True,
        )
        assert "Endpoint = 198.51.100.11:51820" in stripped.stdout
