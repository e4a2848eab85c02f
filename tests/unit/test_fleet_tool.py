"""scripts/fleet without AWS: joining what everybody says, deciding what nobody accounts for."""

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest

from claims import UNKNOWN_OWNER_SECONDS, Claim
from scripts.fleet_tool import core, node_report, stack
from scripts.fleet_tool.core import CoreReport, Server
from scripts.fleet_tool.orphans import (
    Kind,
    Place,
    Thing,
    claims_without_instance,
    instances_without_claim,
    left_behind,
    monthly_usd,
    removal_order,
)
from scripts.fleet_tool.stack import Machine, ToolError
from scripts.fleet_tool.status import (
    TITLES,
    FleetStatus,
    Instance,
    Row,
    age_text,
    fleet_rows,
    fleet_text,
    in_use,
)
from tests.unit.samples import sample_data

NOW = 1_800_000_000
FRANKFURT = Place(region="eu-central-1")
SLOTS = [("frankfurt-0-00", "10.100.0.64"), ("frankfurt-0-01", "10.100.0.65")]
ONE = Instance(
    id="i-one", fleet="frankfurt", state="running", launched_at=NOW - 900, type="t3.medium"
)
CLAIM = Claim(slot="frankfurt-0-01", instance="i-one", claimed_at=NOW - 600, tunnel_mtu=1280)


def rows(**changes: object) -> list[Row]:
    facts: dict[str, object] = {
        "claims": {CLAIM.slot: CLAIM},
        "instances": {"i-one": replace(ONE, lifecycle="InService")},
        "core": CoreReport(
            handshake_ages={"10.100.0.65": 12},
            servers={
                "frankfurt-0-00": Server(state="DOWN", requests=0),
                "frankfurt-0-01": Server(state="UP", requests=4711),
            },
        ),
    }
    return fleet_rows(SLOTS, **{**facts, **changes}, now=float(NOW))  # type: ignore[arg-type]


def test_a_serving_member_is_one_row_of_what_five_witnesses_say() -> None:
    assert rows()[1] == Row(
        slot="frankfurt-0-01",
        address="10.100.0.65",
        instance="i-one",
        ec2_state="running",
        lifecycle="InService",
        claim_age_seconds=600,
        handshake_age_seconds=12,
        tunnel_mtu=1280,
        door_state="UP",
        requests=4711,
    )


def test_every_column_has_a_title() -> None:
    assert list(TITLES) == [field.name for field in fields(Row)]


def test_whatever_nobody_said_is_a_dash_and_the_rest_is_still_shown() -> None:
    [_, row] = rows(core=CoreReport(), instances=None)
    text = fleet_text(
        FleetStatus(
            name="frankfurt", region="eu-central-1", group=None, slots=2, claimed=1, rows=(row,)
        )
    )
    assert text.splitlines()[0] == "frankfurt (eu-central-1, group -): 1 of 2 slots claimed"
    assert text.splitlines()[2].split() == [
        *("frankfurt-0-01", "10.100.0.65", "i-one", "-", "-", "10", "min", "-", "1280", "-", "-")
    ]


def test_free_slots_are_in_use_only_while_somebody_says_so() -> None:
    free = rows()[0]
    assert not in_use(free)
    assert not in_use(replace(free, handshake_age_seconds=181))
    assert in_use(replace(free, handshake_age_seconds=180))
    assert in_use(replace(free, door_state="NOLB"))


def test_a_booting_instance_has_a_row_before_it_has_a_slot_and_a_terminated_one_has_none() -> None:
    booting = replace(ONE, id="i-two", state="pending")
    ended = replace(ONE, id="i-three", state="terminated")
    found = rows(instances={"i-one": ONE, "i-two": booting, "i-three": ended})
    assert [(row.slot, row.instance) for row in found[2:]] == [(None, "i-two")]


def test_a_claim_outside_the_known_slots_and_one_of_an_instance_that_ec2_forgot_are_shown() -> None:
    old = Claim(slot="frankfurt-7-00", instance="i-gone", claimed_at=NOW)
    assert [(row.slot, row.address, row.ec2_state) for row in rows(claims={old.slot: old})][
        2:3
    ] == [("frankfurt-7-00", None, "unknown")]


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "-"), (0, "0 s"), (119, "119 s"), (120, "2 min"), (200_000, "2 d")]
)
def test_ages_are_told_in_their_largest_unit(seconds: int | None, text: str) -> None:
    assert age_text(seconds) == text


def without_claim(*instances: Instance, claims: tuple[Claim, ...] = ()) -> list[str]:
    found = instances_without_claim(
        {one.id: one for one in instances},
        {claim.slot: claim for claim in claims},
        FRANKFURT,
        join_seconds=300,
        now=float(NOW),
    )
    return [orphan.id for orphan in found]


def test_an_instance_without_claim_is_an_orphan_once_its_time_to_join_is_over() -> None:
    assert without_claim(ONE) == ["i-one"]
    assert without_claim(replace(ONE, launched_at=NOW - 300)) == []
    assert without_claim(replace(ONE, state="stopped")) == ["i-one"]


def test_an_instance_that_holds_a_slot_or_is_already_leaving_is_no_orphan() -> None:
    assert without_claim(ONE, claims=(CLAIM,)) == []
    for leaving in (
        replace(ONE, state="shutting-down"),
        replace(ONE, state="terminated"),
        replace(ONE, lifecycle="Terminating:Wait"),
        replace(ONE, lifecycle="InService", healthy=False),
    ):
        assert without_claim(leaving) == []


def test_claims_are_orphans_by_the_rule_that_members_follow() -> None:
    def gone(states: dict[str, str], *, age: int = 600) -> list[tuple[str, str]]:
        claim = replace(CLAIM, claimed_at=NOW - age)
        found = claims_without_instance(
            {claim.slot: claim}, states, FRANKFURT, fleet="frankfurt", table="t", now=float(NOW)
        )
        return [(orphan.id, orphan.owner) for orphan in found]

    assert gone({"i-one": "terminated"}) == [("frankfurt-0-01", "i-one")]
    assert gone({"i-one": "shutting-down"}) == []
    assert gone({"i-one": "stopped"}) == []
    assert gone({}) == []
    assert gone({}, age=UNKNOWN_OWNER_SECONDS + 1) == [("frankfurt-0-01", "i-one")]


def test_what_the_engines_state_holds_is_accounted_for_and_the_rest_is_left_behind() -> None:
    kept = Thing(kind=Kind.TABLE, id="kept", place=FRANKFURT, created_at=NOW - 60.0)
    left = replace(kept, id="left")
    [orphan] = left_behind([kept, left], {"kept"}, now=float(NOW))
    assert (orphan.id, orphan.age_seconds, orphan.monthly_usd) == ("left", 60, None)


def test_prices_are_told_only_where_one_is_documented() -> None:
    volume = Thing(kind=Kind.VOLUME, id="vol-1", place=FRANKFURT, size_gib=10, type="gp3")
    assert monthly_usd(volume) == pytest.approx(0.952)
    assert monthly_usd(replace(volume, place=Place(region="eu-west-2"))) is None
    assert monthly_usd(replace(volume, type="io2")) is None
    address = Thing(kind=Kind.ADDRESS, id="eipalloc-1", place=FRANKFURT)
    assert monthly_usd(address) == pytest.approx(3.65)
    assert monthly_usd(replace(address, kind=Kind.LAUNCH_TEMPLATE)) == 0


def test_a_group_goes_before_the_instances_it_would_replace() -> None:
    things = [Thing(kind=kind, id=kind, place=FRANKFURT) for kind in reversed(Kind)]
    ordered = removal_order(left_behind(things, (), now=float(NOW)))
    assert [one.kind for one in ordered] == list(Kind)
    assert ordered[0].kind is Kind.GROUP


def test_handshakes_are_told_by_mesh_address_and_those_that_never_were_are_left_out() -> None:
    allowed = "wg0\tkeyA=\t10.100.0.64/32\nwg0\tkeyB=\t10.100.0.65/32\nwg0\tkeyC=\t(none)\n"
    shakes = f"wg0\tkeyA=\t{NOW - 7}\nwg0\tkeyB=\t0\nwg0\tkeyC=\t0\n"
    assert node_report.handshake_ages(allowed, shakes, NOW + 0.5) == {"10.100.0.64": 7}


def test_handshakes_of_both_keys_are_told_while_the_hubs_key_rotates() -> None:
    allowed = "wg0\tkeyA=\t10.100.0.64/32\nwg1\tkeyB=\t10.100.0.96/32\n"
    shakes = f"wg0\tkeyA=\t{NOW - 7}\nwg1\tkeyB=\t{NOW - 3}\n"
    assert node_report.handshake_ages(allowed, shakes, NOW) == {
        "10.100.0.64": 7,
        "10.100.0.96": 3,
    }


def test_servers_are_those_of_the_fleets_backends_only() -> None:
    statistics = (
        "# pxname,svname,stot,status,\n"
        "door,FRONTEND,9,OPEN,\noslo,oslo-db-01,5,UP,\n"
        "burst_frankfurt,frankfurt-0-00,,DOWN,\nburst_frankfurt,frankfurt-0-01,4,UP 1/2,\n"
        "burst_frankfurt,BACKEND,4,UP,\n\n"
    )
    assert node_report.servers(statistics) == {
        "frankfurt-0-00": {"state": "DOWN", "requests": 0},
        "frankfurt-0-01": {"state": "UP 1/2", "requests": 4},
    }


def program(directory: Path, name: str, text: str) -> None:
    file = directory / name
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of stand-ins that is looked at before everything else."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path


HUB = Machine(
    name="oslo-db-01",
    user="fortress",
    address="10.20.0.11",
    port=22,
    roles=frozenset({"hub", "edge"}),
)


def test_the_hub_gets_the_program_on_its_standard_input_and_runs_it_as_root(
    programs: Path,
) -> None:
    # The stand-in runs what it is sent, as a login shell would, without sudo.
    program(programs, "sudo", 'shift; exec "$@"')
    program(
        programs,
        "wg",
        '[ "$2" = all ] || exit 1\n'
        'if [ "$3" = allowed-ips ]; then echo "wg1 k= 10.100.0.64/32"; else echo "wg1 k= 1"; fi',
    )
    program(programs, "ssh", f'echo "$@" > {programs}/asked; for last; do :; done; eval "$last"')
    report = core.ask([HUB, replace(HUB, name="web", roles=frozenset({"frontend"}))])
    assert (programs / "asked").read_text() == (
        "-o BatchMode=yes -o ConnectTimeout=10 fortress@10.20.0.11 sudo -n python3 - edge hub\n"
    )
    assert report.handshake_ages["10.100.0.64"] > 1_000_000_000
    [problem] = report.problems
    assert problem.startswith("oslo-db-01: HAProxy does not say (/run/haproxy/admin.sock): ")


def test_a_hub_that_cannot_be_reached_is_one_line_with_what_to_try(programs: Path) -> None:
    program(programs, "ssh", "echo noise >&2; echo 'ssh: connect: timed out' >&2; exit 255")
    report = core.ask([replace(HUB, user="root", port=2222)])
    assert report.problems == (
        "edge and hub oslo-db-01 can't be asked: ssh: connect: timed out. "
        "Try: ssh -p 2222 root@10.20.0.11 true",
    )


def test_settings_come_from_pulumi_and_a_broken_rule_is_told_as_the_program_tells_it(
    programs: Path,
) -> None:
    def give(data: object) -> None:
        config = {"fortress-and-fleet:settings": {"value": json.dumps(data)}}
        (programs / "config").write_text(json.dumps(config))

    program(
        programs,
        "pulumi",
        f'[ "$1" = stack ] && echo acme/fortress-and-fleet/prod || cat {programs}/config',
    )
    give(sample_data())
    chosen = stack.load(None)
    assert chosen.name == "prod"
    assert [(m.name, m.user, m.port) for m in chosen.machines()] == [
        ("oslo-db-01", "fortress", 22),
        ("oslo-web-02", "root", 22),
    ]
    give({**sample_data(), "mesh": {"mtu": 9}})
    with pytest.raises(ToolError, match=r"settings\.mesh\.mtu: 9 is not accepted"):
        stack.load(None)


def test_pulumis_refusal_is_passed_on_in_its_own_words(programs: Path) -> None:
    program(programs, "pulumi", "echo \"error: no stack named 'nix' found\" >&2; exit 6")
    with pytest.raises(ToolError, match="no stack named 'nix' found"):
        stack.load("nix")
