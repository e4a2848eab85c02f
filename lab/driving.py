"""Owns driving a lab that runs: what its command line offers, for tests and benchmarks.

It starts every command as a person would and refuses to know the parts behind it.
"""

import json
import re
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from lab import paths
from lab.errors import LabError
from lab.namespace import wait_until
from lab.stack import AWS_ENDPOINT, STACK
from settings import PROJECT

DATABASE_NODE: Final = "oslo-db-01"
EXISTING_NODE: Final = "oslo-web-02"
DOOR: Final = "http://10.20.0.11"
FLEET: Final = "frankfurt"
GROUP: Final = f"{PROJECT}-{STACK}-{FLEET}"
OSLO_CONNECTIONS: Final = 8
"""door.oslo-connections of Pulumi.lab.yaml on two frontends."""
BOOT_SECONDS: Final = 900
"""Emulated machines boot in one to three minutes, two at once in up to five."""

OSLO_STATE: Final = (
    "systemctl show haproxy -P MainPID -P NRestarts; "
    "ps -o lstart= -C haproxy; sha256sum /etc/haproxy/haproxy.cfg /etc/wireguard/wg0.conf; "
    "stat -c %Y /etc/haproxy/haproxy.cfg /etc/wireguard/wg0.conf"
)
"""What a scale event must not change on the database's node: door's and hub's processes, files."""

_ONE_CALL: Final = """\
import boto3, json, sys
service, operation, parameters, endpoint = json.loads(sys.argv[1])
client = boto3.client(service, region_name="eu-central-1", endpoint_url=endpoint)
print(json.dumps(getattr(client, operation)(**parameters), default=str))
"""


@dataclass(frozen=True)
class Lab:
    """The lab of one clone."""

    root: Path = paths.ROOT

    def command(
        self, *words: str, check: bool = True, timeout_seconds: float = 900, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run `scripts/lab WORDS`.

        Raises:
            LabError: it failed although `check`; the message has what it gave as reasons.
        """
        done = subprocess.run(
            [str(self.root / "scripts" / "lab"), *words],
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            input=stdin,
            check=False,
        )
        if check and done.returncode != 0:
            said = _reasons(done.stdout + done.stderr)
            message = f"scripts/lab {shlex.join(words)} ended with {done.returncode}:\n{said}"
            raise LabError(message)
        return done

    def inside(self, script: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A shell script inside the lab's namespaces, on the lab's host."""
        return self.command("shell", "-c", script, check=check)

    def on(self, node: str, script: str, *, check: bool = True, stdin: str = "") -> str:
        """What a shell script prints that runs as root on a core node."""
        words = ("ssh", node, f"sudo -n sh -c {shlex.quote(script)}")
        return self.command(*words, check=check, stdin=stdin).stdout.strip()

    def pulumi(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `pulumi`; words that name no stack mean the lab's."""
        return self.command("pulumi", *words, check=check, timeout_seconds=1800)

    def outputs(self, stack: str = STACK, *words: str) -> dict[str, Any]:
        """What a stack puts out."""
        text = self.pulumi("stack", "output", "--stack", stack, "--json", *words).stdout
        found: dict[str, Any] = json.loads(text)
        return found

    def aws(self, service: str, operation: str, **parameters: object) -> Any:
        """One call to the lab's AWS API."""
        call = json.dumps([service, operation, parameters, AWS_ENDPOINT])
        python = self.root / ".venv" / "bin" / "python"
        return json.loads(
            self.inside(f"{python} -c {shlex.quote(_ONE_CALL)} {shlex.quote(call)}").stdout
        )

    def ask(self, path: str = "/", *, limit_seconds: int = 20) -> dict[str, Any]:
        """One request through the door."""
        done = self.inside(f"curl -fsS --max-time {limit_seconds} {DOOR}{path}")
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def door_rows(self) -> list[list[str]]:
        """Rows of HAProxy's statistics: proxy, server and so on (management guide, section 9.1)."""
        text = self.on(
            DATABASE_NODE, "echo 'show stat' | socat - unix-connect:/run/haproxy/admin.sock"
        )
        return [row.split(",") for row in text.splitlines() if row and not row.startswith("#")]

    def members(self) -> list[str]:
        """Slots of the fleets that HAProxy holds for up."""
        return [
            row[1]
            for row in self.door_rows()
            if row[0].startswith("burst_") and row[17] == "UP" and not row[1].isupper()
        ]

    def group(self) -> dict[str, Any]:
        """The fleet's Auto Scaling Group as the API describes it."""
        (found,) = self.aws(
            "autoscaling", "describe_auto_scaling_groups", AutoScalingGroupNames=[GROUP]
        )["AutoScalingGroups"]
        described: dict[str, Any] = found
        return described

    def in_service(self) -> list[str]:
        """Instances that serve: their launching hook waited for that."""
        return sorted(
            row["InstanceId"]
            for row in self.group()["Instances"]
            if row["LifecycleState"] == "InService"
        )

    def serving_count(self) -> int:
        """How many members serve.

        Raises:
            LabError: none does, so nothing could be measured.
        """
        count = len(self.in_service())
        if not count:
            message = "no member serves: wait for one, as scripts/lab status shows."
            raise LabError(message)
        return count

    def set_desired(self, count: int) -> None:
        """Ask the group for a number of members."""
        self.aws(
            "autoscaling",
            "set_desired_capacity",
            AutoScalingGroupName=GROUP,
            DesiredCapacity=count,
        )

    def refresh(self) -> dict[str, Any]:
        """The group's newest instance refresh; empty when there never was one."""
        found = self.aws("autoscaling", "describe_instance_refreshes", AutoScalingGroupName=GROUP)[
            "InstanceRefreshes"
        ]
        newest: dict[str, Any] = found[0] if found else {}
        return newest

    def await_refresh(self, before: str) -> None:
        """Wait until a refresh other than `before` (an id, or empty) has succeeded.

        Raises:
            LabError: it failed or takes too long.
        """

        def ended() -> bool:
            newest = self.refresh()
            if newest.get("InstanceRefreshId", "") == before:
                return False
            if newest["Status"] in {"Failed", "Cancelled", "RollbackFailed"}:
                message = f"the instance refresh ended with {newest['Status']}: {newest}"
                raise LabError(message)
            return bool(newest["Status"] == "Successful")

        await_condition("the instance refresh to succeed", ended)

    def claims(self) -> dict[str, dict[str, str]]:
        """The fleet's claim table by slot, values as text."""
        items = self.aws("dynamodb", "scan", TableName=f"{GROUP}-claims")["Items"]
        plain = [{key: str(next(iter(v.values()))) for key, v in row.items()} for row in items]
        return {row["slot"]: row for row in plain}

    def settings(self, stack: str = STACK) -> dict[str, Any]:
        """The settings in a stack's file."""
        document = yaml.safe_load((paths.PROJECT / f"Pulumi.{stack}.yaml").read_text())
        found: dict[str, Any] = document["config"][f"{PROJECT}:settings"]
        return found

    def write_settings(self, settings: dict[str, Any], stack: str = STACK) -> None:
        """Put settings into a stack's file; secrets and salt stay."""
        file = paths.PROJECT / f"Pulumi.{stack}.yaml"
        document = yaml.safe_load(file.read_text()) if file.exists() else {"config": {}}
        document["config"][f"{PROJECT}:settings"] = settings
        file.write_text(yaml.safe_dump(document, sort_keys=False))

    def load(self, *, seconds: int, held: int, per_second: float = 2) -> "Load":
        """Begin a bounded load through the door (see `lab.load`)."""
        return Load(self, seconds=seconds, held=held, per_second=per_second)


class Load:
    """Requests through the door by a process of its own, until `end` or their limit in time.

    Parameters: as of `lab.load`.
    """

    def __init__(self, lab: Lab, *, seconds: int, held: int, per_second: float) -> None:
        python = lab.root / ".venv" / "bin" / "python"
        words = [f"{DOOR}/", "--seconds", seconds, "--held", held, "--per-second", per_second]
        command = f"PYTHONPATH={lab.root} {python} -m lab.load " + " ".join(map(str, words))
        self._seconds = seconds
        self._process = subprocess.Popen(
            [str(lab.root / "scripts" / "lab"), "shell", "-c", command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def complete(self) -> dict[str, Any]:
        """Wait until its time is over and give its report, as `end`."""
        self._process.wait(self._seconds + 120)
        return self.end()

    def end(self) -> dict[str, Any]:
        """Stop it and give its report: requests, by_site, failed, milliseconds.

        Raises:
            LabError: the process gave none.
        """
        text, _ = self._process.communicate(timeout=120)
        if self._process.returncode != 0:
            message = f"the load ended with {self._process.returncode}: {text}"
            raise LabError(message)
        report: dict[str, Any] = json.loads(text)
        return report


def await_condition(what: str, check: Callable[[], object], seconds: float = BOOT_SECONDS) -> None:
    """Return as soon as something holds; asking costs a command, so it is asked every 2 seconds.

    Raises:
        LabError: it did not within `seconds`.
    """
    wait_until(lambda: bool(check()), seconds, what, interval_seconds=2)


def _reasons(text: str) -> str:
    """What a failed command said last, and pulumi's diagnostics, without its tables."""
    diagnostics = re.findall(r"^Diagnostics:\n(.*?)(?=^\S|\Z)", text, re.DOTALL | re.MULTILINE)
    kept = [line for part in diagnostics for line in part.splitlines() if "warning: " not in line]
    return "\n".join([*kept, "...", *text.splitlines()[-12:]])
