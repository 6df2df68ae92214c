"""Dates and times as people and programs write them."""

from datetime import datetime
from typing import Annotated

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError


def _no_number(value: object) -> object:
    """Refuse what pydantic would read as seconds since 1970: `20261130` is a day of August 1970."""
    try:
        float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return value
    raise PydanticCustomError(
        "number", "Input should be a date, such as 2026-11-30 or 2026-11-30T18:00:00+01:00"
    )


DateTime = Annotated[datetime, BeforeValidator(_no_number)]
"""A date, or a date and time, in the form of ISO 8601 with separators; never a number."""
