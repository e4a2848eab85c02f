"""A recording stand-in for the engine: what was registered, by whom, with which options."""

import asyncio
import json
import runpy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pulumi
from pulumi.runtime import mocks as pulumi_mocks
from pulumi.runtime import rpc

import settings
from plan.derivation import encode
from tests.unit.samples import SEED

ROOT = Path(settings.__file__).parent
PROJECT = settings.PROJECT
FAKE_PASSWORD = "not-a-real-password-0000"


@dataclass(frozen=True, kw_only=True)
class Registration:
    """One resource as the engine would see it."""

    type: str
    name: str
    parent: str
    provider: str
    protect: bool
    ignore_changes: tuple[str, ...]
    dependencies: frozenset[str]
    """URNs."""
    inputs: Mapping[str, Any]
    urn: str


@dataclass
class Recorder(pulumi_mocks.Mocks):
    """Answers like a provider that creates everything, and remembers the questions.

    Attributes:
        core_outputs: of the stack that a StackReference reads.
        lookups: token and provider of every function that was called.
    """

    core_outputs: Mapping[str, Any] = field(default_factory=dict)
    lookups: list[tuple[str, str]] = field(default_factory=list)
    registrations: list[Registration] = field(default_factory=list)
    outputs_registered: set[str] = field(default_factory=set)
    stack_outputs: dict[str, Any] = field(default_factory=dict)
    secret_outputs: set[str] = field(default_factory=set)
    earlier_outputs: Mapping[str, Any] = field(default_factory=dict)

    def new_resource(
        self, args: pulumi_mocks.MockResourceArgs
    ) -> tuple[str | None, dict[Any, Any]]:
        if args.typ == "pulumi:pulumi:StackReference":
            return args.resource_id, {
                "name": args.resource_id,
                "outputs": dict(self.core_outputs),
                "secretOutputNames": ["join_bundles"],
            }
        state = dict(args.inputs)
        state.setdefault("name", args.name)
        state.setdefault("arn", f"arn:aws:test:::{args.name}")
        if args.typ == "aws:ec2/launchTemplate:LaunchTemplate":
            state["latestVersion"] = 1
        if args.typ == "aws:ssm/parameter:Parameter":
            state["version"] = 1
        if args.typ == "aws:iam/accessKey:AccessKey":
            state["secret"] = "made-up-secret-key"
        return f"{args.name}-id", state

    def call(
        self, args: pulumi_mocks.MockCallArgs
    ) -> tuple[dict[Any, Any], list[tuple[str, str]] | None]:
        self.lookups.append((args.token, args.provider))
        answers: dict[str, dict[str, Any]] = {
            "pulumi:pulumi:readStackOutputs": {"outputs": dict(self.earlier_outputs)},
            "aws:ec2/getAmi:getAmi": {
                "id": "ami-0123456789abcdef0",
                "architecture": "x86_64",
                "rootDeviceName": "/dev/xvda",
            },
            "aws:index/getCallerIdentity:getCallerIdentity": {"accountId": "123456789012"},
            "aws:index/getPartition:getPartition": {
                "partition": "aws",
                "dnsSuffix": "amazonaws.com",
            },
        }
        return dict(answers[args.token]), []

    def of_type(self, type_: str) -> list[Registration]:
        return [entry for entry in self.registrations if entry.type == type_]

    def named(self, name: str) -> Registration:
        return next(entry for entry in self.registrations if entry.name == name)


class RecordingMonitor(pulumi_mocks.MockMonitor):
    """Keeps what Pulumi's own mock monitor drops: options, parents and registered outputs."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder)
        self.recorder = recorder

    def RegisterResource(self, request: Any) -> Any:  # noqa: N802 - gRPC's name
        response = super().RegisterResource(request)  # type: ignore[no-untyped-call]
        if request.type != "pulumi:pulumi:Stack":
            inputs = rpc.deserialize_properties(request.object, keep_unknowns=True)
            self.recorder.registrations.append(
                Registration(
                    type=request.type,
                    name=request.name,
                    parent=request.parent,
                    provider=request.provider,
                    protect=request.protect,
                    ignore_changes=tuple(request.ignoreChanges),
                    dependencies=frozenset(request.dependencies),
                    inputs=inputs,
                    urn=response.urn,
                )
            )
        return response

    def RegisterResourceOutputs(self, request: Any) -> Any:  # noqa: N802 - gRPC's name
        self.recorder.outputs_registered.add(request.urn)
        return super().RegisterResourceOutputs(request)  # type: ignore[no-untyped-call]


def is_secret(value: object) -> bool:
    """Whether a recorded input or output is wrapped as a secret."""
    return bool(rpc.is_rpc_secret(value))


def plain(value: Any) -> Any:
    """A recorded value without its secret wrapping."""
    return rpc.unwrap_rpc_secret(value)


def _exported(recorder: Recorder) -> pulumi.Output[None]:
    """Remember the stack's outputs, which the mock monitor never sees."""
    root: Any = pulumi.runtime.get_root_resource()

    async def resolve(name: str, value: object) -> None:
        output = pulumi.Output.from_input(value)
        secret = await output.is_secret()
        recorder.secret_outputs |= {name} if secret else set()
        recorder.stack_outputs[name] = await output.future()

    async def resolve_all() -> None:
        for name, value in root.outputs.items():
            await resolve(name, value)

    return pulumi.Output.from_input(resolve_all())


def record(
    build: Callable[[], object],
    *,
    stack: str = "test",
    recorder: Recorder | None = None,
    earlier_outputs: Mapping[str, Any] | None = None,
    preview: bool = False,
) -> Recorder:
    """Run a piece of program against the recorder, everything awaited."""
    asyncio.set_event_loop(asyncio.new_event_loop())
    recorder = recorder or Recorder(earlier_outputs=earlier_outputs or {})
    # One root for each run: outputs of an earlier program must not stay.
    pulumi.runtime.settings.ROOT.set(None)
    pulumi.runtime.set_mocks(
        recorder, project=PROJECT, stack=stack, preview=preview, monitor=RecordingMonitor(recorder)
    )

    def run() -> pulumi.Output[None]:
        build()
        return _exported(recorder)

    pulumi.runtime.test(run)()
    return recorder


def record_program(
    data: Mapping[str, Any],
    *,
    ssh_private_key: str = "",
    stack: str = "test",
    without: str = "",
    recorder: Recorder | None = None,
    earlier_outputs: Mapping[str, Any] | None = None,
    preview: bool = False,
) -> Recorder:
    """Run `__main__.py` with these settings and made-up secrets.

    Parameters:
        data: settings as YAML would give them.
        ssh_private_key: a throw-away key; without one the stack has no secret at all.
        stack: name of the stack.
        without: a secret to leave out.
        recorder: to keep what a program that fails has asked for.
        earlier_outputs: what the stack put out when it last succeeded.
        preview: whether nothing is made, so that what a provider would decide stays unknown.
    """
    secrets = {
        "mesh-seed": encode(SEED),
        "ssh-private-key": ssh_private_key,
        "database-password": FAKE_PASSWORD + "-oslo",
        "fleet-database-password": FAKE_PASSWORD + "-fleet",
    }
    if not ssh_private_key:
        secrets = {}
    values = {f"{PROJECT}:{key}": text for key, text in secrets.items() if key != without}
    values[f"{PROJECT}:settings"] = json.dumps(data)

    def build() -> None:
        pulumi.runtime.set_all_config(values, secret_keys=[f"{PROJECT}:{key}" for key in secrets])
        runpy.run_path(str(ROOT / "__main__.py"), run_name="__main__")

    return record(
        build, stack=stack, recorder=recorder, earlier_outputs=earlier_outputs, preview=preview
    )
