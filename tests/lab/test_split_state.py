"""Core and fleet in two stacks: the lab's stack keeps Oslo, a second one takes over what is in AWS.

The tests share one lab and build on each other's order: the first one splits, the last destroys the
fleets' half. `scripts/lab up` afterwards makes one stack of both again.
"""

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from lab import paths
from lab.driving import DATABASE_NODE, OSLO_STATE, Lab, await_condition
from settings import PROJECT

CORE = "lab"
EDGE = "lab-edge"


@pytest.fixture(scope="module", autouse=True)
def remove_edge(lab: Lab) -> Iterator[None]:
    """Take away what this module adds, and what an earlier run could not."""

    def remove() -> None:
        lab.pulumi("destroy", "--stack", EDGE, "--yes", "--remove", check=False)
        (paths.PROJECT / f"Pulumi.{EDGE}.yaml").unlink(missing_ok=True)

    remove()
    yield
    remove()


@contextmanager
def locked(stack: str) -> Iterator[None]:
    """As if somebody's `up` of this stack were at work: a lock file as the engine writes it."""
    directory = paths.STATE / ".pulumi" / "locks" / "organization" / PROJECT / stack
    directory.mkdir(parents=True, exist_ok=True)
    lock = directory / f"{uuid.uuid4()}.json"
    holder = {"pid": 1, "username": "somebody", "hostname": "elsewhere"}
    lock.write_text(json.dumps(holder | {"timestamp": "2026-01-01T00:00:00Z"}))
    try:
        yield
    finally:
        lock.unlink()


def test_a_stack_is_split_and_oslo_does_not_notice(lab: Lab) -> None:
    before = lab.on(DATABASE_NODE, OSLO_STATE)
    whole = lab.settings(CORE)
    lab.write_settings(whole | {"layout": "core"}, CORE)
    text = lab.pulumi("up", "--stack", CORE, "--yes").stdout
    assert "deleted" in text
    for word in ("created", "updated", "replaced"):
        assert f" {word}\n" not in text, text
    lab.write_settings(
        {
            "layout": "edge",
            "core-stack": f"organization/{PROJECT}/{CORE}",
            "workload": whole["workload"],
            "fleets": whole["fleets"],
        },
        EDGE,
    )
    lab.pulumi("stack", "init", EDGE, "--secrets-provider", "passphrase", "--no-select")
    lab.pulumi("up", "--stack", EDGE, "--yes")
    await_condition("a member of the other stack's fleet to serve", lab.members)
    assert lab.on(DATABASE_NODE, OSLO_STATE) == before


def test_a_member_reads_the_database_in_oslo(lab: Lab) -> None:
    address = lab.outputs(CORE)["slots"][lab.members()[0]].split()[0]
    answer = json.loads(lab.on(DATABASE_NODE, f"curl -fsS --max-time 10 http://{address}:8080/"))
    assert answer["site"] == "frankfurt"
    assert answer["row"] == "God dag fra Oslo"


def test_each_state_holds_its_half_only(lab: Lab) -> None:
    kinds = {}
    for stack in (CORE, EDGE):
        text = lab.pulumi("stack", "export", "--stack", stack).stdout
        rows = json.loads(text)["deployment"]["resources"]
        kinds[stack] = {row["type"].removeprefix("pulumi:providers:").split(":")[0] for row in rows}
    assert "aws" not in kinds[CORE]
    assert not {"libvirt", "command"} & kinds[EDGE]
    assert "aws" in kinds[EDGE]


def test_what_crosses_is_secret_and_the_fleets_half_has_no_secret_of_its_own(lab: Lab) -> None:
    assert lab.outputs(CORE)["join_bundles"] == "[secret]"
    assert "[secret]" not in lab.outputs(EDGE).values()
    assert "secure:" not in (paths.PROJECT / f"Pulumi.{EDGE}.yaml").read_text()
    bundle = lab.outputs(CORE, "--show-secrets")["join_bundles"]["frankfurt"]
    for directory in (paths.STATE, paths.LOG):
        for file in (path for path in directory.rglob("*") if path.is_file()):
            text = file.read_text(errors="replace")
            for secret in (*bundle["fleet_seeds"].values(), bundle["fleet_password"]):
                assert secret not in text, f"a secret of the bundle stands in {file}"


@pytest.mark.parametrize("order", [(CORE, EDGE), (EDGE, CORE)], ids=["core first", "edge first"])
def test_both_halves_change_in_either_order_while_the_other_is_locked(
    lab: Lab, order: tuple[str, str]
) -> None:
    core, edge = lab.settings(CORE), lab.settings(EDGE)
    core["door"]["oslo-connections"] = 4 if order[0] == EDGE else 5
    percent = 60 if order[0] == EDGE else 55
    edge["fleets"]["frankfurt"]["scaling"] = {"kind": "cpu", "target-percent": percent}
    lab.write_settings(core, CORE)
    lab.write_settings(edge, EDGE)
    for stack, other in (order, order[::-1]):
        with locked(other):
            text = lab.pulumi("up", "--stack", stack, "--yes").stdout
            refused = lab.pulumi("up", "--stack", other, "--yes", check=False)
        assert "1 updated" in text, text
        assert "currently locked" in refused.stdout + refused.stderr
    for stack in order:
        lab.pulumi("preview", "--stack", stack, "--expect-no-changes")
    assert lab.ask()["row"] == "God dag fra Oslo"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"generation": 1}, "generation 1 is ahead of the 0 of core-stack"),
        ({"block": "10.100.0.128/26"}, "Set it to 10.100.0.64/26"),
    ],
    ids=["a generation ahead", "another block"],
)
def test_a_contradiction_is_one_message_and_changes_nothing(
    lab: Lab, change: dict[str, Any], message: str
) -> None:
    right = lab.settings(EDGE)
    wrong = lab.settings(EDGE)
    wrong["fleets"]["frankfurt"].update(change)
    lab.write_settings(wrong, EDGE)
    done = lab.pulumi("up", "--stack", EDGE, "--yes", "--skip-preview", check=False)
    lab.write_settings(right, EDGE)
    text = done.stdout + done.stderr
    assert done.returncode != 0
    assert message in text
    assert "Traceback" not in text
    lab.pulumi("preview", "--stack", EDGE, "--expect-no-changes")


def test_a_core_stack_that_does_not_exist_is_named(lab: Lab) -> None:
    right = lab.settings(EDGE)
    lab.write_settings(right | {"core-stack": f"organization/{PROJECT}/nowhere"}, EDGE)
    done = lab.pulumi("preview", "--stack", EDGE, check=False)
    lab.write_settings(right, EDGE)
    text = done.stdout + done.stderr
    assert done.returncode != 0
    assert "nowhere" in text
    assert "Traceback" not in text


def test_oslo_serves_on_when_the_fleets_half_is_destroyed(lab: Lab) -> None:
    before = lab.on(DATABASE_NODE, OSLO_STATE)
    load = lab.load(seconds=90, held=0, per_second=8)
    lab.pulumi("destroy", "--stack", EDGE, "--yes")
    await_condition("the door to see no member", lambda: not lab.members(), 180)
    report = load.complete()
    assert report["failed"] == []
    assert report["requests"] > 100
    assert lab.on(DATABASE_NODE, OSLO_STATE) == before
    lab.pulumi("preview", "--stack", CORE, "--expect-no-changes")
    assert not lab.aws("autoscaling", "describe_auto_scaling_groups")["AutoScalingGroups"]
