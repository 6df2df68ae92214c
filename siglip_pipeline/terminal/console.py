"""Print tables and messages for people, and JSON for programs."""

import json
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, cast

from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from siglip_pipeline.hits import Hit
from siglip_pipeline.text.in_words import ago_in_words, counted, size_in_words
from siglip_pipeline.text.json_form import to_json
from siglip_pipeline.text.timecode import timecode
from siglip_pipeline.uploads.names import shown

if TYPE_CHECKING:  # the command line imports this module to ask a running service
    from siglip_pipeline.stages.status import PipelineStatus
    from siglip_pipeline.terminal.documents import DatabaseStatus, ListedModel

_PIPE_WIDTH = 10_000
"""A pipe has no width at which lines would have to be cut."""


class PlainConsole(Console):
    """Prints text literally: a file name may be ``[/b]``, or hold control characters."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)
        if not self.is_terminal:
            self.width = _PIPE_WIDTH

    def render_str(self, text: str, **options: Any) -> Text:
        """Return text for the terminal; spell out all hidden characters but line breaks."""
        return super().render_str("\n".join(map(shown, text.split("\n"))), **options)


err = PlainConsole(stderr=True)
"""Progress and messages: stderr, so that stdout holds only the answer."""
out = PlainConsole()


def print_json(document: object) -> None:
    """Print exactly one JSON document on stdout: a dict as it is, or a record."""
    if not isinstance(document, dict):
        document = to_json(document)
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


class FoldingTable(Table):
    """A table that continues long words in the next line: names and keys are never cut."""

    def add_column(self, *arguments: Any, **options: Any) -> None:
        """Add a column; see ``Table.add_column``."""
        super().add_column(*arguments, **{"overflow": "fold", **options})

    @classmethod
    def of_facts(cls) -> "FoldingTable":
        """Return a table of names and values, without lines."""
        table = _Facts(show_header=False, box=None)
        table.add_column()
        table.add_column()
        return table


class _Facts(FoldingTable):
    """A table whose lines end with their text: one long name does not fill all the others."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the lines of the table without the blanks at their ends."""
        segments = cast("Iterable[Segment]", super().__rich_console__(console, options))
        for line in Segment.split_lines(segments):
            while line and not line[-1].text.strip():
                line.pop()
            if line:
                last = line.pop()
                yield from [*line, last._replace(text=last.text.rstrip())]
            yield Segment.line()


def hits_table(
    title: str,
    hits: Iterable[Hit],
    *,
    rates_text: bool = True,
    mark: Mapping[int, str | Text] | None = None,
) -> Table:
    """Return hits as rows.

    Args:
        title: shown above.
        hits: best first.
        rates_text: whether the probabilities mean something; see :class:`.QueryShown`.
        mark: a last column, by row number.
    """
    table = FoldingTable(title=shown(title), title_justify="left")
    table.add_column("video")
    table.add_column("at", justify="right")
    table.add_column("moment")
    table.add_column("score", justify="right")
    if rates_text:
        table.add_column("probability", justify="right")
    if mark is not None:
        table.add_column("")
    for row, hit in enumerate(hits):
        cells: list[str | Text] = [
            shown(hit.video),
            timecode(hit.media_time_seconds),
            f"{timecode(hit.start_seconds + hit.media_offset_seconds)} – "
            f"{timecode(hit.end_seconds + hit.media_offset_seconds)}",
            f"{hit.score:.3f}",
        ]
        if rates_text:
            cells.append(f"{hit.probability:.1%}")
        if mark is not None:
            cells.append(mark.get(row, ""))
        table.add_row(*cells)
    return table


def status_table(status: "PipelineStatus") -> Table:
    """Return the status document as a table."""
    table = FoldingTable.of_facts()
    table.add_row(
        "videos",
        f"{status.total:,} in all, {status.indexed:,} indexed, {status.failed:,} failed, "
        f"{status.pending:,} to come",
    )
    table.add_row("frames", f"{status.frames:,}")
    table.add_row("vectors", f"{status.vectors:,}")
    table.add_row("decoding", f"held by {status.sandbox}")
    for warning in status.warnings:
        table.add_row(Text("warning", style="yellow"), warning)
    for name, fact in (
        ("out of date", _out_of_date(status)),
        ("model", _model(status)),
        ("index", _index(status)),
        ("watches", _watches(status)),
    ):
        if fact is not None:
            table.add_row(name, fact)
    for video in status.video_warnings:
        reasons = "; ".join(video.warnings)
        table.add_row(Text("warning", style="yellow"), f"{shown(video.video)}: {reasons}")
    for failure in status.failures:
        table.add_row(
            "failed",
            f"{shown(failure.video)} at {failure.stage}, {ago_in_words(failure.failed_at)}: "
            f"{failure.reason}",
        )
    for file in status.refused:
        table.add_row("refused", f"{shown(file.path)}: {file.reason}")
    return table


def _out_of_date(status: "PipelineStatus") -> str | None:
    stale = status.out_of_date
    if not stale.videos:
        return None
    return (
        f"frames of {len(stale.frames):,} and vectors of {counted(len(stale.vectors), 'video')}; "
        "`siglip-pipeline materialize --stale` updates them"
    )


def _model(status: "PipelineStatus") -> str | None:
    model = status.model
    return None if model is None else f"{model.name} ({model.dim} dimensions, {model.key})"


def _index(status: "PipelineStatus") -> str | None:
    index = status.index
    if index is None:
        return None
    recall = "not measured"
    if index.recall_at_10 is not None:
        recall = f"{index.recall_at_10:.3f} of {counted(index.recall_queries, 'query', 'queries')}"
    return f"{index.kind}, {index.state}, recall@10 {recall}, {counted(index.rows, 'row')}"


def _watches(status: "PipelineStatus") -> str | None:
    watches = status.watches
    if not watches.watches:
        return None
    fact = f"{watches.watches} with {counted(watches.hits, 'hit')}"
    if watches.late or watches.failed:
        fact += f"; {watches.late} not sent so far, {watches.failed} given up"
    return fact


def database_table(status: "DatabaseStatus") -> Table:
    """Return the document of ``db status`` as a table."""
    table = FoldingTable.of_facts()
    kind = "embedded" if status.embedded else "external"
    table.add_row("database", f"{status.where} ({kind})")
    if status.folder is not None:
        table.add_row("files", status.folder)
    table.add_row("versions", f"Postgres {status.postgres}, pgvector {status.pgvector}")
    table.add_row("size", size_in_words(status.size_bytes))
    for name, value in status.settings.items():
        table.add_row(name, value)
    return table


def models_table(models: "Iterable[ListedModel]") -> Table:
    """Return models with their coverage; the active one is marked."""
    table = FoldingTable()
    for column in ("", "model", "key", "dimensions", "embedded", "missing", "failed", "vectors"):
        justify: Literal["left", "right"] = "left" if column in ("", "model", "key") else "right"
        table.add_column(column, justify=justify)
    for model in models:
        table.add_row(
            "active" if model.active else "",
            model.name,
            model.key,
            str(model.dim),
            f"{model.embedded:,}",
            f"{model.missing:,}",
            f"{model.failed:,}",
            f"{model.vectors:,}",
        )
    return table
