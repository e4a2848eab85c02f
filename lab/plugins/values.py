"""Owns the translation between the engine's wire form and plain Python values.

The SDK's own `PropertyValue` cannot read an unknown value, nor an asset whose content the engine
left out of a comparison, so both would end a preview in a traceback.

Secrets arrive already opened: the plugins tell the engine that they do not take wrapped ones, and
the engine then marks every output that has the name of a secret input.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from google.protobuf import struct_pb2

Properties: TypeAlias = dict[str, Any]
"""A resource's inputs or state: bool, int, float, str, list, dict, Asset, Archive, UNKNOWN."""

SIGNATURE_KEY: Final = "4dabf18193072939515e22adb298388d"
ASSET_SIGNATURE: Final = "c44067f5952c0a294b673a41bacd8c17"
ARCHIVE_SIGNATURE: Final = "0def7320c3a5731c473e5ecbe6d01bc7"
SECRET_SIGNATURE: Final = "1b47061264138c4ac30d75fd1eb44270"
RESOURCE_SIGNATURE: Final = "5cf8f73096256a8f31e491e813e4eb8e"
OUTPUT_SIGNATURE: Final = "d0e6a833031e9bbcd3f4e8bde6ca49a4"

UNKNOWN_TEXT: Final = "04da6b54-80e4-46f7-96ec-b56ff0331ba9"
UNKNOWN_TEXTS: Final = frozenset(
    {
        UNKNOWN_TEXT,
        "1c4a061d-8072-4f0a-a4cb-0ff528b18fe7",
        "3eeb2bf0-c639-47a8-9e75-3b44932eb421",
        "6a19a0b0-7e62-4c92-b797-7f8e31da9cc2",
        "030794c1-ac77-496b-92df-f27374a8bd58",
        "e48ece36-62e2-4504-bad9-02848725956a",
        "dd056dcd-154b-4c76-9bd3-c8f88648b5ff",
    }
)
"""The engine's marks for a value not known before the real run, one per type (its `rpc.go`)."""


class Unknown:
    """Type of `UNKNOWN`."""

    def __repr__(self) -> str:
        return "UNKNOWN"


UNKNOWN: Final = Unknown()
"""A value that another resource will only have after the real run."""


@dataclass(frozen=True)
class Asset:
    """A file's content; `content_hash` is the engine's SHA-256, by which assets are compared."""

    content_hash: str
    path: str | None = None
    text: str | None = None
    uri: str | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Asset) and self.content_hash == other.content_hash

    def __hash__(self) -> int:
        return hash(self.content_hash)

    def read(self) -> bytes:
        """The content.

        Raises:
            OSError: the file cannot be read.
            ValueError: the asset is neither a file nor a text.
        """
        if self.text is not None:
            return self.text.encode()
        if self.path is not None:
            return Path(self.path).read_bytes()
        message = f"asset {self.uri!r} is remote: only files and texts are supported; copy it first"
        raise ValueError(message)


@dataclass(frozen=True)
class Archive:
    """A collection of files; compared by `content_hash` (the engine's SHA-256)."""

    content_hash: str
    path: str | None = None
    uri: str | None = None
    assets: tuple[tuple[str, "Asset | Archive"], ...] = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Archive) and self.content_hash == other.content_hash

    def __hash__(self) -> int:
        return hash(self.content_hash)


def from_wire(fields: struct_pb2.Struct) -> Properties:
    """Plain values of the engine's properties; null ones are left out, whole numbers are int."""
    return {
        name: _value_from_wire(value)
        for name, value in fields.fields.items()
        if value.WhichOneof("kind") != "null_value"
    }


def to_wire(properties: Mapping[str, Any]) -> struct_pb2.Struct:
    """The engine's form of plain values.

    Raises:
        TypeError: a value has no wire form.
    """
    return struct_pb2.Struct(
        fields={
            name: _value_to_wire(value) for name, value in properties.items() if value is not None
        }
    )


def contains_unknown(value: Any) -> bool:
    """Whether any part of the value is not known yet."""
    if isinstance(value, dict):
        return any(map(contains_unknown, value.values()))
    if isinstance(value, list):
        return any(map(contains_unknown, value))
    return value is UNKNOWN


def _value_from_wire(value: struct_pb2.Value) -> Any:
    match value.WhichOneof("kind"):
        case "bool_value":
            return value.bool_value
        case "number_value":
            number = value.number_value
            return int(number) if number.is_integer() else number
        case "string_value":
            return UNKNOWN if value.string_value in UNKNOWN_TEXTS else value.string_value
        case "list_value":
            return [_value_from_wire(item) for item in value.list_value.values]
        case "struct_value":
            return _struct_from_wire(value.struct_value)
        case _:
            return None


def _struct_from_wire(struct: struct_pb2.Struct) -> Any:
    fields = struct.fields
    texts = {name: inner.string_value or None for name, inner in fields.items()}
    match texts.get(SIGNATURE_KEY):
        case None:
            return from_wire(struct)
        case str(signature) if signature in {SECRET_SIGNATURE, OUTPUT_SIGNATURE}:
            return _value_from_wire(fields["value"]) if "value" in fields else UNKNOWN
        case str(signature) if signature == ASSET_SIGNATURE:
            return Asset(
                content_hash=texts.get("hash") or "",
                path=texts.get("path"),
                # An empty text is a legal content, an absent one is not.
                text=fields["text"].string_value if "text" in fields else None,
                uri=texts.get("uri"),
            )
        case str(signature) if signature == ARCHIVE_SIGNATURE:
            inner = from_wire(fields["assets"].struct_value) if "assets" in fields else {}
            return Archive(
                content_hash=texts.get("hash") or "",
                path=texts.get("path"),
                uri=texts.get("uri"),
                assets=tuple(inner.items()),
            )
        case signature:
            message = f"the engine sent a value of an unknown kind ({signature})"
            raise ValueError(message)


def _value_to_wire(value: Any) -> struct_pb2.Value:
    if value is None:
        return struct_pb2.Value(null_value=struct_pb2.NULL_VALUE)
    if value is UNKNOWN:
        return struct_pb2.Value(string_value=UNKNOWN_TEXT)
    if isinstance(value, bool):
        return struct_pb2.Value(bool_value=value)
    if isinstance(value, int | float):
        return struct_pb2.Value(number_value=value)
    if isinstance(value, str):
        return struct_pb2.Value(string_value=value)
    if isinstance(value, list | tuple):
        items = [_value_to_wire(item) for item in value]
        return struct_pb2.Value(list_value=struct_pb2.ListValue(values=items))
    if isinstance(value, Mapping):
        return struct_pb2.Value(struct_value=to_wire(value))
    if isinstance(value, Asset | Archive):
        return struct_pb2.Value(struct_value=to_wire(_content_fields(value)))
    message = f"a value of type {type(value).__name__} cannot be sent to the engine"
    raise TypeError(message)


def _content_fields(content: Asset | Archive) -> Properties:
    fields: Properties = {"hash": content.content_hash, "path": content.path, "uri": content.uri}
    if isinstance(content, Asset):
        return fields | {SIGNATURE_KEY: ASSET_SIGNATURE, "text": content.text}
    return fields | {SIGNATURE_KEY: ARCHIVE_SIGNATURE, "assets": dict(content.assets) or None}
