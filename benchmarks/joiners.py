"""Compares the claim of a slot by 1, 4 and 64 instances that join at the same moment.

The members' own code claims from moto, in virtual time: each request takes a drawn latency, is done
halfway through it, and requests are done one at a time in the order of that. What is reported is
each joiner's own clock, so neither moto's speed nor this machine's is in it.
"""

import argparse
import heapq
import random
import statistics
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from benchmarks import measuring
from benchmarks.pretended_aws import REGION, make_claim_table, pretended_aws
from cloud import Cloud
from lab.stepping import Actor, Fate
from system import System

LATENCY_MILLISECONDS: Final = (10.0, 30.0)
"""Bounds of one request's latency, drawn evenly. An assumption: no AWS was measured."""
FEWEST_JOINS: Final = 400
"""Of any case: the mean of what the others are compared with is then known to about a percent."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """How many join at once, and for how many slots."""

    joiners: int
    slots: int

    def __str__(self) -> str:
        return f"{self.joiners} for {self.slots}"


CASES: Final = tuple(
    Case(joiners=joiners, slots=slots)
    for joiners, slots in ((1, 128), (4, 128), (64, 128), (64, 64))
)
"""The first is what the others are compared with; the last leaves nobody a choice."""
TICKS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


@dataclass(frozen=True, kw_only=True)
class Join:
    """One instance's claim, from its first request to its last answer."""

    slot: str
    virtual_milliseconds: float
    requests: Mapping[str, int]
    """Numbers of HTTP requests by operation."""

    @property
    def request_count(self) -> int:
        """Requests of any kind."""
        return sum(self.requests.values())

    @property
    def lost_puts(self) -> int:
        """Puts that found the slot taken by somebody quicker."""
        return self.requests["PutItem"] - 1


_thread = threading.local()


def tell(_service: str, operation: str) -> None:
    """Stop a joiner's thread before its request, until the simulation lets it go on."""
    if hasattr(_thread, "actor"):
        _thread.requests[operation] += 1
        _thread.actor.request(lambda: None)


def simulate(clients: Mapping[str, Any], case: Case, seed: int) -> list[Join]:
    """Let instances claim slots of an empty table, all beginning at virtual time zero.

    Parameters:
        clients: of `pretended_aws(tell)`.
        seed: decides instance ids and latencies; equal seeds give equal joins.
    """
    draw = random.Random(seed)  # noqa: S311
    table = f"claims-{case.joiners}-{case.slots}-{seed}"
    make_claim_table(clients["dynamodb"], table)
    slots = [f"frankfurt-0-{index:03}" for index in range(case.slots)]
    requests: list[Counter[str]] = [Counter() for _ in range(case.joiners)]

    def start(number: int) -> Actor:
        instance = f"i-{draw.getrandbits(68):017x}"

        def claim(actor: Actor) -> str:
            _thread.actor, _thread.requests = actor, requests[number]
            return Cloud(
                region=REGION,
                endpoint_url=None,
                table=table,
                instance=instance,
                system=System(),
                clients=clients,
            ).claim(slots)

        return Actor(claim)

    actors = [start(number) for number in range(case.joiners)]
    clocks = [0.0] * case.joiners
    due: list[tuple[float, int]] = []

    def send(number: int) -> None:
        latency = draw.uniform(*LATENCY_MILLISECONDS)
        heapq.heappush(due, (clocks[number] + latency / 2, number))
        clocks[number] += latency

    for number in range(case.joiners):
        send(number)
    while due:
        _, number = heapq.heappop(due)
        actors[number].step(Fate.DONE)
        if not actors[number].is_finished:
            send(number)

    joins = [
        Join(slot=_slot(actor), virtual_milliseconds=clock, requests=done)
        for actor, clock, done in zip(actors, clocks, requests, strict=True)
    ]
    if len({join.slot for join in joins}) != case.joiners:
        message = f"a slot is held twice: {case}, seed {seed}"
        raise RuntimeError(message)
    return joins


def _slot(actor: Actor) -> str:
    if actor.result is None:
        raise actor.error or RuntimeError
    return actor.result


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.joiners", description=__doc__)
    parser.add_argument(
        "--repetitions", type=int, default=20, metavar="N", help="of every case, at least"
    )
    options = parser.parse_args()

    runs: dict[Case, list[list[Join]]] = {}
    with pretended_aws(tell) as clients:
        for case in CASES:
            seeds = range(max(options.repetitions, FEWEST_JOINS // case.joiners))
            runs[case] = [simulate(clients, case, seed) for seed in seeds]
    summaries = {case: _summary([join for run in runs[case] for join in run]) for case in CASES}
    base = summaries[CASES[0]]
    for case, summary in summaries.items():
        ratios = {
            name: round(summary[name] / base[name], 3)
            for name in (
                "median_virtual_milliseconds",
                "mean_virtual_milliseconds",
                "mean_requests",
            )
        }
        summary["ratio_to_one_joiner"] = ratios
        print(
            f"{case!s:>10} slots: median {summary['median_virtual_milliseconds']:.1f} ms, "
            f"mean {summary['mean_virtual_milliseconds']:.1f}, "
            f"max {summary['max_virtual_milliseconds']:.0f} (virtual); "
            f"{summary['mean_requests']:.2f} requests, {summary['mean_lost_puts']:.2f} lost puts "
            f"(max {summary['max_lost_puts']}) per joiner; to one joiner: "
            f"median {ratios['median_virtual_milliseconds']:.2f}, "
            f"mean {ratios['mean_virtual_milliseconds']:.2f}"
        )
    measuring.keep(
        "joiners",
        {
            "latency_milliseconds": LATENCY_MILLISECONDS,
            "summaries": {str(case): summary for case, summary in summaries.items()},
            # By seed, beginning with 0.
            "runs": {
                str(case): {
                    "virtual_milliseconds": [
                        [round(join.virtual_milliseconds, 1) for join in run] for run in many
                    ],
                    "lost_puts": [[join.lost_puts for join in run] for run in many],
                    "requests": sum(
                        (Counter(join.requests) for run in many for join in run), Counter[str]()
                    ),
                }
                for case, many in runs.items()
            },
        },
        _plot({case: [join for run in many for join in run] for case, many in runs.items()}),
        in_lab=False,
    )


def _summary(joins: Sequence[Join]) -> dict[str, Any]:
    times = [join.virtual_milliseconds for join in joins]
    counts = [join.request_count for join in joins]
    lost = sorted(join.lost_puts for join in joins)
    return {
        "joins": len(joins),
        "median_virtual_milliseconds": round(statistics.median(times), 1),
        "mean_virtual_milliseconds": round(statistics.mean(times), 1),
        "max_virtual_milliseconds": round(max(times), 1),
        "median_requests": statistics.median(counts),
        "mean_requests": round(statistics.mean(counts), 3),
        "max_requests": max(counts),
        "mean_lost_puts": round(statistics.mean(lost), 3),
        "lost_puts_of_95_percent_at_most": lost[int(0.95 * (len(lost) - 1))],
        "max_lost_puts": lost[-1],
    }


def _plot(joins: Mapping[Case, Sequence[Join]]) -> Figure:
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    figure.suptitle("Claiming a slot at the same moment as others: cost per joiner")
    time, requests = figure.subplots(1, 2)
    _points(time, {case: [j.virtual_milliseconds for j in many] for case, many in joins.items()})
    time.set_ylabel(
        "claim time (virtual milliseconds;\n"
        f"a request takes {LATENCY_MILLISECONDS[0]:g} to {LATENCY_MILLISECONDS[1]:g})"
    )
    _points(requests, {case: [j.request_count for j in many] for case, many in joins.items()})
    requests.set_ylabel("requests to AWS (scans and puts)")
    return figure


def _points(axes: Axes, series: Mapping[Case, Sequence[float]]) -> None:
    """Every joiner as a point, the median and mean of each case as lines."""
    scatter = random.Random(0)  # noqa: S311
    for place, values in enumerate(series.values()):
        across = [place + scatter.uniform(-0.2, 0.2) for _ in values]
        axes.plot(across, values, ".", color="tab:blue", alpha=0.25, markeredgewidth=0)
        for name, value, style in (
            ("median", statistics.median(values), "solid"),
            ("mean", statistics.mean(values), "dotted"),
        ):
            axes.hlines(
                value,
                place - 0.3,
                place + 0.3,
                color="tab:orange",
                linestyle=style,
                label=name if place == 0 else "_",
            )
        axes.annotate(
            f"max {max(values):.0f}",
            (place, max(values)),
            (0, 4),
            ha="center",
            textcoords="offset points",
        )
    axes.set_xticks(range(len(series)), [f"{c.joiners}\nfor {c.slots} slots" for c in series])
    axes.set_xlabel("joiners at once; one point is one joiner")
    # The tail is dozens of times the median.
    axes.set_yscale("log")
    highest = max(max(values) for values in series.values())
    axes.set_yticks([tick for tick in TICKS if tick < highest])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(axis="y", alpha=0.3)
    axes.set_ylim(0.7 * min(min(values) for values in series.values()), 1.5 * highest)
    axes.legend(loc="upper left")


if __name__ == "__main__":
    measuring.run_as_program(main)
