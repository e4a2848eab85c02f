"""Owns what the five resource types share: names, defaults, and comparing what is wanted with what
was found. It asks libvirt nothing itself."""

import re
from abc import abstractmethod
from typing import Any, ClassVar

from lab.plugins.base import (
    Call,
    CheckCall,
    Difference,
    InputError,
    Properties,
    Read,
    ResourceError,
    ResourceType,
    Schema,
    contains_unknown,
)
from lab.plugins.libvirt.virsh import Virsh


class LibvirtResource(ResourceType):
    """What all five types share: names, defaults, and comparing with what was found."""

    defaults: ClassVar[Properties] = {}
    computed: ClassVar[frozenset[str]] = frozenset()
    """Inputs that libvirt settles when the program leaves them out: leaving out is no change."""
    replacing: ClassVar[frozenset[str]] = frozenset()
    """Inputs seen to replace though the official schema does not say so."""
    unsupported: ClassVar[frozenset[str]] = frozenset()
    """Legal inputs, as dotted paths without list indices, that the program has no use for."""

    def __init__(self, virsh: Virsh) -> None:
        self.virsh = virsh

    def check(self, call: CheckCall) -> Properties:
        """See the base class; adds the automatic name and the defaults."""
        for path in _paths(call.inputs):
            if path in self.unsupported:
                reason = (
                    "the lab's stand-in for the libvirt plugin does not do this: leave it out, "
                    "or add it to lab/plugins/libvirt"
                )
                raise InputError(path=path, reason=reason)
        inputs = self.defaults | call.inputs
        if not inputs.get("name"):
            inputs["name"] = call.automatic_name()
        if not contains_unknown(inputs):
            self.refuse(inputs)
        return inputs

    def refuse(self, inputs: Properties) -> None:
        """Raise InputError for what the schema cannot express; all inputs are known."""

    def differences(self, schema: Schema, call: Call) -> list[Difference]:
        """See the base class; compares with what was last read, not with what was last asked."""
        recorded = {
            name: value
            for name, value in _as_found(call.old_inputs, call.state, call.inputs).items()
            if name in call.inputs or name not in self.computed
        }
        found = schema.differences(
            self.token, self.comparable(recorded), self.comparable(call.inputs)
        )
        return [
            Difference(item.path, item.kind, item.replaces or item.top_level in self.replacing)
            for item in found
        ]

    def comparable(self, inputs: Properties) -> Properties:
        """Inputs without the differences of spelling that mean nothing."""
        return inputs

    def deletes_before_replace(self, call: Call) -> bool:
        """See the base class: an automatic name leaves room for both, a given one does not."""
        automatic = rf"{re.escape(call.name)}-[0-9a-f]{{7}}"
        return re.fullmatch(automatic, str(call.inputs.get("name"))) is None

    def read(self, call: Call) -> Read | None:
        """See the base class."""
        found = self.find(call.resource_id, call.state)
        if found is None:
            return None
        return Read(found, _as_found(call.inputs, found, call.inputs))

    @abstractmethod
    def find(self, resource_id: str, state: Properties) -> Properties | None:
        """The state as it is now, starting from the recorded one; None when it is gone."""

    def found(self, resource_id: str, state: Properties) -> Properties:
        """The state of what was just made or changed."""
        found = self.find(resource_id, state)
        if found is None:
            message = (
                f"{self.token} {resource_id} disappeared: find out who removed it, and run again"
            )
            raise ResourceError(message)
        return found

    @staticmethod
    def stylesheet(inputs: Properties) -> str | None:
        """The XSL transformation that the program wants applied."""
        text: str | None = inputs.get("xml", {}).get("xslt")
        return text


def _as_found(asked: Any, found: Any, wanted: Any) -> Any:
    """What was found, cut down to what was or is asked for: the rest is nobody's decision."""
    if isinstance(found, dict):
        asked = asked if isinstance(asked, dict) else {}
        wanted = wanted if isinstance(wanted, dict) else {}
        return {
            name: _as_found(asked.get(name), found[name], wanted.get(name))
            for name in asked.keys() | wanted.keys()
            if found.get(name) is not None
        }
    if isinstance(found, list):
        columns = [
            other if isinstance(other, list) and len(other) == len(found) else [None] * len(found)
            for other in (asked, wanted)
        ]
        triples = zip(columns[0], found, columns[1], strict=True)
        return [_as_found(*triple) for triple in triples]
    return found


def _paths(value: Any, prefix: str = "") -> list[str]:
    """Dotted paths of everything in nested inputs."""
    if isinstance(value, list):
        return [path for item in value for path in _paths(item, prefix)]
    if not isinstance(value, dict):
        return []
    paths = []
    for name, inner in value.items():
        path = f"{prefix}.{name}" if prefix else name
        paths += [path, *_paths(inner, path)]
    return paths
