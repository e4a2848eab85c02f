"""Steps of key generations: what is refused before anything is touched, and with which remedy."""

import json
from types import SimpleNamespace
from typing import Any

import pulumi
import pytest

import halves
import settings
from plan.generations import record, refuse_unsafe_steps
from plan.mesh import MeshPlan
from settings import SettingsError
from tests.unit.samples import mesh_of, sample_data


def plan(*, hub: int = 0, spoke: int = 0, fleet: int = 0, **flags: bool) -> MeshPlan:
    """The sample at these generations, with `accept_hub` and `accept_fleet` if given."""
    data = sample_data()
    data["core"]["nodes"][0]["generation"] = hub
    data["core"]["nodes"][1]["generation"] = spoke
    frankfurt = data["fleets"]["frankfurt"]
    frankfurt["generation"] = fleet
    frankfurt["accept-previous-generation"] = flags.get("accept_fleet", True)
    data["mesh"] = {"accept-previous-hub": flags.get("accept_hub", True)}
    return mesh_of(settings.validate(data))


def as_the_engine_gives_it(of: MeshPlan) -> dict[str, Any]:
    given: dict[str, Any] = json.loads(json.dumps(record(of)), parse_int=float)
    return given


def check(before: MeshPlan, now: MeshPlan) -> None:
    refuse_unsafe_steps(as_the_engine_gives_it(before), now)


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (plan(), plan()),
        (plan(fleet=4), plan(fleet=4, accept_fleet=False)),
        (plan(spoke=1), plan(spoke=3)),
        (plan(), plan(fleet=1)),
        (plan(), plan(fleet=1, accept_fleet=False)),
        (plan(), plan(fleet=2, accept_fleet=False)),
        (plan(), plan(hub=1, fleet=1)),
        (plan(hub=1, fleet=1), plan(hub=1, fleet=1, accept_hub=False)),
        (plan(hub=1, fleet=1), plan(hub=1, fleet=1, accept_fleet=False)),
        (plan(hub=1, fleet=1, accept_hub=False), plan(hub=1, fleet=2, accept_hub=False)),
        (plan(hub=1, fleet=2, accept_hub=False), plan(hub=2, fleet=3)),
        (plan(), plan(hub=1, accept_hub=False)),
    ],
)
def test_a_step_that_cuts_nobody_off_unasked_is_taken(before: MeshPlan, now: MeshPlan) -> None:
    check(before, now)


@pytest.mark.parametrize(
    ("before", "now", "message"),
    [
        (plan(fleet=2), plan(fleet=1), "already runs 2: .* raise the generation to 3"),
        (plan(spoke=1), plan(), "node oslo-web-02 has generation 0, .* raise the generation to 2"),
        (
            plan(hub=2, fleet=2),
            plan(hub=1, fleet=2, accept_hub=False),
            "node oslo-db-01 has generation 1",
        ),
        (plan(), plan(fleet=2), "goes from 0 to 2: one previous .* Raise it to 1"),
        (plan(), plan(hub=1), "key of generation 0, .* expect them at 1"),
        (plan(), plan(hub=2, fleet=1), "Raise the hub by one"),
        (plan(hub=1, fleet=1), plan(hub=1, fleet=2), "set mesh.accept-previous-hub: false"),
        (
            plan(hub=1, fleet=1, accept_hub=False),
            plan(hub=1, fleet=1, accept_hub=True),
            "key of generation 1, .* expect them at 0",
        ),
    ],
)
def test_a_step_that_would_cut_members_off_is_refused_with_its_remedy(
    before: MeshPlan, now: MeshPlan, message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        check(before, now)


def test_a_stack_without_a_past_may_begin_anywhere() -> None:
    refuse_unsafe_steps({}, plan(hub=3, spoke=2, fleet=7))


def test_a_node_or_fleet_that_is_new_or_gone_is_no_step() -> None:
    before = as_the_engine_gives_it(plan(fleet=3))
    before["fleets"]["london"] = before["fleets"].pop("frankfurt")
    before["nodes"]["oslo-old-01"] = before["nodes"].pop("oslo-web-02")
    refuse_unsafe_steps(before, plan())


def test_another_hub_has_keys_of_its_own() -> None:
    before = as_the_engine_gives_it(plan(hub=1, fleet=1)) | {"hub": "oslo-old-01"}
    before["nodes"].pop("oslo-db-01")
    refuse_unsafe_steps(before, plan(fleet=1))


def answering(monkeypatch: pytest.MonkeyPatch, *answers: object) -> list[str]:
    """The engine gives these answers, one after the other; returns what it was asked."""
    asked: list[str] = []
    left = list(answers)

    def invoke(token: str, _: object) -> Any:
        asked.append(token)
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return SimpleNamespace(value=answer)

    monkeypatch.setattr(pulumi.runtime, "invoke", invoke)
    monkeypatch.setattr(halves, "READ_PAUSE_SECONDS", 0)
    for name in ("organization", "project", "stack"):
        monkeypatch.setattr(pulumi, f"get_{name}", lambda name=name: name)
    return asked


def test_a_state_that_the_engine_is_just_writing_is_read_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torn = Exception("invoke failed: failed to load checkpoint: EOF")
    asked = answering(monkeypatch, torn, torn, {"outputs": {"generations": {"hub": "a"}}})
    assert halves.own_outputs() == {"generations": {"hub": "a"}}
    assert len(asked) == 3


def test_a_state_that_stays_unreadable_and_any_other_failure_are_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torn = Exception("failed to load checkpoint: EOF")
    answering(monkeypatch, *[torn] * 100)
    with pytest.raises(Exception, match="failed to load checkpoint"):
        halves.own_outputs()
    asked = answering(monkeypatch, Exception("no permission"))
    with pytest.raises(Exception, match="no permission"):
        halves.own_outputs()
    assert len(asked) == 1
