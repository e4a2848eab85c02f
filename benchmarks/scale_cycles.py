"""Lets a member come and another go, again and again, under load; shows what Oslo had to do.

A cycle raises the group's desired capacity by one, waits until the new member serves, and lowers it
again; the next one begins while the leaving member still drains and powers off. Meanwhile requests
pass through the door, enough of them slow ones to keep Oslo full, so that members carry the others.
At first the same two events are done once in the usual way: a peer and a server are taken out of
the files on the hub and put back, each with `wg syncconf` and a reload.
"""

import argparse
import json
import statistics
import time
from typing import Any, Final

from matplotlib.figure import Figure

from benchmarks import measuring
from lab.driving import (
    DATABASE_NODE,
    EXISTING_NODE,
    FLEET,
    OSLO_CONNECTIONS,
    OSLO_STATE,
    Lab,
    await_condition,
)
from lab.stack import STACK

LONGEST_CYCLE_SECONDS: Final = 140
"""So that fifty of them fit into the load's own bound of two hours."""

_CHANGED_BYTES: Final = (
    "find /etc /usr/local/lib/fortress /var/lib/haproxy -xdev -type f -newermt @{since} "
    "-printf '%s\\n' 2>/dev/null | awk '{{sum += $1}} END {{print sum + 0}}'"
)
_CONNECTIONS: Final = (
    "journalctl -u ssh -u ssh.socket --since @{since} -o cat --no-pager "
    "| grep -c '^Accepted' || true"
)
_RELOADS: Final = (
    "journalctl -u haproxy -u wg-quick@wg0 --since @{since} -o cat --no-pager "
    "| grep -cE '^(Reloaded|Reloading|Started|Stopped|Starting|Stopping) ' || true"
)

_USUAL_WAY: Final = """\
import json, pathlib, re, subprocess, sys, time
slot = sys.argv[1]
key = sys.argv[2]
hub = pathlib.Path("/etc/wireguard/wg0.conf")
door = pathlib.Path("/etc/haproxy/haproxy.cfg")
whole = {file: file.read_text() for file in (hub, door)}
peers = whole[hub].split("[Peer]")
without = {
    hub: "[Peer]".join(part for part in peers if key not in part),
    door: "".join(l for l in whole[door].splitlines(True) if f"server {slot} " not in l),
}
events = []
for files in (without, whole):
    began = time.monotonic()
    for file, text in files.items():
        if file is hub or text != file.read_text():
            file.write_text(text)
    stripped = subprocess.run(["wg-quick", "strip", "wg0"], check=True, capture_output=True).stdout
    subprocess.run(["wg", "syncconf", "wg0", "/dev/stdin"], input=stripped, check=True)
    subprocess.run(["haproxy", "-c", "-q", "-f", door], check=True)
    subprocess.run(["systemctl", "reload", "haproxy"], check=True)
    events.append({
        "bytes_written": sum(len(text.encode()) for text in files.values()),
        "reloads": 2,
        "seconds": round(time.monotonic() - began, 2),
    })
print(json.dumps(events))
"""


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scale_cycles",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cycles", type=int, default=50, metavar="N", help="at most 50")
    options = parser.parse_args()
    if not 1 <= options.cycles <= 50:
        parser.error("--cycles lies between 1 and 50")

    measuring.lab_namespace()
    lab = Lab()
    members = lab.serving_count()
    # First, because a run that is interrupted ends with what it has measured of the cycles.
    usual = _usual_way(lab)
    before = _state(lab)
    since = int(lab.on(DATABASE_NODE, "date +%s")) + 1
    load = lab.load(seconds=options.cycles * LONGEST_CYCLE_SECONDS, held=OSLO_CONNECTIONS)
    cycles = Cycles(lab, members)
    try:
        for number in range(options.cycles):
            seconds = cycles.run_one()
            print(f"{number + 1:3} {seconds:.0f} s until the new member serves", flush=True)
    except KeyboardInterrupt:
        print(f"interrupted: going on with {len(cycles.out_seconds)} cycles", flush=True)
    finally:
        lab.set_desired(members)
        cycles.await_leaving()
        report = load.end()
    work = {
        node: {
            "bytes_changed": int(lab.on(node, _CHANGED_BYTES.format(since=since))),
            "reloads_and_restarts": int(lab.on(node, _RELOADS.format(since=since))),
            # Less the commands of this measurement itself: these two and the one for this number.
            "ssh_connections": int(lab.on(node, _CONNECTIONS.format(since=since))) - 3,
        }
        for node in (DATABASE_NODE, EXISTING_NODE)
    }
    unchanged = _state(lab) == before
    preview = lab.pulumi("preview", "--stack", STACK, "--expect-no-changes", check=False)
    claims = {claim["instance"] for claim in lab.claims().values()}
    result = {
        "out_seconds": cycles.out_seconds,
        "in_seconds": cycles.in_seconds,
        "load": report,
        "oslo_unchanged": unchanged,
        "preview_without_changes": preview.returncode == 0,
        "claims_are_the_living": claims == set(lab.in_service()),
        "oslo_work": work,
        "usual_way": usual,
    }
    failed = len(report["failed"])
    title = (
        f"{len(cycles.out_seconds)} scale cycles: {failed} of {report['requests']} requests "
        f"failed, {report['by_site'].get(FLEET, 0)} answered by members"
    )
    print(title)
    for key in ("oslo_work", "oslo_unchanged", "preview_without_changes", "claims_are_the_living"):
        print(f"{key}: {result[key]}")
    print(f"the usual way, per event: {usual}")
    measuring.keep("scale_cycles", result, _plot(result, title))


def _state(lab: Lab) -> dict[str, str]:
    return {
        # Endpoints are what the hub learns of whoever is there.
        DATABASE_NODE: lab.on(
            DATABASE_NODE, f"{OSLO_STATE}; wg showconf wg0 | grep -v ^Endpoint | sha256sum"
        ),
        EXISTING_NODE: lab.on(EXISTING_NODE, "sha256sum /etc/wireguard/wg0.conf"),
    }


class Cycles:
    """Scale-outs and scale-ins of the fleet; asks AWS only, so that none of it is work in Oslo.

    Attributes:
        out_seconds: from asking for one more until it serves.
        in_seconds: from asking for one less until its machine is gone.
    """

    def __init__(self, lab: Lab, members: int) -> None:
        self._lab = lab
        self._members = members
        self._leaving: dict[str, float] = {}
        self.out_seconds: list[float] = []
        self.in_seconds: list[float] = []

    def run_one(self) -> float:
        """One member more, then one less; returns the seconds of the first."""
        began = time.monotonic()
        self._lab.set_desired(self._members + 1)
        await_condition(
            "the new member to serve", lambda: len(self._serving()) == self._members + 1
        )
        before = self._serving()
        self.out_seconds.append(round(time.monotonic() - began, 1))
        began = time.monotonic()
        self._lab.set_desired(self._members)
        await_condition("one to be told", lambda: len(self._serving()) == self._members)
        self._leaving |= dict.fromkeys(before - self._serving(), began)
        return self.out_seconds[-1]

    def await_leaving(self) -> None:
        """Wait until nobody is on the way out."""
        await_condition(
            "those that leave to be gone", lambda: self._serving() and not self._leaving
        )

    def _serving(self) -> set[str]:
        instances = {
            row["InstanceId"]: row["LifecycleState"] for row in self._lab.group()["Instances"]
        }
        for gone in self._leaving.keys() - instances.keys():
            self.in_seconds.append(round(time.monotonic() - self._leaving.pop(gone), 1))
        return {name for name, state in instances.items() if state == "InService"}


def _usual_way(lab: Lab) -> list[dict[str, float]]:
    """A slot nobody holds leaves and joins by files, `wg syncconf` and reload."""
    claims = lab.claims()
    slots = lab.outputs()["slots"]
    slot = next(name for name in reversed(slots) if name not in claims)
    key = slots[slot].split()[1]
    words = f"python3 - {slot} {key}"
    events: list[dict[str, float]] = json.loads(lab.on(DATABASE_NODE, words, stdin=_USUAL_WAY))
    return [{**event, "ssh_connections": 1} for event in events]


def _plot(result: dict[str, Any], title: str) -> Figure:
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    figure.suptitle(title, fontsize=10)
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    for key, label in (
        ("out_seconds", "one more: until it serves"),
        ("in_seconds", "one less: until it is gone"),
    ):
        seconds = result[key]
        median = statistics.median(seconds)
        left.plot(
            range(1, len(seconds) + 1), seconds, ".-", label=f"{label} (median {median:.0f} s)"
        )
    left.set_xlabel("cycle")
    left.set_ylabel("seconds")
    left.set_ylim(bottom=0)
    left.legend(fontsize=8)
    events = len(result["out_seconds"]) + len(result["in_seconds"])
    work = result["oslo_work"].values()
    usual = result["usual_way"]
    rows = {
        "KiB written": (
            sum(row["bytes_changed"] for row in work) / 1024 / events,
            statistics.mean(event["bytes_written"] for event in usual) / 1024,
        ),
        "reloads": (
            sum(row["reloads_and_restarts"] for row in work) / events,
            statistics.mean(event["reloads"] for event in usual),
        ),
        "SSH connections": (sum(row["ssh_connections"] for row in work) / events, 1.0),
    }
    for place, (ours, theirs) in enumerate(rows.values()):
        for offset, value, colour in ((-0.2, ours, "tab:blue"), (0.2, theirs, "tab:orange")):
            right.bar(place + offset, value, 0.38, color=colour)
            right.annotate(f"{value:.3g}", (place + offset, value), ha="center", va="bottom")
    right.set_xticks(range(len(rows)), list(rows), fontsize=8)
    right.set_title("work in Oslo per scale event", fontsize=9)
    handles = [right.patches[0], right.patches[1]]
    right.legend(handles, ["here", "files, syncconf, reload"], fontsize=8)
    return figure


if __name__ == "__main__":
    measuring.run_as_program(main)
