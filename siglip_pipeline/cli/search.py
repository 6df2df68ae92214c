"""The commands `search`, `labels` and `duplicates`; `cli/main.py` adds them to the others."""

import json
import urllib.request
import webbrowser
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

import typer

from siglip_pipeline.cli.common import Json, load_settings
from siglip_pipeline.errors import LaunchError, NothingIndexedError, QueryError
from siglip_pipeline.hits import Hit
from siglip_pipeline.search import (
    ImageTerm,
    LabelReport,
    MomentTerm,
    QueryTerm,
    Receipt,
    SearchFilter,
    SearchOptions,
    SearchResult,
    SearchService,
    parse_moment,
    parse_query,
)
from siglip_pipeline.search.collection_export import ExportFormat, export_collection
from siglip_pipeline.search.export import Exported, export_hits
from siglip_pipeline.search.results import proof_sentence
from siglip_pipeline.services.binding import url_host
from siglip_pipeline.services.ports import key_headers
from siglip_pipeline.settings import Settings
from siglip_pipeline.siglip.label_prompts import PROMPT_TEMPLATE
from siglip_pipeline.similarity.similar_videos import SharedSegment, VideoSimilarityStore
from siglip_pipeline.store.database import DatabaseOptions, open_database
from siglip_pipeline.store.models import ModelStore
from siglip_pipeline.store.query_log import QueryLog
from siglip_pipeline.store.video_names import stored_name
from siglip_pipeline.store.videos import VideoStore
from siglip_pipeline.terminal import console
from siglip_pipeline.text.json_form import Given, to_json
from siglip_pipeline.text.timecode import timecode
from siglip_pipeline.uploads.names import shown
from siglip_pipeline.uploads.upload_store import UploadStore
from siglip_pipeline.video.decode_options import DecodeOptions
from siglip_pipeline.video.frame_store import FrameStore

FromSeconds = Annotated[
    float | None, typer.Option("--from", help="Only from this second of a video on.")
]
ToSeconds = Annotated[
    float | None, typer.Option("--to", help="Only before this second of a video.")
]
Text = Annotated[
    str | None,
    typer.Argument(help='What to look for, as in a caption; or a mix: \'+"snow" -"people"^0.5\'.'),
]
Image = Annotated[Path | None, typer.Option(help="Look for what a picture shows.")]
Like = Annotated[str | None, typer.Option(help="VIDEO@SECONDS: look for what that moment shows.")]
Clip = Annotated[Path | None, typer.Option(help="Look for what a short video file shows.")]
Videos = Annotated[
    list[str] | None,
    typer.Option(help="Only these videos: path or glob, * within a folder, ** across."),
]
Since = Annotated[datetime | None, typer.Option(help="Only uploads since this time, UTC.")]
Until = Annotated[datetime | None, typer.Option(help="Only uploads before this time, UTC.")]
MinProbability = Annotated[
    float | None,
    typer.Option(help="Hide what is less probable. Default: SIGLIP_SEARCH_MIN_PROBABILITY."),
]
PerVideo = Annotated[int | None, typer.Option(help="At most so many moments of one video.")]
_PAGE_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchDocument(SearchResult):
    """What ``search --json`` prints."""

    exported: Given[tuple[Exported, ...]] = None
    opened: Given[str] = None
    """Address of the hit that was opened."""


def search(
    text: Text = None,
    image: Image = None,
    like: Like = None,
    clip: Clip = None,
    k: Annotated[int, typer.Option("--k", "-k", help="How many moments at the most.")] = 10,
    video: Videos = None,
    from_seconds: FromSeconds = None,
    to_seconds: ToSeconds = None,
    since: Since = None,
    until: Until = None,
    min_probability: MinProbability = None,
    per_video: PerVideo = None,
    open_: Annotated[
        bool,
        typer.Option(
            "--open", help="Open the best hit in the search page of a running `up` or `serve`."
        ),
    ] = False,
    export: Annotated[
        Path | None, typer.Option(help="Write a thumbnail of each hit to this folder.")
    ] = None,
    clips: Annotated[
        bool, typer.Option("--clips", help="With --export: the moments as MP4, not thumbnails.")
    ] = False,
    prove: Annotated[
        bool,
        typer.Option("--prove", help="Also search exactly, and say what the index missed."),
    ] = False,
    permalink: Annotated[
        bool, typer.Option("--permalink", help="Print a pin that names the state of the index.")
    ] = False,
    pin: Annotated[
        str | None,
        typer.Option(help="Say whether the answer is still that of this pin (--permalink)."),
    ] = None,
    json_: Json = False,
) -> None:
    """Find moments by text, picture, another moment, a clip, or several of these at once.

    TEXT, --image and --like together make one query of terms of equal weight.

    Exits 1 when a hit could not be exported, 2 when the search failed. No hits is not an error.
    """
    settings = load_settings()
    if clips and export is None:
        raise typer.BadParameter("--clips needs --export FOLDER")
    filter = search_filter(
        video, from_seconds, to_seconds, since, until, min_probability, per_video
    )
    receipt = Receipt(prove=prove, permalink=permalink, pin=pin)
    terms = query_terms(text, image, like)
    result = _find(settings, terms, clip, k=k, filter=filter, receipt=receipt, text=text)
    document = SearchDocument(
        query=result.query,
        model=result.model,
        hits=result.hits,
        proof=result.proof,
        pin=result.pin,
        reproduced=result.reproduced,
        exported=_export(result, export, settings, clips=clips),
        opened=_open(result, settings) if open_ and result.hits else None,
    )
    if json_:
        console.print_json(document)
    else:
        _show(document, title=text or f"like {clip or image or like}")
    failed = any(file.path is None for file in document.exported or ())
    raise typer.Exit(1 if failed else 0)


def labels(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[VIDEO] LABEL...",
            help="A video (path or glob below SIGLIP_UPLOADS), then the labels; with --all labels "
            "alone. A label is a noun: 'a red car'.",
        ),
    ],
    every: Annotated[bool, typer.Option("--all", help="Judge all videos.")] = False,
    sure: Annotated[
        float | None,
        typer.Option(help="Probability from which a frame has a label. Default: 0.5."),
    ] = None,
    from_seconds: FromSeconds = None,
    to_seconds: ToSeconds = None,
    template: Annotated[
        str, typer.Option(help="The sentence that is compared with the frames.")
    ] = PROMPT_TEMPLATE,
    json_: Json = False,
) -> None:
    """Show which of the given labels fit a video, or all videos: zero-shot, frame by frame.

    Each label is judged independently: several may fit, or none. Put -- before text that begins
    with a dash.
    """
    settings = load_settings()
    videos = None if every else words[:1]
    names = words if every else words[1:]
    if not names:
        raise typer.BadParameter("give a VIDEO and at least one LABEL, or --all and labels")
    limits = SearchFilter(from_seconds=from_seconds, to_seconds=to_seconds, min_probability=sure)
    with open_database(DatabaseOptions.from_settings(settings)) as database:
        report = SearchService(database, SearchOptions.from_settings(settings)).label(
            names, videos=videos, filter=limits, template=template
        )
    if json_:
        console.print_json(report)
    elif report.videos:
        console.out.print(labels_table(report))
    else:
        console.out.print("Nothing to judge: these videos have no vectors yet.")


def duplicates(
    video: Annotated[
        str | None, typer.Argument(help="Only what this video shares: path below SIGLIP_UPLOADS.")
    ] = None,
    every: Annotated[
        bool, typer.Option("--segments", help="Also stretches that make no copy: intros, quotes.")
    ] = False,
    json_: Json = False,
) -> None:
    """List videos that are copies of each other, wholly or in part.

    Shows the latest result of the asset `video_similarity`.
    """
    with open_database(DatabaseOptions.from_settings(load_settings())) as database:
        if ModelStore(database).active() is None:
            raise NothingIndexedError(
                "nothing is indexed yet; run `siglip-pipeline up`, or `siglip-pipeline ingest "
                "FILE... --wait`, then materialize video_similarity"
            )
        name = None if video is None else stored_name(database, video)
        if name is not None and VideoStore(database).get(name) is None:
            raise QueryError(
                f"no video {video!r}; give its path below the uploads, as `siglip-pipeline status` "
                "and the page of videos name it"
            )
        segments = VideoSimilarityStore(database).segments(video=name, duplicates_only=not every)
    if json_:
        console.print_json({"segments": [to_json(segment) for segment in segments]})
    elif segments:
        console.out.print(duplicates_table(segments))
    else:
        console.out.print("No copies are known. The asset video_similarity looks for them.")


def export(
    to: Annotated[
        Path, typer.Option("--to", help="The Parquet file, or the folder of WebDataset's shards.")
    ],
    format: Annotated[
        ExportFormat, typer.Option("--format", help="parquet, or webdataset with the pictures.")
    ] = "parquet",
    video: Videos = None,
    json_: Json = False,
) -> None:
    """Write all frames with their times and vectors to files that need no database.

    Parquet has a row per frame; WebDataset a picture, its facts and its vector.
    """
    settings = load_settings()
    with open_database(DatabaseOptions.from_settings(settings)) as database:
        done = export_collection(
            database,
            to,
            format=format,
            videos=video or None,
            frames=FrameStore(settings.frame_store_url),
        )
    if json_:
        console.print_json(done)
    else:
        console.out.print(
            f"Wrote {done.frames:,} frames of {done.videos:,} videos to {done.path} (vectors of "
            f"{done.model}, {done.model_key})."
        )


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(export)
    app.command()(search)
    app.command()(labels)
    app.command()(duplicates)


def page_address(settings: Settings, hit: Hit) -> str:
    """Return the address at which a running `up` or `serve` shows a hit.

    Raises:
        LaunchError: neither runs here, or not over this collection.
    """
    from siglip_pipeline.services.state import running

    up = running(settings.home)
    page = up.page_url if up else f"http://{url_host(settings.host)}:{settings.page_port}"
    if not up and not _shows(page, settings, hit):
        raise LaunchError(
            f"no `siglip-pipeline up` runs in SIGLIP_HOME={settings.home}, and no `siglip-pipeline "
            f"serve` of this collection at {page}: start one of them to open hits"
        )
    return f"{page}/videos/{hit.video_id}?{urlencode({'t': f'{hit.time_seconds:g}'})}"


def _shows(page: str, settings: Settings, hit: Hit) -> bool:
    """Return whether a service answers there that knows the hit's video by the same id."""
    request = urllib.request.Request(
        f"{page}/api/videos/{hit.video_id}", headers=key_headers(settings.api_key)
    )
    try:
        with urllib.request.urlopen(request, timeout=_PAGE_SECONDS) as answer:
            return bool(json.load(answer)["video"] == hit.video)
    except (OSError, ValueError, KeyError):
        return False


def labels_table(report: LabelReport) -> Any:
    """Return a row for each video and label, the labels of a video by probability."""
    from rich.table import Table

    table = Table()
    for column in ("video", "label", "probability", "frames", "best at"):
        table.add_column(column, justify="left" if column in ("video", "label") else "right")
    for video in report.videos:
        for place, label in enumerate(video.labels):
            last = place == len(video.labels) - 1
            table.add_row(
                "" if place else video.video,
                label.label,
                f"{label.probability:.1%}",
                f"{label.share:.0%}",
                timecode(label.media_time_seconds),
                end_section=last,
            )
    if len(report.videos) > 1:
        for name, share in report.labels.items():
            table.add_row("all", name, "", f"{share:.0%}", "")
    return table


def duplicates_table(segments: list[SharedSegment]) -> Any:
    """Return shared stretches as rows."""
    from rich.table import Table

    table = Table()
    for column in ("video", "part", "is in", "part", "speed", "covered", ""):
        table.add_column(column, justify="right" if column in ("speed", "covered") else "left")
    for s in segments:
        table.add_row(
            shown(s.video_a),
            _span(s.start_a_seconds, s.end_a_seconds, s.media_offset_a_seconds),
            shown(s.video_b),
            _span(s.start_b_seconds, s.end_b_seconds, s.media_offset_b_seconds),
            f"{s.speed:.2f}",
            f"{s.covered:.0%}",
            "copy" if s.duplicate else "",
        )
    return table


def _span(start: float, end: float, offset: float) -> str:
    return f"{timecode(start + offset)} – {timecode(end + offset)}"


def search_filter(
    video: list[str] | None,
    from_seconds: float | None,
    to_seconds: float | None,
    since: datetime | None,
    until: datetime | None,
    min_probability: float | None,
    per_video: int | None,
) -> SearchFilter:
    """Return the filter that the options of a search ask for."""
    return SearchFilter(
        videos=tuple(video) if video else None,
        from_seconds=from_seconds,
        to_seconds=to_seconds,
        uploaded_since=since,
        uploaded_until=until,
        min_probability=min_probability,
        max_per_video=per_video,
    )


def query_terms(text: str | None, image: Path | None, like: str | None) -> list[QueryTerm]:
    """Return the terms of a text or mix, a picture and a moment, those that are given."""
    terms: list[QueryTerm] = []
    if text is not None:
        terms += parse_query(text)
    if image is not None:
        terms.append(ImageTerm(image))
    if like is not None:
        terms.append(MomentTerm(*parse_moment(like)))
    return terms


def _find(
    settings: Settings,
    terms: list[QueryTerm],
    clip: Path | None,
    *,
    k: int,
    filter: SearchFilter,
    receipt: Receipt,
    text: str | None,
) -> SearchResult:
    if (clip is not None) == bool(terms):
        raise typer.BadParameter(
            "give TEXT, --image FILE, --like VIDEO@SECONDS or several of them, or --clip FILE"
        )
    if clip is not None and receipt != Receipt():
        raise typer.BadParameter("--prove, --permalink and --pin are not for --clip")
    with open_database(DatabaseOptions.from_settings(settings)) as database:
        service = SearchService(database, SearchOptions.from_settings(settings))
        if clip is not None:
            return service.by_clip(clip, k=k, filter=filter)
        result = service.with_receipt(terms, receipt, k=k, filter=filter)
        if settings.query_log and text is not None:
            QueryLog(database).record_or_warn(text)
        return result


def _export(
    result: SearchResult, folder: Path | None, settings: Settings, *, clips: bool
) -> tuple[Exported, ...] | None:
    if folder is None:
        return None
    exported = export_hits(
        result.hits,
        folder,
        frames=FrameStore(settings.frame_store_url),
        uploads=UploadStore(settings.uploads, settle_seconds=0),
        clips=clips,
        decode=DecodeOptions.from_settings(settings),
    )
    return tuple(exported)


def _open(result: SearchResult, settings: Settings) -> str:
    """Show the best hit in the browser and return its address."""
    address = page_address(settings, result.hits[0])
    if not webbrowser.open(address):
        raise LaunchError(f"no browser could be started; the hit is at {address}")
    return address


def _show(document: SearchDocument, *, title: str) -> None:
    if document.hits:
        console.out.print(console.hits_table(title, document.hits))
    else:
        console.out.print("Nothing here: no moment passes the filters and is probable enough.")
    _show_receipt(document)
    for file in document.exported or ():
        if file.path is None:
            console.err.print(f"not exported: {file.reason}", style="yellow")
        else:
            console.err.print(f"wrote {file.path}")
    if document.opened:
        console.err.print(f"opened {document.opened}")


def _show_receipt(document: SearchDocument) -> None:
    if document.proof is not None:
        console.out.print(proof_sentence(document.proof))
        if document.proof.missed:
            console.out.print(console.hits_table("missed by the index", document.proof.missed))
    if document.pin is not None:
        console.out.print(f"pin {document.pin}")
    if document.reproduced is not None and not document.reproduced.same:
        console.err.print(
            f"This is not the answer that was pinned: {document.reproduced.reason}.",
            style="yellow",
        )
