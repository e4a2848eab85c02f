"""Owns the running of a small program through the real engine, in a project and state of its own.

def test_something(engine: Engine) -> None:
    first = engine.up("import pulumi_command as command\n...")
    assert first.operations["name"] == ["create"]
    assert engine.up().unchanged
"""

import json
import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lab.engine import toolchain
from lab.paths import VIRTUAL_ENVIRONMENT

STACK: Final = "test"
PASSPHRASE: Final = "conformance"
TIME_LIMIT_SECONDS: Final = 300
QUIET_OPERATIONS: Final = frozenset({"same", "read", "refresh"})


@dataclass(frozen=True)
class Run:
    """What one command of the engine did.

    `steps` are (operation, logical name) in the order in which they ended, without the stack and
    the providers; `output` is what a person would have seen.
    """

    succeeded: bool
    output: str
    steps: Sequence[tuple[str, str]]

    @property
    def operations(self) -> dict[str, list[str]]:
        """Operations by logical name, in order."""
        by_name: dict[str, list[str]] = {}
        for operation, name in self.steps:
            by_name.setdefault(name, []).append(operation)
        return by_name

    @property
    def unchanged(self) -> bool:
        """Whether it succeeded and changed nothing."""
        return self.succeeded and all(step in QUIET_OPERATIONS for step, _ in self.steps)


class Engine:
    """A stack of an inline program.

    Parameters:
        directory: an empty directory for project and state.
        prefix: words before every `pulumi`, such as those that enter a namespace.
        variables: added to the environment.
    """

    def __init__(
        self,
        directory: Path,
        *,
        prefix: Sequence[str] = (),
        variables: dict[str, str] | None = None,
    ) -> None:
        self.directory = directory
        self._prefix = prefix
        (directory / "state").mkdir()
        (directory / "passphrase").write_text(PASSPHRASE, encoding="utf-8")
        project = {
            "name": "conformance",
            "runtime": {"name": "python", "options": {"virtualenv": str(VIRTUAL_ENVIRONMENT)}},
        }
        # YAML reads JSON.
        (directory / "Pulumi.yaml").write_text(json.dumps(project), encoding="utf-8")
        self.write("")
        self.environment = toolchain.environment() | {
            "PULUMI_BACKEND_URL": f"file://{directory / 'state'}",
            "PULUMI_CONFIG_PASSPHRASE_FILE": str(directory / "passphrase"),
            # Without it the command line knows no --event-log.
            "PULUMI_DEBUG_COMMANDS": "true",
            # A person's agent must not stand in for the key that a test means.
            "SSH_AUTH_SOCK": "",
        }
        self.environment |= variables or {}
        self.pulumi("stack", "init", STACK).check_returncode()

    def write(self, program: str) -> None:
        """Replace the program."""
        (self.directory / "__main__.py").write_text(program, encoding="utf-8")

    def pulumi(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """Any command of `pulumi`, in the project's directory."""
        return subprocess.run(
            [*self._prefix, "pulumi", "--cwd", str(self.directory), *words],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIME_LIMIT_SECONDS,
            check=False,
        )

    def up(self, program: str | None = None, *options: str) -> Run:
        """`pulumi up`; must succeed."""
        run = self.try_up(program, *options)
        assert run.succeeded, run.output
        return run

    def try_up(self, program: str | None = None, *options: str) -> Run:
        """`pulumi up`, which may fail."""
        if program is not None:
            self.write(program)
        return self._run("up", "--yes", "--skip-preview", *options)

    def preview(self, program: str | None = None, *options: str) -> Run:
        """`pulumi preview`; must succeed."""
        if program is not None:
            self.write(program)
        run = self._run("preview", *options)
        assert run.succeeded, run.output
        return run

    def refresh(self) -> Run:
        """`pulumi refresh`; must succeed."""
        run = self._run("refresh", "--yes", "--skip-preview")
        assert run.succeeded, run.output
        return run

    def destroy(self) -> Run:
        """`pulumi destroy`; must succeed."""
        run = self.try_destroy()
        assert run.succeeded, run.output
        return run

    def try_destroy(self, *options: str) -> Run:
        """`pulumi destroy`, which may fail."""
        return self._run("destroy", "--yes", "--skip-preview", *options)

    def interrupted_up(self, program: str, until: str) -> str:
        """Start `pulumi up`, interrupt it once its output contains `until`, give the output."""
        self.write(program)
        child = subprocess.Popen(
            [*self._prefix, "pulumi", "--cwd", str(self.directory), *_common("up"), "--yes"],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        output = ""
        for line in child.stdout or ():
            output += line
            if until in line:
                child.send_signal(signal.SIGINT)
                until = "\0"
        child.wait(TIME_LIMIT_SECONDS)
        return output

    def state(self) -> dict[str, dict[str, Any]]:
        """The state's resources by logical name; secrets stay encrypted."""
        exported = json.loads(self.pulumi("stack", "export", "--stack", STACK).stdout)
        resources = exported["deployment"].get("resources", [])
        return {resource["urn"].rsplit("::", 1)[-1]: resource for resource in resources}

    def outputs(self) -> dict[str, Any]:
        """The stack's outputs, secrets opened."""
        shown = self.pulumi("stack", "output", "--stack", STACK, "--json", "--show-secrets").stdout
        opened: dict[str, Any] = json.loads(shown)
        return opened

    def _run(self, command: str, *options: str) -> Run:
        log = self.directory / "events"
        log.unlink(missing_ok=True)
        done = self.pulumi(*_common(command), "--event-log", str(log), *options)
        return Run(done.returncode == 0, done.stdout, _steps(log))


def _common(command: str) -> list[str]:
    return [command, "--stack", STACK, "--non-interactive", "--color", "never"]


def _steps(log: Path) -> list[tuple[str, str]]:
    """Ended steps; for a preview, planned ones."""
    steps = []
    for line in log.read_text(encoding="utf-8").splitlines() if log.exists() else ():
        event = json.loads(line)
        for kind in ("resOutputsEvent", "resOpFailedEvent"):
            metadata = event.get(kind, {}).get("metadata", {})
            if not metadata or metadata["type"].startswith("pulumi:"):
                continue
            operation = metadata["op"]
            if kind == "resOpFailedEvent":
                operation += " failed"
            steps.append((operation, metadata["urn"].rsplit(os.sep, 1)[-1].rsplit("::", 1)[-1]))
    return steps
