"""Compares a `pulumi up` of the lab's stack that changes nothing with that of an empty program.

The empty program's is the floor: engine and language host alone. Both run inside the lab, in
turn. It also counts the SSH connections the core's machines accepted meanwhile.
"""

import argparse
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks import measuring
from benchmarks.measuring import Measurement, Stack
from lab import paths, stack
from lab.errors import LabError
from lab.namespace import Namespace
from settings import validate

AIM: Final = 3.0
_ACCEPTED: Final = "sudo -n journalctl --unit ssh --boot --no-pager --grep '^Accepted ' --quiet"


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.noop_up", description=__doc__)
    parser.add_argument(
        "--preview", action="store_true", help="time `pulumi preview` and change nothing at all"
    )
    parser.add_argument("--repetitions", type=int, default=5, metavar="N")
    options = parser.parse_args()

    namespace = measuring.lab_namespace()
    words = ["preview"] if options.preview else ["up", "--yes", "--skip-preview"]
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        full = measuring.lab_stack(namespace, Path(one))
        # It also fills the caches of disk and Python, so it is no measurement.
        pending = _changes(full.pulumi("preview"))
        if pending and not options.preview:
            message = (
                f"the lab's stack has changes to make ({_counted(pending)}), so an up would not be "
                "a no-op, and would make them. Run scripts/lab up first, or take --preview."
            )
            raise LabError(message)
        empty = _empty(namespace, Path(other))
        empty.pulumi("up", "--yes", "--skip-preview")
        before = _accepted(namespace)
        runs: dict[str, list[Measurement]] = {"lab": [], "empty": []}
        for number in range(options.repetitions):
            for name, stack_of_it in (("lab", full), ("empty", empty)):
                runs[name].append(stack_of_it.pulumi(*words))
                print(f"{number + 1} {name:5} {runs[name][-1].seconds:.2f} s", flush=True)
        after = _accepted(namespace)

    result = measuring.median_ratio(runs["lab"], runs["empty"], "lab", "empty")
    # Looking is a connection too: each look finds its own.
    opened = {node: after[node] - before[node] - 1 for node in before}
    changes = _changes(runs["lab"][-1])
    print(f"ratio {result['ratio']:.2f} (aim: at most {AIM:g}); SSH connections: {opened}")
    what = f"pulumi {words[0]}"
    figure = measuring.series_plot(
        {
            f"{what}, lab's stack\n({sum(measuring.resources(runs['lab'][-1].output).values())} "
            "resources)": runs["lab"],
            f"{what}, empty program\n(the floor)": runs["empty"],
        },
        f"Nothing to change: {result['ratio']:.2f} times the floor (aim: at most {AIM:g})",
    )
    measuring.keep(
        "noop_up",
        {
            "runs": {name: [run.numbers() for run in many] for name, many in runs.items()},
            **result,
            "aim_ratio_at_most": AIM,
            "resources": measuring.resources(runs["lab"][-1].output),
            "pending_changes": changes,
            "ssh_accepted_before": before,
            "ssh_accepted_after": after,
            "ssh_connections_opened": opened,
        },
        figure,
    )


def _empty(namespace: Namespace, directory: Path) -> Stack:
    # YAML reads JSON.
    project = {
        "name": "empty",
        "runtime": {"name": "python", "options": {"virtualenv": str(paths.VIRTUAL_ENVIRONMENT)}},
    }
    (directory / "Pulumi.yaml").write_text(json.dumps(project))
    (directory / "__main__.py").write_text("")
    return measuring.scratch_stack(namespace, directory, "floor")


def _changes(run: Measurement) -> dict[str, int]:
    counts = measuring.resources(run.output)
    return {what: number for what, number in counts.items() if what != "unchanged"}


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {what}" for what, number in counts.items())


def _accepted(namespace: Namespace) -> dict[str, int]:
    """SSH connections each core machine accepted since it booted, the one that asks included."""
    settings: Any = validate(stack.settings_document()[f"{stack.PROJECT_NAME}:settings"])
    counts = {}
    for node in settings.core.nodes:
        lines = namespace.run(["ssh", "-o", "BatchMode=yes", node.name, _ACCEPTED])
        counts[node.name] = len(lines.splitlines())
    return counts


if __name__ == "__main__":
    measuring.run_as_program(main)
