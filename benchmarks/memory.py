"""Samples the lab's memory: the proportional set size of every process in its namespaces.

That is guests, libvirtd, the cloud, the engine and its plugins. A page that several processes
share counts once. Without a command it samples for a minute, with one as long as that runs.
"""

import argparse
import re
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from matplotlib.figure import Figure

from benchmarks import measuring
from lab import paths
from lab.errors import LabError
from lab.namespace import Namespace

AIM_GIB: Final = 8.0
_KIB_PER_GIB: Final = 1024**2
_PSS: Final = re.compile(r"^Pss: +(\d+) kB$", re.MULTILINE)
_GUEST: Final = re.compile(r"-name\0guest=([^,]+)")


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.memory",
        description=__doc__,
        usage="%(prog)s [-h] [--seconds S] [--interval-seconds S] [-- COMMAND ...]",
    )
    parser.add_argument("--seconds", type=float, default=60.0, metavar="S")
    parser.add_argument("--interval-seconds", type=float, default=1.0, metavar="S")
    parser.add_argument("words", nargs="*", metavar="COMMAND")
    options = parser.parse_args()

    samples, status = _sampled(options.words, options.seconds, options.interval_seconds)
    totals = [sum(parts.values()) for _, parts in samples]
    if not any(totals):
        message = "the lab was not running: start it with scripts/lab up, or give that as COMMAND."
        raise LabError(message)
    peak = max(range(len(totals)), key=totals.__getitem__)
    peak_gib = totals[peak] / _KIB_PER_GIB
    print(f"peak {peak_gib:.2f} GiB (aim: at most {AIM_GIB:g}) after {samples[peak][0]:.0f} s")
    for part, kib in samples[peak][1].most_common():
        print(f"  {part:22} {kib / _KIB_PER_GIB:6.2f} GiB")
    measuring.keep(
        "memory",
        {
            "peak_gib": round(peak_gib, 3),
            "peak_parts_kib": dict(samples[peak][1].most_common()),
            "median_gib": round(sorted(totals)[len(totals) // 2] / _KIB_PER_GIB, 3),
            "aim_gib_at_most": AIM_GIB,
            "command_status": status,
            "samples": [
                {"seconds": round(seconds, 1), "pss_kib": dict(parts)} for seconds, parts in samples
            ],
        },
        _plot(samples, peak_gib),
    )


def _sampled(
    words: Sequence[str], seconds: float, interval_seconds: float
) -> tuple[list[tuple[float, Counter[str]]], int | None]:
    """Samples as (seconds since the start, KiB by part), and the command's exit status."""
    namespace = Namespace(paths.RUN)
    command = subprocess.Popen(words) if words else None
    samples = []
    began = time.monotonic()
    try:
        while True:
            elapsed = time.monotonic() - began
            samples.append((elapsed, _sample(namespace)))
            if command is None:
                if elapsed >= seconds:
                    return samples, None
                time.sleep(interval_seconds)
                continue
            try:
                return samples, command.wait(interval_seconds)
            except subprocess.TimeoutExpired:
                continue
    finally:
        if command is not None and command.poll() is None:
            command.terminate()
            command.wait()


def _sample(namespace: Namespace) -> Counter[str]:
    parts: Counter[str] = Counter()
    holder = namespace.holder()
    if holder is None:
        return parts
    processes = Path("/proc")
    lab = (processes / str(holder.pid) / "ns" / "pid").readlink()
    for process in processes.glob("[0-9]*"):
        try:
            if (process / "ns" / "pid").readlink() != lab:
                continue
            pss = _PSS.search((process / "smaps_rollup").read_text())
            words = (process / "cmdline").read_text(errors="replace")
        except OSError:
            # It has ended meanwhile.
            continue
        if pss is not None:
            parts[_part(words)] += int(pss[1])
    return parts


def _part(words: str) -> str:
    """What a process belongs to, by its command line."""
    guest = _GUEST.search(words)
    if guest is not None:
        return "fleet's guests" if guest[1].startswith("i-") else f"guest {guest[1]}"
    if "lab.cloud" in words:
        return "cloud"
    if words.startswith("libvirtd"):
        return "libvirtd"
    if any(mark in words for mark in ("pulumi", "lab.engine", "lab.plugins")):
        return "pulumi and plugins"
    return "other"


def _plot(samples: Sequence[tuple[float, Counter[str]]], peak_gib: float) -> Figure:
    largest: Counter[str] = Counter()
    for _, parts in samples:
        largest |= parts
    names = [name for name, _ in largest.most_common()]
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.stackplot(
        [seconds for seconds, _ in samples],
        [[parts[name] / _KIB_PER_GIB for _, parts in samples] for name in names],
        labels=names,
    )
    axes.axhline(AIM_GIB, color="black", linestyle="--", label=f"aim: {AIM_GIB:g} GiB")
    axes.set_xlabel("time since the start of sampling (seconds)")
    axes.set_ylabel("proportional set size (GiB)")
    axes.set_ylim(0, max(AIM_GIB, peak_gib) * 1.1)
    axes.set_title(f"Memory of the lab: peak {peak_gib:.2f} GiB")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


if __name__ == "__main__":
    measuring.run_as_program(main)
