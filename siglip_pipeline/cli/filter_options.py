"""The options of a :class:`.SearchFilter`, the same for every command that has one."""

import functools
import inspect
from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter

from siglip_pipeline.cli.completion import complete_video
from siglip_pipeline.hits import SearchFilter
from siglip_pipeline.text.date_time import DateTime

NO_FILTER = SearchFilter()
"""The default of a command's parameter ``filter``."""

FromSeconds = Annotated[
    float | None, typer.Option("--from", help="Only from this second of a video on.")
]
ToSeconds = Annotated[
    float | None, typer.Option("--to", help="Only before this second of a video.")
]
Videos = Annotated[
    list[str] | None,
    typer.Option(
        help="Only these videos: path or glob, * within a folder, ** across.",
        autocompletion=complete_video,
    ),
]
_time = TypeAdapter(DateTime).validate_python
Since = Annotated[
    datetime | None,
    typer.Option(
        parser=_time,
        metavar="<datetime>",
        help="Only uploads since this time, e.g. 2026-11-30T18:00; UTC unless it says otherwise.",
    ),
]
Until = Annotated[
    datetime | None,
    typer.Option(parser=_time, metavar="<datetime>", help="Only uploads before this time."),
]
MinProbability = Annotated[
    float | None,
    typer.Option(help="Hide what is less probable. Default: SIGLIP_SEARCH_MIN_PROBABILITY."),
]
PerVideo = Annotated[int | None, typer.Option(help="At most so many moments of one video.")]


def with_filter_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of a filter in place of its parameter ``filter``."""
    options = inspect.signature(_filter).parameters

    @functools.wraps(command)
    def run(**given: Any) -> None:
        filter = _filter(**{name: given.pop(name) for name in options})
        command(**given, filter=filter)

    own = inspect.signature(command).parameters.values()
    parameters = [
        option
        for parameter in own
        for option in (options.values() if parameter.name == "filter" else [parameter])
    ]
    # Typer reads both.
    vars(run)["__signature__"] = inspect.Signature(parameters)
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _filter(
    video: Videos = None,
    from_seconds: FromSeconds = None,
    to_seconds: ToSeconds = None,
    since: Since = None,
    until: Until = None,
    min_probability: MinProbability = None,
    per_video: PerVideo = None,
) -> SearchFilter:
    return SearchFilter(
        videos=tuple(video) if video else None,
        from_seconds=from_seconds,
        to_seconds=to_seconds,
        uploaded_since=since,
        uploaded_until=until,
        min_probability=min_probability,
        max_per_video=per_video,
    )
