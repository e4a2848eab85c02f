"""Owns what the benchmarks share: facts about the machine, timing `pulumi`, keeping results.

It knows nothing of what is compared, and it never changes the lab.
"""

import json
import os
import platform
import re
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl

mpl.use("Agg")  # No display.

from matplotlib.figure import Figure

from lab import paths
from lab.engine import toolchain
from lab.errors import LabError
from lab.namespace import Namespace, exclusive
from lab.stack import STACK, STACK_FILE, environment
from revision import revision

RESULTS: Final = paths.ROOT / "benchmarks" / "results"

_GUESTS: Final = {"kvm": "KVM", "qemu": "TCG"}
_COUNT: Final = re.compile(r"^ {4}(?:[-+~]+ )?(\d+) (unchanged|to [a-z]+|[a-z]+d)$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One command run to its end."""

    seconds: float
    cpu_seconds: float
    """Of the command and all processes it started and awaited; less shaken by what else runs."""
    output: str

    def numbers(self) -> dict[str, float]:
        """What is kept of it."""
        return {"seconds": round(self.seconds, 3), "cpu_seconds": round(self.cpu_seconds, 3)}


@dataclass(frozen=True, kw_only=True)
class Stack:
    """A stack that is driven inside the lab, by the lab's own engine and language host."""

    namespace: Namespace
    directory: Path
    name: str
    environment: Mapping[str, str]

    def pulumi(self, *words: str, stdin: str = "") -> Measurement:
        """Run a `pulumi` command on this stack and time it.

        Raises:
            LabError: it failed; the message ends with what it printed.
        """
        command = [f"--chdir={self.directory}", "pulumi", *words, "--stack", self.name]
        before, began = _cpu_seconds(), time.monotonic()
        done = subprocess.run(
            self.namespace.command(["env", *command, "--non-interactive", "--color", "never"]),
            env=self.environment,
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        seconds = time.monotonic() - began
        if done.returncode != 0:
            message = f"pulumi {shlex.join(words)} of stack {self.name} failed:\n{done.stdout}"
            raise LabError(message)
        return Measurement(seconds=seconds, cpu_seconds=_cpu_seconds() - before, output=done.stdout)


def lab_namespace() -> Namespace:
    """The namespaces of this clone's lab.

    Raises:
        LabError: it is not running, or about to change, which would be measured too.
    """
    with exclusive(
        paths.LAB / "lock", "scripts/lab up or down is at work in this clone: wait for its end."
    ):
        pass
    namespace = Namespace(paths.RUN)
    namespace.command([])
    return namespace


def link_project(directory: Path) -> None:
    """Make a project directory of the program as it is now.

    The lab's own one is as it was at the last `scripts/lab up`.
    """
    for entry in paths.ROOT.iterdir():
        if entry.name not in {".git", ".lab", STACK_FILE}:
            (directory / entry.name).symlink_to(entry)


def lab_stack(namespace: Namespace, directory: Path) -> Stack:
    """The lab's own stack.

    Parameters:
        directory: an empty one, for the project.
    """
    link_project(directory)
    shutil.copy(paths.PROJECT / STACK_FILE, directory)
    return Stack(namespace=namespace, directory=directory, name=STACK, environment=environment())


def scratch_stack(namespace: Namespace, directory: Path, name: str) -> Stack:
    """A new stack with state and passphrase of its own, gone with its directory.

    Parameters:
        directory: holds a Pulumi.yaml.
    """
    state = directory / ".scratch"
    state.mkdir(exist_ok=True)
    passphrase = state / "passphrase"
    passphrase.write_text("of a stack that is never applied")
    stack = Stack(
        namespace=namespace,
        directory=directory,
        name=name,
        environment=environment()
        | {
            "PULUMI_BACKEND_URL": f"file://{state}",
            "PULUMI_CONFIG_PASSPHRASE_FILE": str(passphrase),
        },
    )
    stack.pulumi("stack", "init", "--no-select", "--secrets-provider", "passphrase")
    return stack


def resources(output: str) -> dict[str, int]:
    """Numbers of resources in the summary that ends an `up` or a preview, by what became of them.

    Raises:
        LabError: there is no summary.
    """
    _, heading, summary = output.rpartition("\nResources:\n")
    counts = {what: int(number) for number, what in _COUNT.findall(summary)}
    if not heading or not counts:
        message = f"pulumi printed no summary of resources:\n{output}"
        raise LabError(message)
    return counts


def median_ratio(
    one: Sequence[Measurement], other: Sequence[Measurement], numerator: str, denominator: str
) -> dict[str, Any]:
    """Medians of two series and their ratios, wall clock and processor."""
    seconds = [statistics.median(run.seconds for run in runs) for runs in (one, other)]
    cpu = [statistics.median(run.cpu_seconds for run in runs) for runs in (one, other)]
    return {
        "median_seconds": {numerator: round(seconds[0], 3), denominator: round(seconds[1], 3)},
        "median_cpu_seconds": {numerator: round(cpu[0], 3), denominator: round(cpu[1], 3)},
        "ratio": round(seconds[0] / seconds[1], 3),
        "ratio_cpu": round(cpu[0] / cpu[1], 3),
    }


def series_plot(series: Mapping[str, Sequence[Measurement]], title: str) -> Figure:
    """Every single run as a point, every median as a line, by series."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for place, runs in enumerate(series.values()):
        seconds = [run.seconds for run in runs]
        axes.plot([place] * len(seconds), seconds, "o", color="tab:blue", alpha=0.6)
        median = statistics.median(seconds)
        axes.hlines(median, place - 0.2, place + 0.2, color="tab:orange")
        axes.annotate(
            f"median {median:.2f} s", (place + 0.22, median), va="center", color="tab:orange"
        )
    axes.set_xticks(range(len(series)), list(series))
    axes.set_xlim(-0.5, len(series) - 0.2)
    axes.set_ylim(0, 1.15 * max(run.seconds for runs in series.values() for run in runs))
    axes.set_ylabel("wall clock (seconds)")
    axes.set_xlabel("one point is one run")
    axes.set_title(title)
    return figure


def keep(name: str, result: Mapping[str, Any], figure: Figure, *, in_lab: bool = True) -> None:
    """Write results/NAME.json and results/NAME.png.

    Parameters:
        result: raw numbers and what was computed of them; date, command and machine are added.
        in_lab: whether the lab's guests and toolchain took part, and so are worth recording.
    """
    RESULTS.mkdir(parents=True, exist_ok=True)
    words = shlex.join(["python", "-m", f"benchmarks.{name}", *sys.argv[1:]])
    document = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": words,
        "machine": _machine() | (_lab() if in_lab else {}),
        **result,
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    figure.savefig(RESULTS / f"{name}.png", dpi=110)
    print(f"kept: benchmarks/results/{name}.json and .png")


def run_as_program(main: Callable[[], None]) -> None:
    """Run a benchmark; what a person can mend is one message."""
    try:
        main()
    except LabError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted: nothing was kept.")


def _machine() -> dict[str, Any]:
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cores": os.cpu_count(),
        "memory_gib": round(memory_bytes / 1024**3, 1),
        "load_average_at_end": [round(load, 1) for load in os.getloadavg()],
        "system": platform.freedesktop_os_release()["PRETTY_NAME"],
        "kernel": platform.release(),
        "python": platform.python_version(),
        "revision": revision(paths.ROOT),
    }


def _lab() -> dict[str, Any]:
    probe = paths.CACHE / "domain-type.json"
    domain_type = json.loads(probe.read_text())["domain-type"] if probe.exists() else ""
    return {
        "guests_run_under": _GUESTS.get(domain_type, "unknown"),
        "toolchain": [part._asdict() for part in toolchain.report()],
    }


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
