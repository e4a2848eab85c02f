"""Owns the translation between the provider's inputs and the API's structures.

Both sides are described by data that others publish: the API by botocore's service model, the
provider by `aws.json`. Most names differ only in the first letter's case; a table row gives the
rest. It makes no calls.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from lab.plugins.aws.cloud import Cloud, RefusedError
from lab.plugins.values import Properties

SCHEMA: Final[Mapping[str, Any]] = json.loads(
    (Path(__file__).parent.parent / "schemas" / "aws.json").read_text(encoding="utf-8")
)


def request(
    cloud: Cloud,
    service: str,
    operation: str,
    inputs: Properties,
    names: Mapping[str, str],
    member: str = "",
) -> dict[str, Any]:
    """The parameters of an operation (AWS's name, as `CreateVpc`) for these inputs.

    Parameters:
        names: the API's name of an input whose name differs by more than the first letter, keyed
            by the input's name, or `parent.name` for one place only.
        member: the member of the operation that takes the inputs, when it is not the whole.

    Raises:
        RefusedError: the API has no place for an input.
    """
    shape = cloud.client(service).meta.service_model.operation_model(operation).input_shape
    if member:
        shape = shape.members[member]
    built: dict[str, Any] = _to_api(inputs, shape, names, "")
    return built


def state(token: str, answer: Mapping[str, Any], names: Mapping[str, str]) -> Properties:
    """What an API answer says of a resource type's inputs, in the provider's names and types."""
    definition = {"properties": SCHEMA["resources"][token]["inputProperties"]}
    found: Properties = _from_api(answer, definition, names, "")
    return found


def tag_list(tags: Mapping[str, str]) -> list[dict[str, str]]:
    """Tags as most of the API wants them."""
    return [{"Key": key, "Value": value} for key, value in sorted(tags.items())]


def tag_map(tags: list[dict[str, str]] | None) -> dict[str, str]:
    """Tags as the provider wants them, without those that AWS itself sets."""
    return {tag["Key"]: tag["Value"] for tag in tags or [] if not tag["Key"].startswith("aws:")}


def _api_name(parent: str, name: str, names: Mapping[str, str]) -> str:
    return names.get(f"{parent}.{name}") or names.get(name) or name[0].upper() + name[1:]


def _to_api(value: Any, shape: Any, names: Mapping[str, str], path: str) -> Any:
    match shape.type_name:
        case "structure":
            members = {name.lower(): name for name in shape.members}
            built = {}
            for name, inner in value.items():
                if inner is None or inner == "":
                    continue
                found = members.get(_api_name(path, name, names).lower())
                if found is None:
                    message = f"input {name!r}: the stand-in does not know where the API takes it"
                    raise RefusedError(message)
                built[found] = _to_api(inner, shape.members[found], names, name)
            return built
        case "list":
            if isinstance(value, dict):
                return tag_list(value)
            return [_to_api(item, shape.member, names, path) for item in value]
        case "boolean":
            return value in (True, "true")
        case "integer" | "long":
            return int(value)
        case "float" | "double":
            return float(value)
        case "string":
            return str(value).lower() if isinstance(value, bool) else str(value)
        case _:
            return value


def _from_api(
    value: Any, definition: Mapping[str, Any], names: Mapping[str, str], path: str
) -> Any:
    reference = definition.get("$ref", "")
    if reference:
        definition = SCHEMA["types"][reference.removeprefix("#/types/")]
    if "properties" in definition:
        answered = {name.lower(): inner for name, inner in value.items()}
        found = {
            name: _from_api(answered[key], inner, names, name)
            for name, inner in definition["properties"].items()
            if answered.get(key := _api_name(path, name, names).lower()) is not None
        }
        return {name: inner for name, inner in found.items() if inner not in ([], {})}
    if "additionalProperties" in definition:
        return tag_map(value) if isinstance(value, list) else dict(value)
    match definition["type"]:
        case "array":
            return [_from_api(item, definition["items"], names, path) for item in value]
        case "string":
            return str(value).lower() if isinstance(value, bool) else str(value)
        case "integer":
            return int(value)
        case "number":
            return float(value)
        case _:
            return value
