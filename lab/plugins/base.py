"""Owns what all stand-in plugins share: checks, comparison, previews, errors and the server.

It sits on the SDK's experimental provider server and replaces the calls in which that one loses
something: its errors carry Python class names, and its comparison drops the old inputs.
A resource type only says what to do; it sees plain values and never the wire.
"""

import asyncio
import os
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Final, NoReturn, TypeVar

import grpc
import grpc.aio
from google.protobuf import any_pb2, empty_pb2
from pulumi.provider.experimental import provider as experimental
from pulumi.provider.experimental.server import ProviderServicer
from pulumi.runtime.proto import (
    engine_pb2,
    engine_pb2_grpc,
    provider_pb2,
    provider_pb2_grpc,
    status_pb2,
)

from lab.engine.serving import SERVER_OPTIONS, serve_until_ended
from lab.plugins.schema import Difference, Problem, Schema
from lab.plugins.values import UNKNOWN, Properties, contains_unknown, from_wire, to_wire

__all__ = [
    "UNKNOWN",
    "Call",
    "CheckCall",
    "Created",
    "Difference",
    "InputError",
    "PartialResourceError",
    "Plugin",
    "Problem",
    "Properties",
    "Read",
    "ResourceError",
    "ResourceType",
    "Schema",
    "contains_unknown",
    "serve",
]

CONCURRENT_CALLS: Final = 64
"""Calls block on SSH and on booting machines, so their number is not bound to the cores."""

Result = TypeVar("Result")


class ResourceError(Exception):
    """An operation failed; the engine shows the message as it is."""


class PartialResourceError(ResourceError):
    """The resource exists but is not right: the state keeps it and the next run mends it."""

    def __init__(self, message: str, resource_id: str, state: Properties) -> None:
        super().__init__(message)
        self.resource_id = resource_id
        self.state = state


class InputError(Exception):
    """One input is not acceptable for a reason that the schema cannot express."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.problem = Problem(path, reason)


@dataclass(frozen=True)
class CheckCall:
    """Inputs before anything is done; some may be `UNKNOWN`."""

    name: str
    inputs: Properties
    old_inputs: Properties
    random_seed: bytes

    def automatic_name(self, separator: str = "-") -> str:
        """A physical name as the official plugins make it: logical name and seven hex digits.

        A name given before is kept.
        """
        kept = self.old_inputs.get("name")
        if isinstance(kept, str):
            return kept
        return f"{self.name}{separator}{self.random_seed.hex()[:7]}"


@dataclass(frozen=True)
class Call:
    """One operation on one resource.

    `inputs` are the checked new ones (empty on delete), `state` is the recorded state (empty on
    create), `timeout_seconds` is 0 when the program set none.
    """

    urn: str
    resource_id: str = ""
    inputs: Properties = field(default_factory=dict)
    old_inputs: Properties = field(default_factory=dict)
    state: Properties = field(default_factory=dict)
    timeout_seconds: float = 0
    cancelled: threading.Event = field(default_factory=threading.Event)
    log_to: Callable[[engine_pb2.LogRequest], object] = lambda _request: None

    @property
    def name(self) -> str:
        """The resource's logical name."""
        return self.urn.rsplit("::", 1)[-1]

    def log(self, message: str, severity: str = "info") -> None:
        """Show a line beside the resource (`debug`, `info`, `warning` or `error`)."""
        number = engine_pb2.LogSeverity.Value(severity.upper())
        self.log_to(engine_pb2.LogRequest(severity=number, message=message, urn=self.urn))

    def status(self, message: str) -> None:
        """Show a line while the operation runs; it is not repeated in the summary."""
        number = engine_pb2.LogSeverity.Value("INFO")
        self.log_to(
            engine_pb2.LogRequest(severity=number, message=message, urn=self.urn, ephemeral=True)
        )


@dataclass(frozen=True)
class Created:
    """A resource that now exists."""

    resource_id: str
    state: Properties


@dataclass(frozen=True)
class Read:
    """A resource as it was found; `inputs` are what a program would say to get it."""

    state: Properties
    inputs: Properties


class ResourceType(ABC):
    """One resource type. Every method may block; calls run in threads of their own."""

    token: ClassVar[str]
    recomputed_outputs: ClassVar[frozenset[str]] = frozenset()
    """Outputs that an update may change: a preview shows them as not known."""

    def check(self, call: CheckCall) -> Properties:
        """Inputs with defaults filled in. Called after the schema's own checks.

        Raises:
            InputError: an input is not acceptable.
        """
        return call.inputs

    def differences(self, schema: Schema, call: Call) -> list[Difference]:
        """What changed. `call` has the old inputs, the old state and the new inputs."""
        return schema.differences(self.token, call.old_inputs, call.inputs)

    def deletes_before_replace(self, call: Call) -> bool:
        """Whether a replacement must remove the old one first (two would share a name)."""
        del call
        return False

    @abstractmethod
    def create(self, call: Call) -> Created:
        """Make it. Raises ResourceError or PartialResourceError."""

    def read(self, call: Call) -> Read | None:
        """Find it as it is now; None when it is gone. Unchanged unless a type looks."""
        return Read(call.state, call.inputs)

    def update(self, call: Call) -> Properties:
        """Change it in place and give the new state.

        Raises ResourceError or PartialResourceError.
        """
        message = f"{self.token} cannot change in place: {', '.join(sorted(call.inputs))}"
        raise ResourceError(message)

    @abstractmethod
    def delete(self, call: Call) -> None:
        """Remove it; one that is gone already is a success. Raises ResourceError."""


Function = Callable[[Properties], Properties]
"""A look-up: arguments to result."""


@dataclass(frozen=True)
class Plugin:
    """Everything that a plugin serves."""

    name: str
    version: str
    schema: Schema
    resources: Sequence[ResourceType]
    functions: Mapping[str, Function] = field(default_factory=dict)
    configure: Callable[[Properties], None] = lambda _settings: None
    """Receives the provider's settings once, decoded; raises ResourceError to refuse them."""


def serve(plugin: Plugin) -> NoReturn:
    """Run the plugin until the engine ends it. The engine's address is the last argument."""
    try:
        asyncio.run(_serve(plugin, sys.argv[-1]))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # Threads of unfinished calls may block for minutes; the engine has given them up.
        os._exit(0)


async def _serve(plugin: Plugin, engine_address: str) -> None:
    server = grpc.aio.server(options=SERVER_OPTIONS)
    servicer = _Servicer(plugin, engine_address)
    provider_pb2_grpc.add_ResourceProviderServicer_to_server(servicer, server)
    await serve_until_ended(server)
    servicer.cancelled.set()


class _Servicer(ProviderServicer):
    def __init__(self, plugin: Plugin, engine_address: str) -> None:
        super().__init__([], plugin.version, experimental.Provider(), engine_address)
        self.cancelled = threading.Event()
        self._plugin = plugin
        self._types = {resource.token: resource for resource in plugin.resources}
        self._threads = ThreadPoolExecutor(CONCURRENT_CALLS)
        self._engine = engine_pb2_grpc.EngineStub(grpc.insecure_channel(engine_address))

    async def Cancel(self, request: empty_pb2.Empty, context: Any) -> empty_pb2.Empty:  # noqa: N802
        del request, context
        self.cancelled.set()
        return empty_pb2.Empty()

    async def CheckConfig(  # noqa: N802
        self, request: provider_pb2.CheckRequest, context: Any
    ) -> provider_pb2.CheckResponse:
        inputs = from_wire(request.news)

        def check() -> list[Problem]:
            settings = self._plugin.schema.configuration(inputs)
            return self._plugin.schema.configuration_problems(settings)

        problems = await self._run(context, check)
        return provider_pb2.CheckResponse(inputs=to_wire(inputs), failures=_failures(problems))

    async def Configure(  # noqa: N802
        self, request: provider_pb2.ConfigureRequest, context: Any
    ) -> provider_pb2.ConfigureResponse:
        settings = self._plugin.schema.configuration(from_wire(request.args))
        await self._run(context, lambda: self._plugin.configure(settings))
        # Wrapped secrets are refused on purpose: see lab.plugins.values.
        return provider_pb2.ConfigureResponse(
            acceptSecrets=False, acceptResources=False, acceptOutputs=False, supportsPreview=True
        )

    async def Check(  # noqa: N802
        self, request: provider_pb2.CheckRequest, context: Any
    ) -> provider_pb2.CheckResponse:
        token = _type_of(request.urn)
        inputs = from_wire(request.news)
        call = CheckCall(
            name=request.urn.rsplit("::", 1)[-1],
            inputs=inputs,
            old_inputs=from_wire(request.olds),
            random_seed=request.randomSeed,
        )

        def check() -> tuple[Properties, list[Problem]]:
            resource = self._resource(token)
            if problems := self._plugin.schema.problems(token, inputs):
                return inputs, problems
            filled = self._plugin.schema.with_defaults(token, inputs)
            try:
                return resource.check(replace(call, inputs=filled)), []
            except InputError as refusal:
                return inputs, [refusal.problem]

        checked, problems = await self._run(context, check)
        return provider_pb2.CheckResponse(inputs=to_wire(checked), failures=_failures(problems))

    async def Diff(  # noqa: N802
        self, request: provider_pb2.DiffRequest, context: Any
    ) -> provider_pb2.DiffResponse:
        call = self._operation(
            request.urn,
            resource_id=request.id,
            inputs=from_wire(request.news),
            old_inputs=from_wire(request.old_inputs),
            state=from_wire(request.olds),
        )

        def compare() -> tuple[list[Difference], bool]:
            resource = self._resource(_type_of(request.urn))
            found = resource.differences(self._plugin.schema, call)
            replaced = any(difference.replaces for difference in found)
            return found, replaced and resource.deletes_before_replace(call)

        found, deletes_first = await self._run(context, compare)
        response = provider_pb2.DiffResponse
        return response(
            changes=response.DIFF_SOME if found else response.DIFF_NONE,
            diffs=sorted({difference.top_level for difference in found}),
            replaces=sorted({item.top_level for item in found if item.replaces}),
            deleteBeforeReplace=deletes_first,
            detailedDiff={
                difference.path: provider_pb2.PropertyDiff(
                    kind=_DIFFERENCE_KINDS[difference.kind, difference.replaces], inputDiff=True
                )
                for difference in found
            },
            hasDetailedDiff=True,
        )

    async def Create(  # noqa: N802
        self, request: provider_pb2.CreateRequest, context: Any
    ) -> provider_pb2.CreateResponse:
        inputs = from_wire(request.properties)
        if request.preview:
            token = _type_of(request.urn)
            unknown = dict.fromkeys(self._plugin.schema.output_names(token), UNKNOWN)
            return provider_pb2.CreateResponse(properties=to_wire(unknown | inputs))
        call = self._operation(request.urn, inputs=inputs, timeout_seconds=request.timeout)
        created = await self._run(
            context, lambda: self._resource(_type_of(request.urn)).create(call), inputs
        )
        return provider_pb2.CreateResponse(
            id=created.resource_id, properties=to_wire(created.state)
        )

    async def Read(  # noqa: N802
        self, request: provider_pb2.ReadRequest, context: Any
    ) -> provider_pb2.ReadResponse:
        call = self._operation(
            request.urn,
            resource_id=request.id,
            inputs=from_wire(request.inputs),
            old_inputs=from_wire(request.inputs),
            state=from_wire(request.properties),
        )
        found = await self._run(context, lambda: self._resource(_type_of(request.urn)).read(call))
        if found is None:
            return provider_pb2.ReadResponse()
        return provider_pb2.ReadResponse(
            id=request.id, properties=to_wire(found.state), inputs=to_wire(found.inputs)
        )

    async def Update(  # noqa: N802
        self, request: provider_pb2.UpdateRequest, context: Any
    ) -> provider_pb2.UpdateResponse:
        inputs = from_wire(request.news)
        state = from_wire(request.olds)
        resource = self._types[_type_of(request.urn)]
        if request.preview:
            # An input that went away must not live on as an output.
            kept = {k: v for k, v in state.items() if k not in from_wire(request.old_inputs)}
            unknown = dict.fromkeys(resource.recomputed_outputs, UNKNOWN)
            return provider_pb2.UpdateResponse(properties=to_wire(kept | inputs | unknown))
        call = self._operation(
            request.urn,
            resource_id=request.id,
            inputs=inputs,
            old_inputs=from_wire(request.old_inputs),
            state=state,
            timeout_seconds=request.timeout,
        )
        updated = await self._run(context, lambda: resource.update(call), inputs)
        return provider_pb2.UpdateResponse(properties=to_wire(updated))

    async def Delete(  # noqa: N802
        self, request: provider_pb2.DeleteRequest, context: Any
    ) -> empty_pb2.Empty:
        call = self._operation(
            request.urn,
            resource_id=request.id,
            old_inputs=from_wire(request.old_inputs),
            state=from_wire(request.properties),
            timeout_seconds=request.timeout,
        )
        await self._run(context, lambda: self._resource(_type_of(request.urn)).delete(call))
        return empty_pb2.Empty()

    async def Invoke(  # noqa: N802
        self, request: provider_pb2.InvokeRequest, context: Any
    ) -> provider_pb2.InvokeResponse:
        arguments = from_wire(request.args)

        def look_up() -> tuple[Properties, list[Problem]]:
            function = self._plugin.functions.get(request.tok)
            if function is None:
                raise ResourceError(_unsupported(self._plugin, request.tok))
            if problems := self._plugin.schema.function_problems(request.tok, arguments):
                return {}, problems
            return function(arguments), []

        result, problems = await self._run(context, look_up)
        response = provider_pb2.InvokeResponse(failures=_failures(problems))
        getattr(response, "return").CopyFrom(to_wire(result))
        return response

    def _resource(self, token: str) -> ResourceType:
        if token not in self._types:
            raise ResourceError(_unsupported(self._plugin, token))
        return self._types[token]

    def _operation(self, urn: str, **parts: Any) -> Call:
        return Call(urn=urn, cancelled=self.cancelled, log_to=self._engine.Log, **parts)

    async def _run(
        self, context: Any, work: Callable[[], Result], inputs: Properties | None = None
    ) -> Result:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, work)
        except PartialResourceError as failure:
            await _abort_with_state(context, failure, inputs or {})
        except ResourceError as failure:
            await context.abort(grpc.StatusCode.UNKNOWN, str(failure))
        raise AssertionError  # abort() always raises


_DIFFERENCE_KINDS: Final = {
    ("add", False): provider_pb2.PropertyDiff.ADD,
    ("add", True): provider_pb2.PropertyDiff.ADD_REPLACE,
    ("delete", False): provider_pb2.PropertyDiff.DELETE,
    ("delete", True): provider_pb2.PropertyDiff.DELETE_REPLACE,
    ("update", False): provider_pb2.PropertyDiff.UPDATE,
    ("update", True): provider_pb2.PropertyDiff.UPDATE_REPLACE,
}


async def _abort_with_state(
    context: Any, failure: PartialResourceError, inputs: Properties
) -> None:
    detail = any_pb2.Any()
    detail.Pack(
        provider_pb2.ErrorResourceInitFailed(
            id=failure.resource_id,
            properties=to_wire(failure.state),
            inputs=to_wire(inputs),
            reasons=[str(failure)],
        )
    )
    status = status_pb2.Status(
        code=grpc.StatusCode.UNKNOWN.value[0], message=str(failure), details=[detail]
    )
    await context.abort(
        grpc.StatusCode.UNKNOWN,
        str(failure),
        (("grpc-status-details-bin", status.SerializeToString()),),
    )


def _failures(problems: Sequence[Problem]) -> list[provider_pb2.CheckFailure]:
    return [provider_pb2.CheckFailure(property=p.path, reason=p.reason) for p in problems]


def _type_of(urn: str) -> str:
    """The URN's type, which follows its parents' types after a `$`."""
    return urn.split("::")[2].rsplit("$", 1)[-1]


def _unsupported(plugin: Plugin, token: str) -> str:
    known = ", ".join([*(r.token for r in plugin.resources), *plugin.functions])
    return (
        f"{token} is not one of the types that the lab's stand-in for the {plugin.name} plugin "
        f"knows ({known}): add it to lab/plugins/{plugin.name}.py or install the official plugin"
    )
