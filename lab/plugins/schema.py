"""Owns the reading of a package schema: what is a legal input, and what a change to it means.

It knows nothing of any resource type. The form is the official package schema's own, cut down by
`compact` to what is enforced here, so that a stand-in cannot drift from the published names.

    python3 -m lab.plugins.schema OFFICIAL.json TYPE... > lab/plugins/schemas/NAME.json
"""

import difflib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from lab.plugins.values import UNKNOWN, Archive, Asset, Properties

Definition: TypeAlias = Mapping[str, Any]
"""One property or type of a package schema, exactly as the official file spells it."""

KEPT_WORDS: Final = frozenset(
    {
        "$ref",
        "additionalProperties",
        "default",
        "enum",
        "inputProperties",
        "items",
        "oneOf",
        "properties",
        "replaceOnChanges",
        "required",
        "requiredInputs",
        "type",
        "value",
        "willReplaceOnChanges",
    }
)

PYTHON_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "array": (list,),
    "object": (dict,),
}


@dataclass(frozen=True)
class Problem:
    """An input that the plugin refuses."""

    path: str
    reason: str


@dataclass(frozen=True)
class Difference:
    """One changed input.

    `kind` is `add`, `delete` or `update`; `path` is in the engine's notation (`a.b[0]`).
    """

    path: str
    kind: str
    replaces: bool

    @property
    def top_level(self) -> str:
        """Name of the input the path starts with."""
        return self.path.split(".", 1)[0].split("[", 1)[0]


class Schema:
    """A package schema."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._resources: Mapping[str, Definition] = document.get("resources", {})
        self._types: Mapping[str, Definition] = document.get("types", {})
        self._functions: Mapping[str, Definition] = document.get("functions", {})
        self._provider: Definition = document.get("provider", {})

    @classmethod
    def load(cls, path: Path) -> "Schema":
        """Read a schema file.

        Raises:
            OSError: the file cannot be read.
            json.JSONDecodeError: the file is not JSON.
        """
        return cls(json.loads(path.read_text(encoding="utf-8")))

    def problems(self, token: str, inputs: Properties) -> list[Problem]:
        """Every reason to refuse these inputs of a resource type; empty when they are legal."""
        resource = self._resources[token]
        return list(
            self._object_problems(
                "",
                inputs,
                resource.get("inputProperties", {}),
                resource.get("requiredInputs", ()),
                token,
            )
        )

    def with_defaults(self, token: str, inputs: Properties) -> Properties:
        """The inputs, with the schema's own default values filled in at every depth."""
        definitions = self._resources[token].get("inputProperties", {})
        return self._object_with_defaults(inputs, definitions)

    def function_problems(self, token: str, arguments: Properties) -> list[Problem]:
        """Every reason to refuse these arguments of a look-up; none if the schema lacks it."""
        if token not in self._functions:
            return []
        definition = self._functions[token].get("inputs", {})
        return list(
            self._object_problems(
                "",
                arguments,
                definition.get("properties", {}),
                definition.get("required", ()),
                token,
            )
        )

    def output_names(self, token: str) -> frozenset[str]:
        """Names of all properties that a resource's state may hold."""
        return frozenset(self._resources[token].get("properties", {}))

    def differences(self, token: str, old: Properties, new: Properties) -> list[Difference]:
        """Changed inputs, as deep as the schema's objects and arrays go."""
        definitions = self._resources[token].get("inputProperties", {})
        return list(self._object_differences("", old, new, definitions, replaces=False))

    def configuration(self, arguments: Properties) -> Properties:
        """Provider settings, decoded: the engine passes all but strings as JSON text.

        Raises:
            ValueError: a setting is not JSON of the type that the schema gives.
        """
        definitions = self._provider.get("inputProperties", {})
        decoded: Properties = {}
        for name, value in arguments.items():
            is_text = definitions.get(name, {}).get("type", "string") == "string"
            if isinstance(value, str) and not is_text:
                decoded[name] = json.loads(value)
            else:
                decoded[name] = value
        return decoded

    def configuration_problems(self, settings: Properties) -> list[Problem]:
        """Every reason to refuse these (decoded) provider settings."""
        # Both are the engine's own and reach every plugin.
        own = {k: v for k, v in settings.items() if k not in {"version", "pluginDownloadURL"}}
        definitions = self._provider.get("inputProperties", {})
        return list(self._object_problems("", own, definitions, (), "the provider"))

    def _resolve(self, definition: Definition) -> Definition:
        reference: str = definition.get("$ref", "")
        if not reference.startswith("#/types/"):
            return definition
        return self._types[_type_token(reference)]

    def _object_with_defaults(
        self, value: Properties, definitions: Mapping[str, Definition]
    ) -> Properties:
        filled = {
            name: definition["default"]
            for name, definition in definitions.items()
            if "default" in definition
        }
        for name, inner in value.items():
            filled[name] = self._value_with_defaults(inner, definitions.get(name, {}))
        return filled

    def _value_with_defaults(self, value: Any, definition: Definition) -> Any:
        resolved = self._resolve(definition)
        if isinstance(value, dict) and "properties" in resolved:
            return self._object_with_defaults(value, resolved["properties"])
        if isinstance(value, list):
            return [self._value_with_defaults(item, resolved.get("items", {})) for item in value]
        return value

    def _object_problems(
        self,
        path: str,
        value: Properties,
        definitions: Mapping[str, Definition],
        required: Sequence[str],
        owner: str,
    ) -> Iterator[Problem]:
        for name in required:
            if value.get(name) is None:
                yield Problem(_join(path, name), f"missing required input {name!r} of {owner}")
        for name, inner in value.items():
            if name in definitions:
                yield from self._value_problems(_join(path, name), inner, definitions[name])
                continue
            near = difflib.get_close_matches(name, definitions, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(definitions)}"
            yield Problem(_join(path, name), f"unknown input {name!r} of {owner}: {hint}")

    def _value_problems(self, path: str, value: Any, definition: Definition) -> Iterator[Problem]:
        if value is UNKNOWN or value is None:
            return
        if "oneOf" in definition:
            attempts = [
                list(self._value_problems(path, value, choice)) for choice in definition["oneOf"]
            ]
            if all(attempts):
                yield attempts[0][0]
            return
        special: str = definition.get("$ref", "")
        if special.startswith("pulumi.json#/"):
            if special.endswith(("Asset", "Archive")) and not isinstance(value, Asset | Archive):
                yield Problem(path, f"must be an asset or archive, got {_shown_type(value)}")
            return
        resolved = self._resolve(definition)
        kind = resolved.get("type", "object")
        is_flag = isinstance(value, bool)
        if is_flag != (kind == "boolean") or not isinstance(value, PYTHON_TYPES[kind]):
            # The value itself stays out of the message: it may be a secret.
            yield Problem(path, f"must be of type {kind}, got {_shown_type(value)}")
        elif "enum" in resolved:
            choices = [choice["value"] for choice in resolved["enum"]]
            if value not in choices:
                yield Problem(path, f"must be one of {', '.join(map(str, choices))}")
        elif isinstance(value, list):
            for index, item in enumerate(value):
                yield from self._value_problems(f"{path}[{index}]", item, resolved["items"])
        elif not isinstance(value, dict):
            return
        elif "properties" in resolved:
            yield from self._object_problems(
                path, value, resolved["properties"], resolved.get("required", ()), path
            )
        elif "additionalProperties" in resolved:
            for name, item in value.items():
                yield from self._value_problems(
                    _join(path, name), item, resolved["additionalProperties"]
                )

    def _object_differences(
        self,
        path: str,
        old: Properties,
        new: Properties,
        definitions: Mapping[str, Definition],
        *,
        replaces: bool,
    ) -> Iterator[Difference]:
        for name in sorted(old.keys() | new.keys()):
            yield from self._value_differences(
                _join(path, name),
                old.get(name),
                new.get(name),
                definitions.get(name, {}),
                replaces=replaces,
            )

    def _value_differences(
        self, path: str, old: Any, new: Any, definition: Definition, *, replaces: bool
    ) -> Iterator[Difference]:
        replaces = replaces or bool(
            definition.get("replaceOnChanges") or definition.get("willReplaceOnChanges")
        )
        if old == new:
            return
        if old is None:
            yield Difference(path, "add", replaces)
        elif new is None:
            yield Difference(path, "delete", replaces)
        elif isinstance(old, dict) and isinstance(new, dict):
            resolved = self._resolve(definition)
            any_key: Definition = resolved.get("additionalProperties", {})
            inner: Mapping[str, Definition] = resolved.get("properties") or {
                name: any_key for name in old.keys() | new.keys()
            }
            yield from self._object_differences(path, old, new, inner, replaces=replaces)
        elif isinstance(old, list) and isinstance(new, list):
            items = self._resolve(definition).get("items", {})
            for index in range(max(len(old), len(new))):
                yield from self._value_differences(
                    f"{path}[{index}]",
                    old[index] if index < len(old) else None,
                    new[index] if index < len(new) else None,
                    items,
                    replaces=replaces,
                )
        else:
            yield Difference(path, "update", replaces)


def compact(official: Mapping[str, Any], tokens: Sequence[str]) -> dict[str, Any]:
    """The part of an official package schema that the given resource types need."""
    provider = {"inputProperties": _strip(official["provider"]).get("inputProperties", {})}
    resources = {}
    for token in tokens:
        resource = _strip(official["resources"][token])
        resources[token] = {
            "inputProperties": resource.get("inputProperties", {}),
            "requiredInputs": resource.get("requiredInputs", []),
            "properties": {name: {} for name in resource.get("properties", {})},
        }
    types: dict[str, Any] = {}
    pending = set(_references([resources, provider]))
    while pending:
        token = pending.pop()
        types[token] = _strip(official["types"][token])
        pending |= set(_references(types[token])) - types.keys()
    return {"provider": provider, "resources": resources, "types": dict(sorted(types.items()))}


def _strip(definition: Any) -> Any:
    if isinstance(definition, list):
        return [_strip(item) for item in definition]
    if not isinstance(definition, dict):
        return definition
    return {
        word: {name: _strip(property_) for name, property_ in inner.items()}
        if word in {"properties", "inputProperties"}
        else _strip(inner)
        for word, inner in definition.items()
        if word in KEPT_WORDS
    }


def _references(definition: Any) -> Iterator[str]:
    if isinstance(definition, list):
        for item in definition:
            yield from _references(item)
    elif isinstance(definition, dict):
        reference = definition.get("$ref", "")
        if isinstance(reference, str) and reference.startswith("#/types/"):
            yield _type_token(reference)
        for inner in definition.values():
            yield from _references(inner)


def _type_token(reference: str) -> str:
    return reference.removeprefix("#/types/").replace("%2F", "/")


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _shown_type(value: Any) -> str:
    names = {bool: "boolean", int: "number", float: "number", str: "string", list: "array"}
    return names.get(type(value), "object" if isinstance(value, dict) else type(value).__name__)


if __name__ == "__main__":
    source, *wanted = sys.argv[1:]
    subset = compact(json.loads(Path(source).read_text(encoding="utf-8")), wanted)
    json.dump(subset, sys.stdout, indent=1)
    sys.stdout.write("\n")
