"""Owns the running of Python programs for the engine, where the official language host is absent.

It starts the SDK's own `pulumi-language-python-exec` and reports how it ended. It installs
nothing by itself and offers no code generation.
"""

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NoReturn

import grpc
import grpc.aio
from google.protobuf import empty_pb2
from pulumi.runtime.proto import language_pb2, language_pb2_grpc, plugin_pb2

from lab.engine.serving import SERVER_OPTIONS, serve_until_ended
from lab.paths import PULUMI_VERSION, TOOLCHAIN_BIN

EXECUTOR: Final = TOOLCHAIN_BIN / "pulumi-language-python-exec"

ERROR_ALREADY_SHOWN: Final = 32
"""Exit status by which the executor says that the user has read the reason (its source)."""

KILL_AFTER_SECONDS: Final = 3.0
"""The engine itself kills after 5 seconds, which would leave the program behind."""


class HostError(Exception):
    """The program cannot be started; the engine shows the message."""


class LanguageHost(language_pb2_grpc.LanguageRuntimeServicer):
    """The engine's `LanguageRuntime` service."""

    def __init__(self, engine_address: str) -> None:
        self._engine_address = engine_address
        self._children: set[Process] = set()

    async def Handshake(  # noqa: N802
        self, request: language_pb2.LanguageHandshakeRequest, context: Any
    ) -> language_pb2.LanguageHandshakeResponse:
        del context
        self._engine_address = request.engine_address
        return language_pb2.LanguageHandshakeResponse()

    async def GetPluginInfo(  # noqa: N802
        self, request: empty_pb2.Empty, context: Any
    ) -> plugin_pb2.PluginInfo:
        del request, context
        return plugin_pb2.PluginInfo(version=PULUMI_VERSION)

    async def GetRequiredPackages(  # noqa: N802
        self, request: language_pb2.GetRequiredPackagesRequest, context: Any
    ) -> language_pb2.GetRequiredPackagesResponse:
        # scripts/setup has seen to the plugins; naming any here would send the engine downloading.
        del request, context
        return language_pb2.GetRequiredPackagesResponse()

    async def About(  # noqa: N802
        self, request: language_pb2.AboutRequest, context: Any
    ) -> language_pb2.AboutResponse:
        try:
            python = _interpreter(request.info)
        except HostError as error:
            await _abort(context, error)
        version = await self._output([python, "--version"])
        return language_pb2.AboutResponse(
            executable=python,
            version=version.decode().strip(),
            metadata={"language host": "the lab's stand-in"},
        )

    async def GetProgramDependencies(  # noqa: N802
        self, request: language_pb2.GetProgramDependenciesRequest, context: Any
    ) -> language_pb2.GetProgramDependenciesResponse:
        try:
            python = _interpreter(request.info)
        except HostError as error:
            await _abort(context, error)
        command = [python, "-m", "pip", "list", "--format", "json", "--disable-pip-version-check"]
        if not request.transitiveDependencies:
            command.append("--not-required")
        packages = json.loads(await self._output(command) or b"[]")
        return language_pb2.GetProgramDependenciesResponse(
            dependencies=[
                language_pb2.DependencyInfo(name=item["name"], version=item["version"])
                for item in packages
            ]
        )

    async def Run(  # noqa: N802
        self, request: language_pb2.RunRequest, context: Any
    ) -> language_pb2.RunResponse:
        try:
            command = self._program_command(request)
        except HostError as error:
            return language_pb2.RunResponse(error=str(error))
        # Configuration may hold secrets, but the executor reads it from its environment only.
        configuration = {
            "PULUMI_CONFIG": json.dumps(dict(request.config)),
            "PULUMI_CONFIG_SECRET_KEYS": json.dumps(list(request.configSecretKeys)),
        }
        # The engine reads this process's output line by line; the program writes into the same
        # pipes, so nothing is buffered, cut or coloured on the way.
        child = await asyncio.create_subprocess_exec(
            *command, env=os.environ | _activated(command[0]) | configuration
        )
        self._children.add(child)
        try:
            status = await child.wait()
        except asyncio.CancelledError:
            await self._end(child)
            raise
        finally:
            self._children.discard(child)
        if status == 0:
            return language_pb2.RunResponse()
        if status == ERROR_ALREADY_SHOWN:
            return language_pb2.RunResponse(bail=True)
        return language_pb2.RunResponse(error=f"Program exited with non-zero exit code: {status}")

    async def RunPlugin(  # noqa: N802
        self, request: language_pb2.RunPluginRequest, context: Any
    ) -> AsyncIterator[language_pb2.RunPluginResponse]:
        try:
            python = _interpreter(request.info)
        except HostError as error:
            await _abort(context, error)
        program = Path(request.info.program_directory) / request.info.entry_point
        environment = dict(entry.split("=", 1) for entry in request.env) or dict(os.environ)
        child = await self._start(
            [python, "-u", str(program), *request.args],
            directory=request.pwd,
            environment=environment | _activated(python),
        )
        async for name, chunk in self._streams(child):
            yield (
                language_pb2.RunPluginResponse(stdout=chunk)
                if name == "stdout"
                else language_pb2.RunPluginResponse(stderr=chunk)
            )
        yield language_pb2.RunPluginResponse(exitcode=await child.wait())

    async def InstallDependencies(  # noqa: N802
        self, request: language_pb2.InstallDependenciesRequest, context: Any
    ) -> AsyncIterator[language_pb2.InstallDependenciesResponse]:
        requirements = Path(request.info.program_directory or request.directory)
        requirements /= "requirements.txt"
        if not requirements.exists():
            return
        try:
            python = _interpreter(request.info)
        except HostError as error:
            await _abort(context, error)
        child = await self._start([python, "-m", "pip", "install", "-r", str(requirements)])
        async for name, chunk in self._streams(child):
            yield (
                language_pb2.InstallDependenciesResponse(stdout=chunk)
                if name == "stdout"
                else language_pb2.InstallDependenciesResponse(stderr=chunk)
            )
        if await child.wait() != 0:
            await _abort(context, HostError(f"pip could not install {requirements}; see above"))

    async def Cancel(self, request: empty_pb2.Empty, context: Any) -> empty_pb2.Empty:  # noqa: N802
        del request, context
        await self.end_children()
        return empty_pb2.Empty()

    async def end_children(self) -> None:
        """End every program that is still running."""
        await asyncio.gather(*(self._end(child) for child in set(self._children)))

    def _program_command(self, request: language_pb2.RunRequest) -> list[str]:
        if not EXECUTOR.exists():
            message = f"{EXECUTOR} is missing, so no program can run: run scripts/setup"
            raise HostError(message)
        info = request.info
        settings = {
            "monitor": request.monitor_address,
            "engine": self._engine_address,
            "project": request.project,
            "stack": request.stack,
            "organization": request.organization,
            "root_directory": info.root_directory,
            "pwd": request.pwd,
            "dry_run": "true" if request.dryRun else "false",
            "parallel": str(request.parallel),
        }
        options = [word for name, value in settings.items() for word in (f"--{name}", value)]
        program = str(Path(info.program_directory) / info.entry_point)
        return [_interpreter(info), "-u", str(EXECUTOR), *options, program, *request.args]

    async def _start(
        self,
        command: Sequence[str],
        *,
        directory: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Process:
        child = await asyncio.create_subprocess_exec(
            *command, cwd=directory, env=environment, stdout=PIPE, stderr=PIPE
        )
        self._children.add(child)
        return child

    async def _streams(self, child: Process) -> AsyncIterator[tuple[str, bytes]]:
        queue: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()

        async def forward(name: str, stream: asyncio.StreamReader | None) -> None:
            while stream is not None and (chunk := await stream.read(65536)):
                await queue.put((name, chunk))
            await queue.put((name, b""))

        readers = [
            asyncio.create_task(forward("stdout", child.stdout)),
            asyncio.create_task(forward("stderr", child.stderr)),
        ]
        try:
            open_streams = len(readers)
            while open_streams:
                name, chunk = await queue.get()
                if chunk:
                    yield name, chunk
                else:
                    open_streams -= 1
        finally:
            for reader in readers:
                reader.cancel()
            await self._end(child)
            self._children.discard(child)

    async def _output(self, command: Sequence[str]) -> bytes:
        child = await self._start(command)
        try:
            output, _ = await child.communicate()
        finally:
            self._children.discard(child)
        return output

    async def _end(self, child: Process) -> None:
        with suppress(ProcessLookupError):
            child.terminate()
            try:
                await asyncio.wait_for(child.wait(), KILL_AFTER_SECONDS)
            except TimeoutError:
                child.kill()
                await child.wait()


def _interpreter(info: language_pb2.ProgramInfo) -> str:
    options = dict(info.options)
    if unsupported := options.keys() - {"virtualenv", "toolchain"}:
        message = (
            f"runtime option {', '.join(sorted(unsupported))} in Pulumi.yaml is not known to the "
            "lab's stand-in for the Python language host, which takes `virtualenv`: remove it or "
            "install the official Pulumi"
        )
        raise HostError(message)
    if "virtualenv" not in options:
        return "python3"
    directory = Path(info.root_directory) / str(options["virtualenv"])
    python = directory / "bin" / "python"
    if not python.exists():
        message = (
            f"the virtual environment {directory} named in Pulumi.yaml has no bin/python, so the "
            "program cannot run: run scripts/setup"
        )
        raise HostError(message)
    return str(python)


def _activated(python: str) -> dict[str, str]:
    """What `activate` would set, so that a program finds its environment's own commands."""
    directory = Path(python).parent
    if not (directory.parent / "pyvenv.cfg").exists():
        return {}
    path = f"{directory}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return {"VIRTUAL_ENV": str(directory.parent), "PATH": path}


async def _abort(context: Any, error: HostError) -> NoReturn:
    await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
    raise AssertionError  # abort() always raises


async def _serve(engine_address: str) -> None:
    server = grpc.aio.server(options=SERVER_OPTIONS)
    host = LanguageHost(engine_address)
    language_pb2_grpc.add_LanguageRuntimeServicer_to_server(host, server)
    await serve_until_ended(server)
    await host.end_children()
    await server.stop(grace=None)


def main() -> None:
    """Serve until the engine ends it. The engine's address is the last argument."""
    asyncio.run(_serve(sys.argv[-1]))
