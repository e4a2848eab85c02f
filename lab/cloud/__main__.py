"""Owns the cloud daemon's command line; it runs inside the lab and logs to standard error."""

import argparse
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Final

from lab import image, paths
from lab.cloud.daemon import Cloud, Settings
from lab.commands import run
from lab.errors import LabError
from lab.hypervisor import AWS_NETWORK, Hypervisor, domain_type
from lab.machines import Machines
from lab.namespace import INSIDE_VARIABLE, Namespace

IMAGE_NAME_PREFIX: Final = "fortress-lab-debian-13-"
REGIONS: Final = ("eu-central-1", "eu-west-2", "eu-north-1")


def main() -> int:
    """Run the cloud until SIGTERM or SIGINT.

    Returns:
        The exit status: 0 after a signal, 1 when it could not start.
    """
    parser = argparse.ArgumentParser(prog="python -m lab.cloud", description=__doc__)
    parser.add_argument("--hypervisor", type=Path, default=paths.LAB / "libvirt")
    parser.add_argument("--disks", type=Path, default=paths.LAB / "machines")
    parser.add_argument("--consoles", type=Path, default=paths.LOG)
    parser.add_argument("--memory", type=Path, default=paths.LAB / "cloud" / "memory")
    parser.add_argument("--region", action="append", dest="regions", metavar="REGION")
    options = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    logging.getLogger("lab.cloud").setLevel(logging.INFO)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        cloud = _start(options)
    except (LabError, OSError) as error:
        print(f"the lab's cloud cannot start: {error}", file=sys.stderr)
        return 1
    cloud.run(stop)
    cloud.close()
    return 0


def _start(options: argparse.Namespace) -> Cloud:
    directory = os.environ.get(INSIDE_VARIABLE)
    if directory is None:
        message = f"{INSIDE_VARIABLE} is not set: the cloud runs only inside scripts/lab up."
        raise LabError(message)
    settings = Settings(
        image_name=IMAGE_NAME_PREFIX + image.recipe_hash()[:8],
        regions=options.regions or REGIONS,
        network=AWS_NETWORK.name,
        memory=options.memory,
    )
    run(["ip", "address", "replace", f"{settings.metadata_address}/32", "dev", AWS_NETWORK.bridge])
    built = image.ensure(logging.getLogger("lab.cloud").info)
    machines = Machines(
        Hypervisor(Namespace(Path(directory)), options.hypervisor),
        built,
        domain_type(built),
        options.disks,
        options.consoles,
    )
    return Cloud(machines, settings)


if __name__ == "__main__":
    sys.exit(main())
