"""Owns the serving of the tables: names, comparison, state and errors, alike for all types."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final, NoReturn

from lab.plugins.aws import fleet, functions, identity, lookups, network, records, shapes
from lab.plugins.aws.cloud import Cloud, GoneError, RefusedError
from lab.plugins.aws.kinds import Change, Kind
from lab.plugins.base import (
    Call,
    CheckCall,
    Created,
    Difference,
    InputError,
    PartialResourceError,
    Plugin,
    Properties,
    Read,
    ResourceError,
    ResourceType,
    Schema,
    contains_unknown,
    serve,
)

DEFAULTS_KEY: Final = "__defaults"
"""Where the official bridge, too, notes which inputs it filled in."""

SCHEMA: Final = Schema(shapes.SCHEMA)

KINDS: Final[Mapping[str, Kind]] = {
    **network.KINDS,
    **identity.KINDS,
    **records.KINDS,
    **fleet.KINDS,
    **functions.KINDS,
}


class Session:
    """The provider's settings, known only after the engine has sent them."""

    def __init__(self) -> None:
        self._cloud: Cloud | None = None

    def configure(self, settings: Properties) -> None:
        """Take the settings. Raises ResourceError when they do not work."""
        try:
            self._cloud = Cloud.configured(settings)
        except RefusedError as error:
            message = f"the AWS provider cannot be configured: {error}"
            raise ResourceError(message) from error

    def cloud(self, region: str | None = None) -> Cloud:
        """The API. Raises ResourceError before the settings are known."""
        if self._cloud is None:
            message = "the AWS provider has no settings yet: the engine must configure it first"
            raise ResourceError(message)
        return self._cloud.in_region(region) if region else self._cloud


class _AwsType(ResourceType):
    """Any resource type of the tables; subclasses made by `resource_type` only name theirs."""

    kind: ClassVar[Kind]
    session: ClassVar[Session]

    def check(self, call: CheckCall) -> Properties:
        inputs = dict(call.inputs)
        for name in inputs.keys() - self.kind.inputs - {"region"}:
            reason = (
                "a legal input, but the lab's stand-in does not carry it out: "
                "add it to lab/plugins/aws or leave it out"
            )
            raise InputError(name, reason)
        absent = {name: value for name, value in self.kind.defaults.items() if name not in inputs}
        if self.kind.name and self.kind.name not in inputs:
            absent[self.kind.name] = self._generated_name(call, self.kind.name)
        return inputs | absent | {DEFAULTS_KEY: sorted(absent)}

    def _generated_name(self, call: CheckCall, name: str) -> str:
        prefix = call.inputs.get("namePrefix")
        was_generated = name in call.old_inputs.get(DEFAULTS_KEY, [])
        if was_generated and prefix == call.old_inputs.get("namePrefix"):
            return str(call.old_inputs[name])
        digits = call.random_seed.hex()
        if isinstance(prefix, str):
            return prefix + digits[:26]
        return f"{call.name[: self.kind.name_limit - 8]}-{digits[:7]}"

    def differences(self, schema: Schema, call: Call) -> list[Difference]:
        old, new = dict(call.old_inputs), dict(call.inputs)
        for name in old.keys() & new.keys():
            if self._same(name, old[name], new[name]):
                del old[name], new[name]
        old.pop(DEFAULTS_KEY, None)
        new.pop(DEFAULTS_KEY, None)
        found = schema.differences(self.token, old, new)
        tags = call.inputs.get("tags")
        if (
            self.kind.tagged
            and not contains_unknown(tags)
            and self.session.cloud().all_tags(tags) != call.state.get("tagsAll", {})
            and "tags" not in {difference.top_level for difference in found}
        ):
            found.append(Difference("tagsAll", "update", replaces=False))
        return found

    def deletes_before_replace(self, call: Call) -> bool:
        name = self.kind.name
        if name is None or name in call.inputs.get(DEFAULTS_KEY, []):
            return False
        return bool(call.inputs.get(name) == call.old_inputs.get(name))

    def create(self, call: Call) -> Created:
        cloud = self._cloud(call)
        try:
            made = self.kind.create(cloud, call.inputs)
        except RefusedError as error:
            self._fail("creating", call, error)
        resource_id, told_once = made if isinstance(made, tuple) else (made, {})
        failure = ""
        try:
            if self.kind.finish:
                self.kind.finish(cloud, resource_id, call.inputs)
        except RefusedError as error:
            failure = f"creating {self.token} ({call.name}): {error}"
        try:
            found = self.kind.read(cloud, resource_id, call.inputs) or {}
        except RefusedError as error:
            found = {}
            failure = failure or f"reading {self.token} ({call.name}) after creation: {error}"
        state = self._state(cloud, call.inputs | told_once, call.inputs, found)
        if failure:
            raise PartialResourceError(failure, resource_id, state)
        return Created(resource_id, state)

    def read(self, call: Call) -> Read | None:
        cloud = self._cloud(call)
        found = self._find(cloud, call)
        if found is None:
            return None
        state = self._state(cloud, call.state, call.inputs, found)
        inputs = {
            name: value
            if (name not in found and name != "tags") or self._covered(name, state.get(name), value)
            else state.get(name)
            for name, value in call.inputs.items()
        }
        return Read(state, inputs)

    def update(self, call: Call) -> Properties:
        cloud = self._cloud(call)
        present = self._find(cloud, call)
        if present is None:
            message = f"updating {self.token} ({call.name}): it is gone; run pulumi refresh first"
            raise ResourceError(message)
        changed = {item.top_level for item in self.differences(SCHEMA, call)} | {
            name
            for name, value in call.inputs.items()
            if name in present and not self._covered(name, present[name], value)
        }
        # Nothing may differ when an unfinished creation is completed: then all is applied again.
        changed = changed or set(call.inputs)
        change = Change(call.state | present, call.inputs, frozenset(changed))
        try:
            if self.kind.update:
                self.kind.update(cloud, call.resource_id, change)
            found = self.kind.read(cloud, call.resource_id, call.inputs)
        except RefusedError as error:
            self._fail("updating", call, error)
        told_once = {key: call.state.get(key) for key in self.kind.told_once}
        return self._state(cloud, call.inputs | told_once, call.inputs, found or {})

    def delete(self, call: Call) -> None:
        try:
            self.kind.delete(self._cloud(call), call.resource_id, call.state)
        except GoneError:
            call.log(f"{self.token} {call.resource_id} is gone already", "debug")
        except RefusedError as error:
            self._fail("deleting", call, error)

    def _find(self, cloud: Cloud, call: Call) -> Properties | None:
        try:
            return self.kind.read(cloud, call.resource_id, call.state)
        except GoneError:
            return None
        except RefusedError as error:
            self._fail("reading", call, error)

    def _cloud(self, call: Call) -> Cloud:
        region = call.inputs.get("region") or call.state.get("region")
        return dataclasses.replace(
            self.session.cloud(region),
            say=call.log,
            warn=lambda message: call.log(message, "warning"),
        )

    def _fail(self, doing: str, call: Call, error: RefusedError) -> NoReturn:
        message = f"{doing} {self.token} ({call.name}): {error}"
        raise ResourceError(message) from error

    def _state(
        self, cloud: Cloud, previous: Properties, inputs: Properties, found: Properties
    ) -> Properties:
        state = {name: value for name, value in previous.items() if name != DEFAULTS_KEY}
        for name, value in found.items():
            if value is not None and not self._same(name, state.get(name), value):
                state[name] = value
        state["region"] = cloud.region
        if self.kind.tagged:
            given = inputs.get("tags") or {}
            defaults = cloud.all_tags({})
            own = {
                key: value
                for key, value in state.get("tagsAll", {}).items()
                if key in given or defaults.get(key) != value
            }
            state.pop("tags", None)
            if own or "tags" in inputs:
                state["tags"] = own
        return state

    def _same(self, name: str, one: Any, other: Any) -> bool:
        return bool(self._canonical(name, one) == self._canonical(name, other))

    def _covered(self, name: str, found: Any, wanted: Any) -> bool:
        return _covers(self._canonical(name, found), self._canonical(name, wanted))

    def _canonical(self, path: str, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._canonical(f"{path}.{key}", inner) for key, inner in value.items()}
        if isinstance(value, list):
            items = [self._canonical(path, inner) for inner in value]
            if path in self.kind.sets:
                return sorted(items, key=lambda item: json.dumps(item, sort_keys=True, default=str))
            return items
        if path in self.kind.documents and isinstance(value, str):
            try:
                return json.loads(value)
            except ValueError:
                return value
        return value


def _covers(found: Any, wanted: Any) -> bool:
    """Whether what is wanted is there; AWS may have filled in more beside it."""
    if isinstance(wanted, dict):
        there = found if isinstance(found, dict) else {}
        return all(_covers(there.get(key), inner) for key, inner in wanted.items())
    if isinstance(wanted, list):
        there_list = found if isinstance(found, list) else []
        return len(there_list) == len(wanted) and all(map(_covers, there_list, wanted))
    return bool(found == wanted) or (not found and not wanted)


def resource_type(token: str, kind: Kind, session: Session) -> ResourceType:
    """The server's side of one table row."""
    members = {
        "token": token,
        "kind": kind,
        "session": session,
        "recomputed_outputs": kind.moving,
    }
    made: ResourceType = type(token, (_AwsType,), members)()
    return made


def _function(
    look_up: Callable[[Cloud, Properties], Properties], session: Session, token: str
) -> Callable[[Properties], Properties]:
    def answer(arguments: Properties) -> Properties:
        try:
            # getRegion's argument names what is asked about, not where to ask.
            asked = None if token.endswith(":getRegion") else arguments.get("region")
            return look_up(session.cloud(asked), arguments)
        except RefusedError as error:
            raise ResourceError(str(error)) from error

    return answer


def main() -> NoReturn:
    """Serve the plugin until the engine ends it."""
    session = Session()
    serve(
        Plugin(
            name="aws",
            version=str(shapes.SCHEMA["version"]),
            schema=SCHEMA,
            resources=[resource_type(token, kind, session) for token, kind in KINDS.items()],
            functions={
                token: _function(look_up, session, token)
                for token, look_up in lookups.FUNCTIONS.items()
            },
            configure=session.configure,
        )
    )
