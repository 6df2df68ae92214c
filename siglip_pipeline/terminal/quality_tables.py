"""Tables of evaluations: the metrics of a report, and two reports side by side."""

from collections.abc import Iterable, Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from siglip_pipeline.evaluation.comparing import Comparison, WorseQuery
from siglip_pipeline.evaluation.past_evaluations import PastEvaluation
from siglip_pipeline.evaluation.quality_report import NOTHING_FOUND, QualityReport
from siglip_pipeline.search import Explanation
from siglip_pipeline.terminal.console import FoldingTable
from siglip_pipeline.text.in_words import counted
from siglip_pipeline.text.timecode import timecode
from siglip_pipeline.uploads.names import shown

_OF_TAGS = ("R@1", "R@1 IoU0.5", "MRR", "nDCG@10", "video R@1", NOTHING_FOUND)
"""The metrics that are also shown per tag."""


def quality_table(report: QualityReport) -> Group:
    """Return a row for each metric with its 95% interval, and where there are tags one for each."""
    queries = counted(len(report.queries), "judged query", "judged queries")
    title = f"{report.judged}: {queries}, {report.model}"
    table = FoldingTable(title=shown(title), title_justify="left")
    table.add_column("metric")
    for column in ("mean", "95% interval", "queries"):
        table.add_column(column, justify="right")
    for value in report.overall.metrics:
        interval = f"{value.low:.3f} – {value.high:.3f}"
        table.add_row(value.metric, f"{value.mean:.3f}", interval, str(value.queries))
    return Group(table, _tags_table(report)) if len(report.tags) > 1 else Group(table)


def _tags_table(report: QualityReport) -> Table:
    names = [name for name in _OF_TAGS if report.overall.metric(name)]
    table = FoldingTable()
    for column in ("tag", "queries", *names):
        table.add_column(shown(column), justify="left" if column == "tag" else "right")
    for tag in report.tags[1:]:
        values = [tag.metric(name) for name in names]
        cells = [f"{value.mean:.3f}" if value else "" for value in values]
        table.add_row(shown(tag.tag), str(tag.queries), *cells)
    return table


def history_table(evaluations: Iterable[PastEvaluation], metric: str) -> Table:
    """Return a row for each earlier evaluation."""
    names = [*dict.fromkeys((metric, "R@1", "MRR"))]
    table = FoldingTable()
    for column in ("evaluated", "judged", "by", "model", "ranking", "queries", *names):
        table.add_column(column, justify="right" if column in ("queries", *names) else "left")
    for past in evaluations:
        values = [past.overall.metric(name) for name in names]
        table.add_row(
            f"{past.evaluated_at:%Y-%m-%d %H:%M}",
            shown(past.judged),
            past.purpose,
            shown(f"{past.model_key}, generation {past.generation}"),
            past.ranking or "",
            str(past.queries),
            *(f"{value.mean:.3f}" if value else "" for value in values),
        )
    return table


def comparison_table(rows: Iterable[Comparison], *, after: str) -> Table:
    """Return both values of each metric, with wins, losses and the paired test.

    Args:
        after: what was compared with the present model and settings.
    """
    table = FoldingTable()
    table.add_column("metric")
    for column in ("now", after, "difference", "wins", "losses", "ties", "p"):
        table.add_column(shown(column), justify="right")
    for row in rows:
        difference = Text(f"{row.difference:+.3f}")
        if row.p_value < 0.05:
            difference.stylize("green" if row.difference > 0 else "red")
        table.add_row(
            row.metric,
            f"{row.before:.3f}",
            f"{row.after:.3f}",
            difference,
            str(row.wins),
            str(row.losses),
            str(row.ties),
            f"{row.p_value:.3f}",
        )
    return table


def worse_table(rows: Sequence[WorseQuery], metric: str) -> Table:
    """Return the queries that score less after, worst first."""
    table = FoldingTable(title=f"worse by {metric}", title_justify="left")
    for column in ("line", "query", "before", "after"):
        table.add_column(column, justify="left" if column == "query" else "right")
    for row in rows:
        table.add_row(str(row.line), shown(row.query), f"{row.before:.3f}", f"{row.after:.3f}")
    return table


def explanation_table(e: Explanation) -> Table:
    """Return what is known of a moment that was expected, then each cause with its remedy."""
    table = FoldingTable.of_facts()
    place = f"hit {e.place} of {e.k}" if e.place else f"not among the {counted(e.k, 'hit')}"
    table.add_row("shown", Text(place, style="green" if e.place else "yellow"))
    if e.frame is not None:
        table.add_row(
            "nearest frame",
            f"{timecode(e.frame.media_time_seconds)}, {e.frame.distance_seconds:.2f} s away",
        )
        table.add_row("score", f"{e.frame.score:.4f}, probability {e.frame.probability:.1%}")
        table.add_row(
            "rank", f"{e.frame.rank} of {counted(e.frame.frames, 'frame')}, compared exactly"
        )
    if e.hit is not None:
        span = f"{timecode(e.hit.start_seconds)} – {timecode(e.hit.end_seconds)}"
        table.add_row("hit", f"{e.exact_place} of all, {span}, score {e.hit.score:.4f}")
    if e.gap is not None and e.last_score is not None:
        table.add_row("missing", f"{e.gap:.4f} to the last hit shown, {e.last_score:.4f}")
    for cause in e.causes:
        table.add_row(Text(cause.cause, style="yellow"), shown(cause.text))
        table.add_row("", shown(cause.remedy))
    return table
