"""Tables of standing queries, and of their hits."""

from collections.abc import Iterable

from rich.table import Table

from siglip_pipeline.stages.watch_documents import WatchHitShown, WatchShown
from siglip_pipeline.terminal.console import FoldingTable
from siglip_pipeline.text.timecode import timecode
from siglip_pipeline.uploads.names import shown


def watches_table(watches: Iterable[WatchShown]) -> Table:
    """Return a row for each watch."""
    table = FoldingTable()
    for column in ("name", "query", "videos", "from", "webhook", "hits", "late", "failed"):
        right = column in ("from", "hits", "late", "failed")
        table.add_column(column, justify="right" if right else "left")
    for watch in watches:
        table.add_row(
            shown(watch.name),
            shown(watch.query),
            "all" if watch.videos is None else shown(", ".join(watch.videos)),
            f"{watch.min_probability:.1%}",
            watch.webhook or "",
            str(watch.hits),
            str(watch.late),
            str(watch.failed),
        )
    return table


def hits_table(hits: Iterable[WatchHitShown]) -> Table:
    """Return a row for each hit."""
    table = FoldingTable()
    for column in ("found", "video", "time", "moment", "probability", "sent"):
        table.add_column(column)
    for hit in hits:
        offset = hit.media_time_seconds - hit.time_seconds
        table.add_row(
            f"{hit.found_at:%Y-%m-%d %H:%M}",
            shown(hit.video),
            timecode(hit.media_time_seconds),
            f"{timecode(hit.start_seconds + offset)} – {timecode(hit.end_seconds + offset)}",
            f"{hit.probability:.1%}",
            hit.delivery + (f": {shown(hit.failure)}" if hit.failure else ""),
        )
    return table
