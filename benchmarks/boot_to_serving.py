"""Compares a member's boot until the door sends it requests with an empty boot of the same image.

Both are instances of Auto Scaling Groups of the lab's cloud, started in turn on an idle lab: the
fleet's own group, and one whose user-data asks cloud-init for nothing. The clock of each begins
when its machine is switched on. The group for comparison is removed at the end.
"""

import argparse
import base64
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from matplotlib.figure import Figure

from benchmarks import measuring
from lab import paths
from lab.driving import DATABASE_NODE, GROUP, Lab, await_condition
from lab.namespace import wait_until

AIM: Final = 1.15
EMPTY: Final = "benchmark-empty"
LIMIT_SECONDS: Final = 600

_AWAIT_MEMBERS: Final = """\
import socket, sys, time
def members():
    with socket.socket(socket.AF_UNIX) as door:
        door.connect("/run/haproxy/admin.sock")
        door.sendall(b"show stat\\n")
        rows = door.makefile().readlines()
    servers = [row for row in rows if row.startswith("burst_") and ",BACKEND," not in row]
    return sum(",UP," in row for row in servers)
while members() < int(sys.argv[1]):
    time.sleep(0.2)
"""
"""One connection to the door's node, and one process on it, until the door has so many members.

Programs started five times a second slowed the booting machine on a host of two processors: it came
to cloud-init after 36 s and not 28.
"""


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.boot_to_serving", description=__doc__
    )
    parser.add_argument("--repetitions", type=int, default=3, metavar="N")
    options = parser.parse_args()

    measuring.lab_namespace()
    lab = Lab()
    members = lab.serving_count()
    template = _empty_group(lab)
    runs: list[dict[str, Any]] = []
    try:
        for number in range(options.repetitions):
            run = {"member": _member_seconds(lab, members), "empty": _empty_seconds(lab)}
            runs.append(run)
            print(
                f"{number + 1} member {run['member']['serving']:.1f} s, "
                f"empty {run['empty']['cloud_init_ended']:.1f} s",
                flush=True,
            )
    finally:
        _remove(lab, template)
        lab.set_desired(members)
    serving = [run["member"]["serving"] for run in runs]
    empty = [run["empty"]["cloud_init_ended"] for run in runs]
    ratio = statistics.median(serving) / statistics.median(empty)
    print(f"boot to serving : empty boot {ratio:.2f} (aim: at most {AIM:g})")
    measuring.keep(
        "boot_to_serving", {"ratio": round(ratio, 3), "aim": AIM, "runs": runs}, _plot(runs, ratio)
    )


def _empty_group(lab: Lab) -> str:
    own = lab.group()
    version = lab.aws(
        "ec2",
        "describe_launch_template_versions",
        LaunchTemplateId=own["LaunchTemplate"]["LaunchTemplateId"],
        Versions=["$Latest"],
    )["LaunchTemplateVersions"][0]["LaunchTemplateData"]
    template = lab.aws(
        "ec2",
        "create_launch_template",
        LaunchTemplateName=EMPTY,
        LaunchTemplateData={
            "ImageId": version["ImageId"],
            "InstanceType": version["InstanceType"],
            "UserData": base64.b64encode(b"#cloud-config\n{}\n").decode(),
        },
    )["LaunchTemplate"]["LaunchTemplateId"]
    lab.aws(
        "autoscaling",
        "create_auto_scaling_group",
        AutoScalingGroupName=EMPTY,
        MinSize=0,
        MaxSize=1,
        DesiredCapacity=0,
        VPCZoneIdentifier=own["VPCZoneIdentifier"],
        LaunchTemplate={"LaunchTemplateId": template, "Version": "1"},
    )
    return str(template)


def _remove(lab: Lab, template: str) -> None:
    lab.aws(
        "autoscaling", "delete_auto_scaling_group", AutoScalingGroupName=EMPTY, ForceDelete=True
    )
    lab.aws("ec2", "delete_launch_template", LaunchTemplateId=template)


def _member_seconds(lab: Lab, members: int) -> dict[str, float]:
    """Seconds from switching a new member on to each step of its way, last the door's requests."""
    known = _consoles()
    with ThreadPoolExecutor() as pool:
        lab.on(DATABASE_NODE, "true")
        up = pool.submit(
            lambda: (
                lab.on(DATABASE_NODE, f"python3 - {members + 1}", stdin=_AWAIT_MEMBERS),
                time.monotonic(),
            )
        )
        lab.set_desired(members + 1)
        name, began = _new_console(known)
        claimed = _said(name, b": claimed ") - began
        ready = _said(name, b" serves; tunnel MTU") - began
        serving = up.result(LIMIT_SECONDS)[1] - began
    lab.set_desired(members)
    _await_count(lab, GROUP, members)
    return {"claimed": claimed, "says_so": ready, "serving": serving}


def _empty_seconds(lab: Lab) -> dict[str, float]:
    known = _consoles()
    _desire(lab, 1)
    name, began = _new_console(known)
    # cloud-init's own last word (cc_final_message).
    ended = _said(name, b"finished at ") - began
    _desire(lab, 0)
    _await_count(lab, EMPTY, 0)
    return {"cloud_init_ended": ended}


def _desire(lab: Lab, count: int) -> None:
    lab.aws(
        "autoscaling", "set_desired_capacity", AutoScalingGroupName=EMPTY, DesiredCapacity=count
    )


def _await_count(lab: Lab, group: str, count: int) -> None:
    def there() -> bool:
        (found,) = lab.aws(
            "autoscaling", "describe_auto_scaling_groups", AutoScalingGroupNames=[group]
        )["AutoScalingGroups"]
        return len(found["Instances"]) == count

    await_condition(f"{group} to have {count} instances", there)


def _consoles() -> set[str]:
    return {path.name for path in paths.LOG.glob("i-*.console.log")}


def _new_console(known: set[str]) -> tuple[str, float]:
    """Name and time of a console that was not there: its machine has just been switched on."""
    _await("a machine to be switched on", lambda: bool(_consoles() - known))
    (name,) = _consoles() - known
    return name, time.monotonic()


def _said(console: str, text: bytes) -> float:
    file = paths.LOG / console
    _await(f"{text!r} on {console}", lambda: text in file.read_bytes())
    return time.monotonic()


def _await(what: str, condition: Callable[[], bool]) -> None:
    wait_until(condition, LIMIT_SECONDS, what, interval_seconds=0.1)


def _plot(runs: list[dict[str, Any]], ratio: float) -> Figure:
    series = {
        "empty boot:\ncloud-init ended": [run["empty"]["cloud_init_ended"] for run in runs],
        "member:\nslot claimed": [run["member"]["claimed"] for run in runs],
        "member:\nsays it serves": [run["member"]["says_so"] for run in runs],
        "member: the door\nsends requests": [run["member"]["serving"] for run in runs],
    }
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for place, seconds in enumerate(series.values()):
        axes.plot([place] * len(seconds), seconds, "o", color="tab:blue", alpha=0.6)
        median = statistics.median(seconds)
        axes.hlines(median, place - 0.2, place + 0.2, color="tab:orange")
        axes.annotate(f"{median:.1f} s", (place + 0.22, median), va="center", color="tab:orange")
    axes.set_xticks(range(len(series)), list(series))
    axes.set_xlim(-0.5, len(series) - 0.3)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("seconds since the machine was switched on")
    axes.set_title(f"Boot to serving : empty boot = {ratio:.2f} (aim: at most {AIM:g})")
    return figure


if __name__ == "__main__":
    measuring.run_as_program(main)
