"""Compares the preview of a fleet of 10 members with that of one of 1000: resources and time.

The stacks are the lab's with another fleet block, secrets and state of their own. They are only
previewed, never applied; the lab's AWS API answers their look-ups. Nothing of them stays.
"""

import argparse
import copy
import tempfile
from pathlib import Path
from typing import Any, Final

import yaml

from benchmarks import measuring
from benchmarks.measuring import Measurement, Stack
from lab import commands, paths, stack
from lab.namespace import Namespace
from plan.mesh import plan_fleet
from settings import validate

AIM: Final = 1.2
SIZES: Final = (10, 1000)
MESH_RANGE: Final = "10.100.0.0/16"
BLOCK_START: Final = "10.100.8.0"
"""Aligned for every block up to /21, and clear of the core's addresses."""


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.slots", description=__doc__)
    parser.add_argument("--repetitions", type=int, default=3, metavar="N")
    options = parser.parse_args()

    namespace = measuring.lab_namespace()
    with tempfile.TemporaryDirectory() as directory:
        stacks, slots = {}, {}
        measuring.link_project(Path(directory))
        for size in SIZES:
            stacks[size], slots[size] = _stack(namespace, Path(directory), size)
        runs: dict[int, list[Measurement]] = {size: [] for size in SIZES}
        for number in range(-1, options.repetitions):
            for size in SIZES:
                run = stacks[size].pulumi("preview")
                # The first round fills the caches of disk and Python.
                if number >= 0:
                    runs[size].append(run)
                    print(f"{number + 1} {slots[size]:5} slots {run.seconds:.2f} s", flush=True)

    few, many = SIZES
    counts = {size: measuring.resources(runs[size][-1].output) for size in SIZES}
    totals = {size: sum(counts[size].values()) for size in SIZES}
    result = measuring.median_ratio(runs[many], runs[few], str(slots[many]), str(slots[few]))
    print(
        f"resources {totals[few]} and {totals[many]}, preview time ratio {result['ratio']:.2f} "
        f"(aim: at most {AIM:g})"
    )
    figure = measuring.series_plot(
        {f"{slots[size]} slots\n{totals[size]} resources": runs[size] for size in SIZES},
        f"Preview of a new stack: ratio {result['ratio']:.2f} (aim: at most {AIM:g})",
    )
    measuring.keep(
        "slots",
        {
            "runs": {slots[size]: [run.numbers() for run in runs[size]] for size in SIZES},
            "max_size": {slots[size]: size for size in SIZES},
            "resources": {slots[size]: counts[size] for size in SIZES},
            **result,
            "aim_ratio_at_most": AIM,
        },
        figure,
    )


def _stack(namespace: Namespace, directory: Path, size: int) -> tuple[Stack, int]:
    """A stack for a fleet of that size, and the number of slots its program computes."""
    key = f"{stack.PROJECT_NAME}:settings"
    document: dict[str, Any] = copy.deepcopy(stack.settings_document()[key])
    document.setdefault("mesh", {})["range"] = MESH_RANGE
    # The smallest block with room for both key generations.
    block = f"{BLOCK_START}/{32 - (2 * size - 1).bit_length()}"
    for fleet in document["fleets"].values():
        fleet |= {"max-size": size, "block": block}
    settings = validate(document)
    slots = sum(
        len(plan_fleet(name, fleet, settings.mesh.range).slots)
        for name, fleet in settings.fleets.items()
    )
    name = f"slots-{size}"
    file = directory / f"Pulumi.{name}.yaml"
    file.write_text(yaml.safe_dump({"config": {key: document}}))
    one = measuring.scratch_stack(namespace, directory, name)
    secrets = paths.ROOT / "scripts" / "secrets"
    private_key = directory / f"{name}-key"
    commands.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", private_key])
    for secret, value in {
        "mesh-seed": commands.run([secrets, "new-seed"]),
        "ssh-private-key": private_key.read_text(),
        "database-password": commands.run([secrets, "new-password"]),
        "fleet-database-password": commands.run([secrets, "new-password"]),
    }.items():
        one.pulumi("config", "set", "--secret", secret, stdin=value)
    return one, slots


if __name__ == "__main__":
    measuring.run_as_program(main)
