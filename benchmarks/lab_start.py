"""Shows where the time of a cold and of a warm `scripts/lab up` goes, step by step.

It starts nothing: it reads the steps that `scripts/lab up` itself recorded.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from matplotlib.figure import Figure

from benchmarks import measuring
from lab.errors import LabError
from lab.steps import RECORD

FIRST: Final = "Debian packages"
LAST: Final = "first fleet member serves"
NOT_UP: Final = {"machines power off", "namespaces end"}
"""Steps of `scripts/lab down`."""
GAP_SECONDS: Final = 4
"""More than between two steps of one run: the start of an interpreter, and rounded times."""
AIM_MINUTES: Final = {"cold": 15, "warm": 4}


@dataclass(frozen=True)
class Run:
    """The steps of one `up`, as recorded."""

    steps: list[dict[str, Any]] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether it went from the first step to the last and none failed."""
        names = [step["step"] for step in self.steps]
        succeeded = all(step["succeeded"] for step in self.steps)
        return succeeded and names[0] == FIRST and names[-1] == LAST

    @property
    def began(self) -> datetime:
        """Start of its first step."""
        return _began(self.steps[0])

    @property
    def ended(self) -> datetime:
        """End of its last step, in whole seconds as all times of the record."""
        return datetime.fromisoformat(self.steps[-1]["at"])

    @property
    def seconds(self) -> float:
        """From the start of the first step to the end of the last, what lies between included."""
        return (self.ended - self.began).total_seconds()

    def goes_on_with(self, step: Mapping[str, Any]) -> bool:
        """Whether a step follows the last one at once and is not among those that were."""
        gap = abs((_began(step) - self.ended).total_seconds())
        return gap < GAP_SECONDS and step["step"] not in {one["step"] for one in self.steps}


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lab_start", description=__doc__)
    parser.add_argument("--list", action="store_true", help="show the recorded runs and end")
    parser.add_argument("--cold", type=int, metavar="N", help="default: the longest complete run")
    parser.add_argument("--warm", type=int, metavar="M", help="default: the shortest complete run")
    parser.add_argument(
        "--record", type=Path, default=RECORD, help="of another clone; default: this clone's"
    )
    options = parser.parse_args()

    runs = _runs(options.record)
    if options.list:
        for number, run in enumerate(runs):
            state = "complete" if run.complete else f"ended after: {run.steps[-1]['step']}"
            print(f"{number:3} {run.began:%Y-%m-%d %H:%M:%S} {run.seconds:7.1f} s  {state}")
        return
    chosen = {
        "cold": _chosen(runs, options.cold, longest=True),
        "warm": _chosen(runs, options.warm, longest=False),
    }
    for name, number in chosen.items():
        print(f"{name}: run {number}, {runs[number].seconds:.0f} s")
        for step in runs[number].steps:
            print(f"  {step['step']:45} {step['seconds']:8.1f} s")
    measuring.keep(
        "lab_start",
        {
            name: {
                "run": number,
                "complete": runs[number].complete,
                "seconds": round(runs[number].seconds, 1),
                "steps": runs[number].steps,
            }
            for name, number in chosen.items()
        }
        | {"aim_minutes_at_most": AIM_MINUTES},
        _plot({name: runs[number] for name, number in chosen.items()}),
    )


def _runs(record: Path) -> list[Run]:
    if not record.exists():
        message = f"{record} does not exist: run scripts/lab up, which records its steps there."
        raise LabError(message)
    runs: list[Run] = []
    for line in record.read_text().splitlines():
        step = json.loads(line)
        if step["step"] in NOT_UP:
            continue
        # An up that finds another one at work records its first steps among those of the other.
        run = next((run for run in reversed(runs) if run.goes_on_with(step)), None)
        if run is None:
            run = Run()
            runs.append(run)
        run.steps.append(step)
    return runs


def _began(step: Mapping[str, Any]) -> datetime:
    return datetime.fromisoformat(step["at"]) - timedelta(seconds=step["seconds"])


def _chosen(runs: Sequence[Run], number: int | None, *, longest: bool) -> int:
    if number is not None:
        if not 0 <= number < len(runs):
            message = f"there is no run {number}; 0 to {len(runs) - 1} are recorded (--list)."
            raise LabError(message)
        return number
    complete = [place for place, run in enumerate(runs) if run.complete]
    if not complete:
        message = (
            f"none of the {len(runs)} recorded runs is complete ({FIRST} to {LAST}). "
            "Run scripts/lab up to its end, or choose runs with --cold and --warm (--list)."
        )
        raise LabError(message)
    return (max if longest else min)(complete, key=lambda place: runs[place].seconds)


def _plot(chosen: dict[str, Run]) -> Figure:
    figure = Figure(figsize=(10, 6), layout="constrained")
    for place, (name, run) in enumerate(chosen.items(), start=1):
        axes = figure.add_subplot(len(chosen), 1, place)
        names = [step["step"] for step in run.steps]
        seconds = [step["seconds"] for step in run.steps]
        bars = axes.barh(names, seconds)
        axes.bar_label(bars, fmt="%.1f s", padding=3)
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.set_xlabel("wall clock of the step (seconds)")
        axes.set_title(
            f"{name} scripts/lab up: {run.seconds / 60:.1f} minutes in all "
            f"(aim: at most {AIM_MINUTES[name]})"
        )
    return figure


if __name__ == "__main__":
    measuring.run_as_program(main)
