"""The work of the commands `search`, `labels` and `duplicates`, in this process."""

import json
from pathlib import Path
from typing import Any

from siglip_pipeline.errors import LaunchError, NothingIndexedError, QueryError
from siglip_pipeline.hits import Hit, SearchFilter, SearchResult
from siglip_pipeline.search import (
    ImageTerm,
    LabelReport,
    MomentTerm,
    QueryEmbedder,
    QueryTerm,
    Receipt,
    SearchOptions,
    SearchService,
    parse_moment,
    parse_query,
)
from siglip_pipeline.search.collection_export import (
    CollectionExport,
    ExportFormat,
    export_collection,
)
from siglip_pipeline.search.export import Exported, export_hits
from siglip_pipeline.services.ports import ask
from siglip_pipeline.services.state import running
from siglip_pipeline.settings import Settings
from siglip_pipeline.similarity.similar_videos import SharedSegment, VideoSimilarityStore
from siglip_pipeline.store.database import Database, DatabaseOptions, open_database
from siglip_pipeline.store.models import ModelStore
from siglip_pipeline.store.query_log import QueryLog
from siglip_pipeline.store.video_names import stored_name
from siglip_pipeline.store.videos import VideoStore
from siglip_pipeline.terminal.console import FoldingTable
from siglip_pipeline.text.timecode import timecode
from siglip_pipeline.text.url_host import url_host
from siglip_pipeline.uploads.names import shown
from siglip_pipeline.uploads.upload_store import UploadStore
from siglip_pipeline.video.decode_options import DecodeOptions
from siglip_pipeline.video.frame_store import FrameStore

_PAGE_SECONDS = 5.0


def find(
    settings: Settings,
    text: str | None,
    image: Path | None,
    like: str | None,
    clip: Path | None,
    *,
    k: int,
    filter: SearchFilter,
    receipt: Receipt,
) -> SearchResult:
    """Return the moments that fit a clip, or all of a text, a picture and a moment."""
    terms = query_terms(text, image, like)
    with open_database(DatabaseOptions.from_settings(settings)) as database:
        service = _service(database, settings)
        if clip is not None:
            return service.by_clip(clip, k=k, filter=filter)
        result = service.with_receipt(terms, receipt, k=k, filter=filter)
        if settings.query_log and text is not None:
            QueryLog(database).record_or_warn(text)
        return result


def _service(database: Database, settings: Settings) -> SearchService:
    """Return a service for a process that answers once."""
    options = SearchOptions.from_settings(settings)
    embedder = QueryEmbedder(options.model, picture_seconds=options.picture_seconds, few_texts=True)
    return SearchService(database, options, embedder=embedder)


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


def export_found(
    result: SearchResult, folder: Path, settings: Settings, *, clips: bool
) -> tuple[Exported, ...]:
    """Write a thumbnail or a clip of each hit to a folder."""
    exported = export_hits(
        result.hits,
        folder,
        frames=FrameStore(settings.frame_store_url),
        uploads=UploadStore(settings.uploads, settle_seconds=0),
        clips=clips,
        decode=DecodeOptions.from_settings(settings),
    )
    return tuple(exported)


def export_frames(
    settings: Settings, to: Path, *, format: ExportFormat, videos: list[str] | None
) -> CollectionExport:
    """Write all frames with their times and vectors to files."""
    frames = FrameStore(settings.frame_store_url)
    with open_database(DatabaseOptions.from_settings(settings)) as database:
        return export_collection(database, to, format=format, videos=videos, frames=frames)


def label_report(
    settings: Settings,
    labels: list[str],
    *,
    videos: list[str] | None,
    filter: SearchFilter,
    template: str,
) -> LabelReport:
    """Return how well labels fit videos."""
    with open_database(DatabaseOptions.from_settings(settings)) as database:
        service = _service(database, settings)
        return service.label(labels, videos=videos, filter=filter, template=template)


def shared_segments(
    settings: Settings, video: str | None, *, duplicates_only: bool
) -> list[SharedSegment]:
    """Return the stretches that videos share.

    Raises:
        NothingIndexedError: there are no vectors to compare yet.
        QueryError: no video has this name.
    """
    with open_database(DatabaseOptions.from_settings(settings)) as database:
        if ModelStore(database).active() is None:
            raise NothingIndexedError(
                "nothing is indexed yet; run `siglip-pipeline up`, or `siglip-pipeline ingest "
                "FILE... --wait`, then materialize video_similarity"
            )
        name = None if video is None else stored_name(database, video)
        if name is not None and VideoStore(database).get(name) is None:
            raise QueryError(
                f"no video {video!r}; give its path below the uploads, as the page of videos names "
                "it and the shell completes it (`siglip-pipeline --install-completion`)"
            )
        return VideoSimilarityStore(database).segments(video=name, duplicates_only=duplicates_only)


def page_address(settings: Settings, hit: Hit) -> str:
    """Return the address at which a running `up` or `serve` shows a hit.

    Raises:
        LaunchError: neither runs here, or not over this collection.
    """
    up = running(settings.home)
    page = up.page_url if up else f"http://{url_host(settings.host)}:{settings.page_port}"
    if not up and not _shows(page, settings, hit):
        raise LaunchError(
            f"no `siglip-pipeline up` runs in SIGLIP_HOME={settings.home}, and no `siglip-pipeline "
            f"serve` of this collection at {page}: start one of them to open hits"
        )
    return f"{page}/{hit.page_path}"


def _shows(page: str, settings: Settings, hit: Hit) -> bool:
    """Return whether a service answers there that knows the hit's video by the same id."""
    url = f"{page}/api/videos/{hit.video_id}"
    try:
        answer = ask(url, api_key=settings.api_key, seconds=_PAGE_SECONDS)
        return bool(json.loads(answer)["video"] == hit.video)
    except (OSError, ValueError, KeyError):
        return False


def labels_table(report: LabelReport) -> Any:
    """Return a row for each video and label, the labels of a video by probability."""
    table = FoldingTable()
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
    table = FoldingTable()
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
