"""The simulation of simultaneous joiners: the order of its requests and the joiners' own clocks."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from benchmarks.claim_cost import item_bytes, read_units
from benchmarks.joiners import LATENCY_MILLISECONDS, Case, simulate, tell
from benchmarks.pretended_aws import pretended_aws
from claims import PUTS_PER_LOOK


@pytest.fixture(scope="module")
def clients() -> Iterator[Mapping[str, Any]]:
    with pretended_aws(tell) as made:
        yield made


def test_every_joiner_has_a_slot_and_a_clock_that_is_the_sum_of_its_own_requests(
    clients: Mapping[str, Any],
) -> None:
    joins = simulate(clients, Case(joiners=8, slots=8), seed=1)
    assert len({join.slot for join in joins}) == 8
    assert sum(join.lost_puts for join in joins) > 0
    for join in joins:
        shortest, longest = (bound * join.request_count for bound in LATENCY_MILLISECONDS)
        assert shortest <= join.virtual_milliseconds <= longest


def test_joiners_that_begin_together_all_see_the_table_empty(clients: Mapping[str, Any]) -> None:
    # A put is done no earlier than one and a half of the shortest latency, a scan no later than
    # half of the longest, and those are equal: nobody has to ask EC2 for anybody's state.
    joins = simulate(clients, Case(joiners=8, slots=16), seed=2)
    at_first = [join for join in joins if join.lost_puts < PUTS_PER_LOOK]
    assert len(at_first) > 4
    for join in at_first:
        assert join.requests["Scan"] == 1
        assert "DescribeInstances" not in join.requests


def test_equal_seeds_give_equal_joins(clients: Mapping[str, Any]) -> None:
    case = Case(joiners=4, slots=4)
    one = simulate(clients, case, seed=3)
    clients["dynamodb"].delete_table(TableName="claims-4-4-3")
    assert simulate(clients, case, seed=3) == one


def test_an_item_is_as_large_as_dynamodb_counts_it() -> None:
    item = {"slot": {"S": "frankfurt-0-03"}, "claimed_at": {"N": "1800000000"}}
    assert item_bytes(item) == 4 + 14 + 10 + 5 + 1
    assert [read_units([item] * count) for count in (0, 120, 121)] == [1, 1, 2]
