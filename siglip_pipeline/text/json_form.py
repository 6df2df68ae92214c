"""The JSON of records: what ``--json`` prints and HTTP answers, from one definition."""

from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, Field, PlainSerializer, TypeAdapter

T = TypeVar("T")

DOCUMENTED = ConfigDict(use_attribute_docstrings=False)
"""For ``__pydantic_config__`` of a record: the schema describes fields as its class does, once
:func:`describe_fields` was called."""


def describe_fields() -> None:
    """Let schemas describe the fields of records from here on.

    Their source code is read for that: a sixth of the time of a command that asks a service.
    """
    DOCUMENTED["use_attribute_docstrings"] = True


Given = Annotated[T | None, Field(exclude_if=lambda value: value is None)]
"""A value that the document omits when it is None."""


def rounded(digits: int) -> PlainSerializer:
    """Return a pydantic serializer that rounds numbers."""
    return PlainSerializer(lambda value: round(value, digits), return_type=float)


Rounded3 = Annotated[float, rounded(3)]
"""Seconds, to the millisecond."""
Rounded6 = Annotated[float, rounded(6)]


def to_json(record: object) -> dict[str, Any]:
    """Return a dataclass as the document that ``json.dumps`` takes."""
    document: dict[str, Any] = _adapter_of(record).dump_python(record, mode="json", by_alias=True)
    return document


def to_json_bytes(record: object) -> bytes:
    """Return a dataclass as JSON without spaces."""
    return _adapter_of(record).dump_json(record, by_alias=True)


def _adapter_of(record: object) -> TypeAdapter[Any]:
    kind = type(record)
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


_ADAPTERS: dict[type, TypeAdapter[Any]] = {}
