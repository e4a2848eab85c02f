"""Asking the hub and the edge in Oslo, by the person's own `ssh`.

Owns how a report reaches this program. What it says is node_report.py's matter.
"""

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scripts.fleet_tool.stack import Machine

PROGRAM = Path(__file__).with_name("node_report.py")
# An answer takes a second; a node that needs longer than this is of no use to somebody who waits.
ANSWER_SECONDS = 60


@dataclass(frozen=True, kw_only=True)
class Server:
    """A slot as the door sees it; requests since HAProxy's last start or reload."""

    state: str
    requests: int


@dataclass(frozen=True, kw_only=True)
class CoreReport:
    """What Oslo knows of the slots.

    Attributes:
        handshake_ages: seconds by mesh address.
        servers: by slot name.
        problems: one line for each part that could not be read.
    """

    handshake_ages: Mapping[str, int] = field(default_factory=dict)
    servers: Mapping[str, Server] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


def ask(machines: Sequence[Machine]) -> CoreReport:
    """Report from the hub and the edge, which may be one machine."""
    ages: dict[str, int] = {}
    servers: dict[str, Server] = {}
    problems: list[str] = []
    asked = [(machine, sorted(machine.roles & {"hub", "edge"})) for machine in machines]
    for machine, roles in asked:
        if not roles:
            continue
        try:
            answer = json.loads(_run(machine, roles))
        except _UnreachableError as error:
            problems.append(f"{' and '.join(roles)} {machine.name} can't be asked: {error}")
            continue
        except ValueError:
            problems.append(f"{machine.name} does not answer in JSON: is its login shell quiet?")
            continue
        ages |= answer["handshake_ages"]
        servers |= {name: Server(**server) for name, server in answer["servers"].items()}
        problems += [f"{machine.name}: {problem}" for problem in answer["problems"]]
    return CoreReport(handshake_ages=ages, servers=servers, problems=tuple(problems))


class _UnreachableError(Exception):
    """ssh's own last word."""


def _run(machine: Machine, roles: Sequence[str]) -> str:
    program = f"python3 - {' '.join(roles)}"
    argv = ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10"]
    # A port given here would override the person's own configuration.
    argv += [] if machine.port == 22 else ["-p", str(machine.port)]
    argv += [machine.address if machine.user is None else f"{machine.user}@{machine.address}"]
    argv += [program if machine.user == "root" else f"sudo -n {program}"]
    try:
        done = subprocess.run(
            argv,
            input=PROGRAM.read_text(),
            capture_output=True,
            text=True,
            timeout=ANSWER_SECONDS,
            check=False,
        )
    except FileNotFoundError:
        message = "there is no ssh on PATH. Install OpenSSH's client"
        raise _UnreachableError(message) from None
    except subprocess.TimeoutExpired:
        message = f"no answer from {machine.address} within {ANSWER_SECONDS} s"
        raise _UnreachableError(message) from None
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        message = f"{reason}. Try: ssh {' '.join(argv[5:-1])} true"
        raise _UnreachableError(message)
    return done.stdout
