"""Export chosen hits from the page: their times as a table, or their pictures."""

import csv
import io
import re
import zipfile
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from siglip_pipeline.errors import FrameStoreError
from siglip_pipeline.hits import player_path
from siglip_pipeline.search.export import plain_name
from siglip_pipeline.store.timelines import VideoName
from siglip_pipeline.web.file_responses import content_disposition
from siglip_pipeline.web.http_errors import HttpError
from siglip_pipeline.web.query import MAX_ID
from siglip_pipeline.web.services import CurrentServices

MAX_CHOSEN: Final = 200
_CHOSEN: Final = re.compile(r"(\d{1,10}):(\d{1,10}):(\d+\.?\d*):(\d+\.?\d*):(\d+\.?\d*)")

router = APIRouter(include_in_schema=False)


@router.get("/export")
def export(
    request: Request,
    services: CurrentServices,
    hit: Annotated[list[str], Query(min_length=1, max_length=MAX_CHOSEN)],
    format: Literal["csv", "pictures"] = "csv",
) -> Response:
    """Return chosen hits: each is `VIDEO_ID:FRAME:SECONDS:START:END`, as the page names it."""
    chosen = [_parsed(text) for text in hit]
    names = {video_id: services.name(video_id) for video_id in {row[0] for row in chosen}}
    if format == "csv":
        return _attachment(_table(request, chosen, names), "text/csv; charset=utf-8", "moments.csv")
    return _attachment(_pictures(services, chosen, names), "application/zip", "moments.zip")


_Chosen = tuple[int, int, float, float, float]


def _parsed(text: str) -> _Chosen:
    match = _CHOSEN.fullmatch(text)
    if match is None or int(match[1]) > MAX_ID or int(match[2]) > MAX_ID:
        raise HttpError(
            422, f"hit={text[:80]!r}: VIDEO_ID:FRAME:SECONDS:START:END, e.g. 7:300:12.0:11.0:14.0"
        )
    return int(match[1]), int(match[2]), float(match[3]), float(match[4]), float(match[5])


def _table(request: Request, chosen: list[_Chosen], names: dict[int, VideoName]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(
        ["video", "time_seconds", "start_seconds", "end_seconds", "frame_index", "page"]
    )
    for video_id, frame, seconds, start, end in chosen:
        page = f"{request.base_url}{player_path(video_id, seconds)}"
        video = names[video_id].video
        # A spreadsheet runs what begins like a formula.
        shown = f"'{video}" if video.startswith(("=", "+", "-", "@")) else video
        writer.writerow([shown, seconds, start, end, frame, page])
    return text.getvalue().encode("utf-8", "replace")


def _pictures(
    services: CurrentServices, chosen: list[_Chosen], names: dict[int, VideoName]
) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:  # JPEGs do not become smaller
        for number, (video_id, frame, seconds, _, _) in enumerate(chosen, 1):
            video = names[video_id].video
            stem = f"{number:03d}-{plain_name(video)}"
            try:
                jpeg = services.frames.thumbnail(video, frame)
            except FrameStoreError:
                archive.writestr(f"{stem}-not-stored.txt", "")
                continue
            archive.writestr(f"{stem}-{seconds:.1f}s.jpg", jpeg)
    return content.getvalue()


def _attachment(content: bytes, media_type: str, name: str) -> Response:
    headers = {"Content-Disposition": content_disposition(name, "attachment")}
    return Response(content, media_type=media_type, headers=headers)
