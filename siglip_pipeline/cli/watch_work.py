"""The work of the commands `watch …`; each function returns the document of `--json`."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import typer

from siglip_pipeline.hits import Hit
from siglip_pipeline.search import SearchOptions, SearchService
from siglip_pipeline.search.calibrating import (
    Answer,
    Calibration,
    calibrate,
    judge,
    moments_around,
    read_answers,
)
from siglip_pipeline.search.watching import check_watch
from siglip_pipeline.settings import Settings
from siglip_pipeline.stages.watch_documents import (
    WatchesDocument,
    WatchHitsDocument,
    WatchHitShown,
    WatchShown,
)
from siglip_pipeline.stages.webhooks import check_webhook
from siglip_pipeline.store.database import DatabaseOptions, open_database
from siglip_pipeline.store.watches import WatchStore
from siglip_pipeline.terminal import console
from siglip_pipeline.text.json_form import to_json
from siglip_pipeline.text.secret import Secret
from siglip_pipeline.text.timecode import timecode
from siglip_pipeline.uploads.names import shown

Ask = Callable[[Settings, Sequence[Hit]], Iterable[tuple[str, Answer]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovedWatch:
    """What ``watch remove --json`` prints."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownMoments:
    """What ``watch calibrate --json`` prints without answers."""

    watch: WatchShown
    moments: tuple[Hit, ...]


def add_watch(
    settings: Settings,
    name: str,
    text: str,
    *,
    min_probability: float,
    videos: Sequence[str] | None,
    webhook: str | None,
) -> WatchShown:
    """Add a standing query."""
    check_watch(name, text, min_probability=min_probability, videos=videos)
    url = None if webhook is None else Secret(webhook)
    if url is not None:
        check_webhook(url)
    with open_database(DatabaseOptions.from_settings(settings)) as database:
        added = WatchStore(database).add(
            name, text, min_probability=min_probability, videos=videos, webhook=url
        )
    return WatchShown.of(added)


def list_watches(settings: Settings) -> WatchesDocument:
    """Return all standing queries."""
    with open_database(DatabaseOptions.from_settings(settings)) as database:
        return WatchesDocument(watches=tuple(map(WatchShown.of, WatchStore(database).all())))


def remove_watch(settings: Settings, name: str) -> RemovedWatch:
    """Remove a standing query with its hits."""
    with open_database(DatabaseOptions.from_settings(settings)) as database:
        WatchStore(database).remove(name)
    return RemovedWatch(name=name)


def watch_hits(settings: Settings, name: str, *, limit: int) -> WatchHitsDocument:
    """Return the newest hits of a standing query."""
    with open_database(DatabaseOptions.from_settings(settings)) as database:
        store = WatchStore(database)
        watch = store.get(name)
        found = store.hits(watch.name, limit=limit)
    return WatchHitsDocument(hits=tuple(map(WatchHitShown.of, found)))


def shown_moments(settings: Settings, name: str) -> ShownMoments:
    """Return the moments that a calibration asks about."""
    with open_database(DatabaseOptions.from_settings(settings)) as database:
        watch = WatchStore(database).get(name)
        service = SearchService(database, SearchOptions.from_settings(settings))
        return ShownMoments(
            watch=WatchShown.of(watch), moments=tuple(moments_around(service, watch))
        )


def calibrate_watch(settings: Settings, name: str, answers: Ask | Iterable[str]) -> Calibration:
    """Judge the moments around a threshold, and set it accordingly.

    Args:
        settings: where the database is.
        name: of the watch.
        answers: lines of JSON, or what asks a person.
    """
    with open_database(DatabaseOptions.from_settings(settings)) as database:
        store = WatchStore(database)
        watch = store.get(name)
        service = SearchService(database, SearchOptions.from_settings(settings))
        moments = moments_around(service, watch)
        given = answers(settings, moments) if callable(answers) else read_answers(answers)
        found = calibrate(judge(given, moments), model_key=service.active_model().key)
        store.set_threshold(watch.watch_id, found.min_probability, to_json(found))
    return found


def ask(settings: Settings, moments: Sequence[Hit]) -> Iterator[tuple[str, Answer]]:
    """Ask a person about each moment: yes, no, skip it, or quit asking."""
    console.err.print("Does it fit? y: yes, n: no, s: skip it, q: enough.")
    for number, hit in enumerate(moments, 1):
        page = settings.page_address(hit.page_path)
        place = f"{shown(hit.video)} {timecode(hit.media_time_seconds)}"
        console.err.print(f"{number} of {len(moments)}: {place}, {hit.probability:.1%}  {page}")
        said = ""
        while said not in ("y", "n", "s", "q"):
            said = typer.prompt("y/n/s/q", err=True).strip().lower()[:1]
        if said == "q":
            return
        if said != "s":
            yield (
                f"moment {number}",
                Answer(video=hit.video, frame_index=hit.frame_index, fits=said == "y"),
            )
