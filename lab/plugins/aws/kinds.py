"""Owns the form of a table row: what the provider must know of a resource type to serve it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lab.plugins.aws.cloud import Cloud
from lab.plugins.values import Properties


@dataclass(frozen=True)
class Change:
    """An update in place: what is there, what is wanted, and which inputs differ."""

    state: Properties
    inputs: Properties
    changed: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One resource type.

    Parameters:
        inputs: names of the inputs it carries out; a legal one not named here is refused.
        defaults: inputs that the official provider fills in when absent.
        create: makes the thing and gives its id, and with it the outputs in `told_once`.
        finish: calls after creation; when one fails, the state keeps the thing as incomplete.
        read: the state, with outputs; None when the thing is gone.
        update: changes it in place; a type without has force-new inputs only.
        delete: removes it; one already gone is no error.
        name: input that gets a generated value when absent, as the official bridge does.
        name_limit: characters that a generated name may have.
        sets: dotted inputs whose order has no meaning.
        documents: inputs holding JSON, compared by meaning.
        moving: outputs that an update changes, so a preview must not promise their old value.
        told_once: outputs that AWS tells at creation and never again.
        tagged: whether `tags` are merged with the provider's default ones into `tagsAll`.
    """

    inputs: frozenset[str]
    create: Callable[[Cloud, Properties], str | tuple[str, Properties]]
    read: Callable[[Cloud, str, Properties], Properties | None]
    delete: Callable[[Cloud, str, Properties], None]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    finish: Callable[[Cloud, str, Properties], None] | None = None
    update: Callable[[Cloud, str, Change], None] | None = None
    name: str | None = None
    name_limit: int = 255
    sets: frozenset[str] = frozenset()
    documents: frozenset[str] = frozenset()
    moving: frozenset[str] = frozenset()
    told_once: frozenset[str] = frozenset()
    tagged: bool = True


def words(text: str) -> frozenset[str]:
    """A set of names, written as one text."""
    return frozenset(text.split())


def pick(inputs: Mapping[str, Any], names: str) -> Properties:
    """Those of the named inputs that are given."""
    return {name: inputs[name] for name in names.split() if inputs.get(name) is not None}


def only(answers: list[Any]) -> Any:
    """The one answer, or None."""
    return answers[0] if answers else None
