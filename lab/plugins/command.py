"""Owns the stand-in for the official `command` plugin 1.2.1: commands and copies.

It behaves as the official one was measured to behave, quirks included; the cases are in
tests/lab/test_command_conformance.py. How to reach a host is `lab.plugins.ssh`'s.
"""

import json
import os
import secrets
import subprocess
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, Final

from lab.plugins import ssh
from lab.plugins.base import (
    Call,
    CheckCall,
    Created,
    InputError,
    Plugin,
    Properties,
    ResourceError,
    ResourceType,
    Schema,
    serve,
)
from lab.plugins.values import UNKNOWN, Archive, Asset

VERSION: Final = "1.2.1"
SCHEMA: Final = Path(__file__).with_name("schemas") / "command.json"

LOGGED_STREAMS: Final[Mapping[str, frozenset[str]]] = {
    "stdout": frozenset({"stdout"}),
    "stderr": frozenset({"stderr"}),
    "stdoutAndStderr": frozenset({"stdout", "stderr"}),
    "none": frozenset(),
}


class Output:
    """Collects what a command writes and shows whole lines while it runs."""

    def __init__(self, call: Call, logging: str) -> None:
        self._call = call
        self._shown = LOGGED_STREAMS[logging]
        self._received: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
        self._both = bytearray()
        self._unfinished = {"stdout": b"", "stderr": b""}
        self._lock = threading.Lock()

    def add(self, stream: str, chunk: bytes) -> None:
        """Take a piece of one stream's output."""
        with self._lock:
            self._received[stream] += chunk
            self._both += chunk
            if stream in self._shown:
                *lines, self._unfinished[stream] = (self._unfinished[stream] + chunk).split(b"\n")
                for line in lines:
                    self._call.status(line.decode(errors="replace"))

    def finish(self, command: str, failure: str | None) -> Properties:
        """The outputs of a command that ended, without the last newline.

        Raises:
            ResourceError: it failed; with the whole command and all that it wrote.
        """
        for rest in filter(None, self._unfinished.values()):
            self._call.status(rest.decode(errors="replace"))
        if failure is not None:
            wrote = self._both.decode(errors="replace")
            message = f"{failure}: running {json.dumps(command, ensure_ascii=False)}:\n{wrote}"
            raise ResourceError(message)
        return {
            name: bytes(received).decode(errors="replace").removesuffix("\n")
            for name, received in self._received.items()
        }


class _Command(ResourceType):
    """What a remote and a local command have in common: when they run."""

    recomputed_outputs = frozenset({"stdout", "stderr"})

    def create(self, call: Call) -> Created:
        resource_id = f"{call.name}{secrets.token_hex(4)}"
        command = call.inputs.get("create")
        outputs = {"stdout": "", "stderr": ""}
        if command is not None:
            outputs = self.run(command, call.inputs, {}, call)
        return Created(resource_id, call.inputs | outputs)

    def update(self, call: Call) -> Properties:
        previous = {name: call.state.get(name, "") for name in ("stdout", "stderr")}
        command = call.inputs.get("update", call.inputs.get("create"))
        if command is None:
            return call.inputs | previous
        return call.inputs | self.run(command, call.inputs, previous, call)

    def delete(self, call: Call) -> None:
        command = call.state.get("delete")
        if command is not None:
            self.run(command, call.state, call.state, call)

    def run(self, command: str, inputs: Properties, previous: Properties, call: Call) -> Properties:
        """Run it and give `stdout` and `stderr`. Raises ResourceError."""
        raise NotImplementedError


class RemoteCommand(_Command):
    """command:remote:Command."""

    token = "command:remote:Command"

    def run(self, command: str, inputs: Properties, previous: Properties, call: Call) -> Properties:
        output = Output(call, inputs.get("logging", "stdoutAndStderr"))
        with ssh.connected(inputs["connection"], call) as transport:
            failure = ssh.run(
                transport,
                command,
                call,
                stdin=inputs.get("stdin", ""),
                environment=inputs.get("environment", {}),
                optional_environment=_previous_output(inputs, previous),
                received=output.add,
            )
        return output.finish(command, failure)


class LocalCommand(_Command):
    """command:local:Command."""

    token = "command:local:Command"

    def check(self, call: CheckCall) -> Properties:
        for name in ("assetPaths", "archivePaths"):
            if name in call.inputs:
                reason = "the lab's stand-in collects no files: use the official command plugin"
                raise InputError(path=name, reason=reason)
        return call.inputs

    def run(self, command: str, inputs: Properties, previous: Properties, call: Call) -> Properties:
        output = Output(call, inputs.get("logging", "stdoutAndStderr"))
        words = [*(inputs.get("interpreter") or ["/bin/sh", "-c"]), command]
        variables = inputs.get("environment", {}) | _previous_output(inputs, previous)
        try:
            child = subprocess.Popen(
                words,
                cwd=inputs.get("dir"),
                env=os.environ | variables,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        except OSError as error:
            return output.finish(command, f"{error.filename}: {error.strerror}")
        status = _converse(child, inputs.get("stdin", ""), output, call)
        return output.finish(command, None if status == 0 else f"exit status {status}")


class CopyToRemote(ResourceType):
    """command:remote:CopyToRemote."""

    token = "command:remote:CopyToRemote"

    def check(self, call: CheckCall) -> Properties:
        source = call.inputs["source"]
        if source is UNKNOWN or (isinstance(source, Archive) and source.path is not None):
            return call.inputs
        if isinstance(source, Asset) and source.uri is None:
            return call.inputs
        message = "must be a file, a text or a directory"
        raise InputError(path="source", reason=message)

    def create(self, call: Call) -> Created:
        self._copy(call)
        return Created(secrets.token_hex(4), call.inputs)

    def update(self, call: Call) -> Properties:
        changed = any(
            call.inputs[name] != call.state.get(name) for name in ("source", "remotePath")
        )
        if changed:
            self._copy(call)
        return call.inputs

    def delete(self, call: Call) -> None:
        # The official plugin leaves what it has copied.
        del call

    def _copy(self, call: Call) -> None:
        source: Asset | Archive = call.inputs["source"]
        target: str = call.inputs["remotePath"]
        try:
            with ssh.connected(call.inputs["connection"], call) as transport:
                into = isinstance(source, Asset) and ssh.is_directory(transport, target)
                ssh.copy(transport, _files(source, into_directory=into), target)
        except (OSError, ValueError) as error:
            message = f"cannot read the source of {call.name}: {error}"
            raise ResourceError(message) from error


def _files(source: Asset | Archive, *, into_directory: bool) -> dict[str, bytes | None]:
    """Contents by path below the target; None stands for a directory."""
    if isinstance(source, Asset):
        name = Path(source.path).name if into_directory and source.path else ""
        return {name: source.read()}
    given = source.path or ""
    root = Path(given)
    # Like cp and rsync: without the trailing slash, the directory itself is copied too.
    base = root if given.endswith("/") else root.parent
    files: dict[str, bytes | None] = {"": None}
    for path in sorted([root, *root.rglob("*")]):
        name = str(path.relative_to(base))
        files["" if name == "." else name] = None if path.is_dir() else path.read_bytes()
    return files


def _previous_output(inputs: Properties, previous: Properties) -> dict[str, str]:
    if not inputs.get("addPreviousOutputInEnv", True):
        return {}
    return {
        f"PULUMI_COMMAND_{name.upper()}": previous[name]
        for name in ("stdout", "stderr")
        if previous.get(name)
    }


def _converse(child: "subprocess.Popen[bytes]", stdin: str, output: Output, call: Call) -> int:
    def read(name: str, stream: IO[bytes]) -> None:
        while chunk := os.read(stream.fileno(), 65536):
            output.add(name, chunk)

    def write(stream: IO[bytes]) -> None:
        try:
            with stream:
                stream.write(stdin.encode())
        except BrokenPipeError:
            return

    workers: list[tuple[Callable[..., None], tuple[Any, ...]]] = [
        (read, ("stdout", child.stdout)),
        (read, ("stderr", child.stderr)),
        (write, (child.stdin,)),
    ]
    threads = [threading.Thread(target=work, args=args, daemon=True) for work, args in workers]
    for thread in threads:
        thread.start()
    while True:
        try:
            status = child.wait(0.1)
            break
        except subprocess.TimeoutExpired:
            if call.cancelled.is_set():
                child.kill()
    for thread in threads:
        thread.join()
    return status


def main() -> None:
    """Serve until the engine ends it."""
    serve(
        Plugin(
            name="command",
            version=VERSION,
            schema=Schema.load(SCHEMA),
            resources=[RemoteCommand(), LocalCommand(), CopyToRemote()],
        )
    )
