"""The claim protocol as a state machine: any order of requests of members that crash at any point.

Every member runs the real code in a thread of its own and stops before each request to AWS. The
machine decides whose request goes next and what becomes of it: it is done, refused before it is
done, done with its answer lost, or its member dies before or after it.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import boto3
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from moto import mock_aws

from claims import UNKNOWN_OWNER_SECONDS, ClaimTable, NoFreeSlotError, claim_slot
from lab.stepping import Actor, Crashed, Fate, ThrottledError

SLOTS = [f"frankfurt-0-{index:02d}" for index in range(3)]
# AWS refuses requests dated further off (Signature Version 4: five minutes, with some services a
# quarter of an hour).
CLOCK_SKEW_SECONDS = 900
# How long EC2 may not list a new instance; observed are seconds, this is far beyond.
LISTING_SECONDS = 600


class SteppedTable(ClaimTable):
    """The real table, with a stop before each of its requests."""

    def __init__(self, dynamodb: Any, name: str, actor: Actor) -> None:
        super().__init__(dynamodb, name)
        self._actor = actor

    def claims(self) -> dict[str, Any]:
        return dict(self._actor.request(super().claims))

    def take(self, slot: str, instance: str, *, now: float, owner: str | None) -> bool:
        take = super().take
        return bool(self._actor.request(lambda: take(slot, instance, now=now, owner=owner)))

    def release(self, slot: str, instance: str) -> bool:
        release = super().release
        return bool(self._actor.request(lambda: release(slot, instance)))


class Fleet(RuleBasedStateMachine):
    """Instances of one fleet over their lives."""

    dynamodb: Any
    tables = 0

    @initialize(lag=st.booleans())
    def start(self, lag: bool) -> None:
        self.lag = lag
        Fleet.tables += 1
        self.name = f"claims-{Fleet.tables}"
        self.dynamodb.create_table(
            TableName=self.name,
            KeySchema=[{"AttributeName": "slot", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "slot", "AttributeType": "S"}],
            BillingMode="PAY_PER_REQUEST",
        )
        self.now = 1_800_000_000.0
        self.states: dict[str, str] = {}
        self.launched: dict[str, float] = {}
        self.terminated: dict[str, float] = {}
        self.skew: dict[str, int] = {}
        self.actors: dict[str, Actor] = {}
        # Who has wg0 up, and in which slot: what must never be twice.
        self.holding: dict[str, str] = {}
        self.remembered: dict[str, str] = {}

    def ec2(self, instances: Sequence[str]) -> Mapping[str, str]:
        """EC2's view: late for new instances, forgetful of those long gone."""
        seen = {}
        for name in instances:
            is_new = self.lag and self.now - self.launched[name] < LISTING_SECONDS
            is_old = name in self.terminated and self.now - self.terminated[name] > 3600
            if not is_new and not is_old:
                seen[name] = self.states[name]
        return seen

    def boot(self, name: str) -> None:
        def work(actor: Actor) -> str | None:
            table = SteppedTable(self.dynamodb, self.name, actor)
            while True:
                try:
                    return claim_slot(
                        table,
                        SLOTS,
                        name,
                        states_of=lambda names: dict(actor.request(lambda: self.ec2(names))),
                        clock=lambda: self.now + self.skew[name],
                    )
                except ThrottledError:
                    continue
                except NoFreeSlotError:
                    return None

        self.actors[name] = Actor(work)

    def settle(self, name: str) -> None:
        actor = self.actors[name]
        if not actor.is_finished:
            return
        del self.actors[name]
        if isinstance(actor.error, Crashed):
            self.states[name] = "crashed"
            return
        if actor.error is not None:
            raise actor.error
        if actor.result is None:
            return
        self.holding[name] = actor.result
        if name in self.remembered:
            assert actor.result == self.remembered[name], "a reboot lost its slot"
        self.remembered[name] = actor.result

    def finish(self, name: str) -> None:
        while name in self.actors:
            self.actors[name].step(Fate.DONE)
            self.settle(name)

    @precondition(lambda self: len(self.states) < 12)
    @rule(
        skew=st.integers(-CLOCK_SKEW_SECONDS, CLOCK_SKEW_SECONDS),
        is_alone=st.booleans(),
    )
    def launch(self, skew: int, is_alone: bool) -> None:
        name = f"i-{len(self.states):017x}"
        self.states[name] = "running"
        self.launched[name] = self.now
        self.skew[name] = skew
        self.boot(name)
        if is_alone:
            self.finish(name)

    @precondition(lambda self: self.actors)
    @rule(data=st.data(), fate=st.sampled_from([Fate.DONE] * 6 + list(Fate)))
    def request(self, data: st.DataObject, fate: Fate) -> None:
        name = data.draw(st.sampled_from(sorted(self.actors)))
        self.actors[name].step(fate)
        self.settle(name)

    @precondition(lambda self: self.holding)
    @rule(data=st.data(), is_alone=st.booleans())
    def reboot(self, data: st.DataObject, is_alone: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.holding)))
        del self.holding[name]
        self.boot(name)
        if is_alone:
            self.finish(name)

    @precondition(lambda self: "crashed" in self.states.values())
    @rule(data=st.data(), comes_back=st.booleans())
    def end_of_crash(self, data: st.DataObject, comes_back: bool) -> None:
        crashed = sorted(name for name, state in self.states.items() if state == "crashed")
        name = data.draw(st.sampled_from(crashed))
        if comes_back:
            self.states[name] = "running"
            self.boot(name)
        else:
            self.states[name] = "terminated"
            self.terminated[name] = self.now

    @precondition(lambda self: self.holding)
    @rule(data=st.data())
    def die_silently(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.holding)))
        del self.holding[name]
        self.states[name] = "crashed"

    @precondition(lambda self: self.holding)
    @rule(data=st.data())
    def begin_to_shut_down(self, data: st.DataObject) -> None:
        """EC2 says shutting-down while the member still ends its requests."""
        self.states[data.draw(st.sampled_from(sorted(self.holding)))] = "shutting-down"

    @precondition(lambda self: self.holding)
    @rule(data=st.data(), is_released=st.booleans())
    def leave(self, data: st.DataObject, is_released: bool) -> None:
        """The tunnel goes first, then the claim; the release may never arrive."""
        name = data.draw(st.sampled_from(sorted(self.holding)))
        slot = self.holding.pop(name)
        if is_released:
            assert ClaimTable(self.dynamodb, self.name).release(slot, name)
        self.states[name] = "terminated"
        self.terminated[name] = self.now

    @rule(seconds=st.sampled_from([1, 60, LISTING_SECONDS, UNKNOWN_OWNER_SECONDS + 2000]))
    def pass_time(self, seconds: int) -> None:
        self.now += seconds

    @rule(lag=st.booleans())
    def change_listing(self, lag: bool) -> None:
        self.lag = lag

    @invariant()
    def no_slot_is_held_twice(self) -> None:
        held = list(self.holding.values())
        assert len(held) == len(set(held)), f"a slot is held twice: {self.holding}"

    def teardown(self) -> None:
        if not hasattr(self, "name"):
            return
        self.lag = False
        for name in list(self.actors):
            self.finish(name)
        self.no_slot_is_held_twice()
        claims = ClaimTable(self.dynamodb, self.name).claims()
        for name, slot in self.holding.items():
            assert claims[slot].instance == name, f"{name} holds {slot} without its claim"
        # Whatever happened before: as soon as EC2 says so, the claims of the dead serve again.
        for name in self.states:
            if name not in self.holding:
                self.states[name] = "terminated"
                self.terminated[name] = self.now
        for number in range(len(SLOTS) - len(self.holding)):
            name = f"i-late-{number}"
            self.states[name], self.launched[name], self.skew[name] = "running", self.now, 0
            self.boot(name)
            self.finish(name)
        claims = ClaimTable(self.dynamodb, self.name).claims()
        living = {name: claim.slot for claim in claims.values() for name in [claim.instance]}
        assert living == self.holding, "claims differ from the living"
        self.dynamodb.delete_table(TableName=self.name)


@contextmanager
def made_up_aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "made-up")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with mock_aws():
        yield boto3.client("dynamodb", region_name="eu-central-1")


def test_any_interleaving_keeps_slots_apart_and_finds_the_claims_of_the_dead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with made_up_aws(monkeypatch) as dynamodb:
        Fleet.dynamodb = dynamodb
        run_state_machine_as_test(
            Fleet,
            settings=settings(
                max_examples=30,
                stateful_step_count=40,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
