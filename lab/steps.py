"""Owns how long things take in the lab: a line for a person, a line of JSON for the benchmarks."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Final

from lab import paths

RECORD: Final = paths.LOG / "steps.jsonl"
"""One object a line: step, seconds, when it ended (at), and whether it succeeded."""


def say(line: str) -> None:
    """Tell the person what happens."""
    print(f"lab: {line}", flush=True)


@contextmanager
def step(name: str) -> Iterator[None]:
    """Announce a step, then say and record how many seconds it took."""
    say(f"{name} ...")
    began = time.monotonic()
    succeeded = False
    try:
        yield
        succeeded = True
    finally:
        seconds = time.monotonic() - began
        entry = {
            "step": name,
            "seconds": round(seconds, 3),
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "succeeded": succeeded,
        }
        RECORD.parent.mkdir(parents=True, exist_ok=True)
        with RECORD.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        say(f"{name}: {'done' if succeeded else 'FAILED'} in {seconds:.1f} s")
