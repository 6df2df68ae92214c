"""The work of the commands `evaluate` and `explain`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from siglip_pipeline.cli.search_work import query_terms
from siglip_pipeline.errors import QueryError
from siglip_pipeline.evaluation.annotations import read_judged
from siglip_pipeline.evaluation.comparing import (
    Comparison,
    WorseQuery,
    compare_reports,
    worse_queries,
)
from siglip_pipeline.evaluation.evaluating import EvaluationOptions, evaluate
from siglip_pipeline.evaluation.judged_queries import JudgedQueries
from siglip_pipeline.evaluation.past_evaluations import EvaluationsDocument, past_evaluations
from siglip_pipeline.evaluation.quality_report import QualityReport
from siglip_pipeline.hits import SearchFilter
from siglip_pipeline.search import Explanation, SearchOptions, SearchService, parse_moment
from siglip_pipeline.settings import Settings
from siglip_pipeline.store.database import Database, DatabaseOptions, open_database
from siglip_pipeline.store.quality_results import record_quality
from siglip_pipeline.terminal import console, quality_tables
from siglip_pipeline.text.in_words import counted
from siglip_pipeline.text.json_form import Given, to_json

COMPARABLE = ("search_min_probability", "ranking")
"""Settings that searches read, so that two of their values can be compared on one index."""
_WORSE_SHOWN = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateDocument:
    """What ``evaluate --json`` prints."""

    report: QualityReport
    compared: Given[QualityReport] = None
    comparison: Given[tuple[Comparison, ...]] = None
    worse: Given[tuple[WorseQuery, ...]] = None
    """Queries that the compared model or settings answer worse, by SIGLIP_QUALITY_METRIC."""


def evaluate_file(
    settings: Settings,
    judged: Path,
    *,
    form: str,
    model: str | None,
    compare: str | None,
    skip_missing: bool,
) -> tuple[EvaluateDocument, JudgedQueries]:
    """Evaluate a file of judged queries; store and return the result."""
    queries = read_judged(judged, form)

    def run(database: Database, chosen: Settings, key: str | None) -> QualityReport:
        options = EvaluationOptions(
            search=SearchOptions.from_settings(chosen),
            model_key=key,
            skip_missing=skip_missing,
            metrics=(settings.quality_metric,),
        )
        report = evaluate(database, queries, options, progress=console.err.print)
        record_quality(database, to_json(report), purpose="command")
        return report

    with open_database(DatabaseOptions.from_settings(settings)) as database:
        report = run(database, settings, model)
        document = EvaluateDocument(report=report)
        if compare is not None:
            other, key = _other(settings, compare, model)
            after = run(database, other, key)
            document = EvaluateDocument(
                report=report,
                compared=after,
                comparison=compare_reports(report, after),
                worse=worse_queries(report, after, settings.quality_metric),
            )
    return document, queries


def list_evaluations(settings: Settings, *, judged: str | None, limit: int) -> EvaluationsDocument:
    """Return the last evaluations, newest first."""
    with open_database(DatabaseOptions.from_settings(settings)) as database:
        return past_evaluations(database, judged=judged, limit=limit)


def explain_moment(
    settings: Settings,
    query: str | None,
    image: Path | None,
    like: str | None,
    moment: str,
    *,
    k: int,
    filter: SearchFilter,
) -> Explanation:
    """Return why a search does not show a moment."""
    path, seconds = parse_moment(moment)
    terms = query_terms(query, image, like)
    with open_database(DatabaseOptions.from_settings(settings)) as database:
        service = SearchService(database, SearchOptions.from_settings(settings))
        return service.explain(terms, path, seconds, k=k, filter=filter)


def _other(settings: Settings, compare: str, model: str | None) -> tuple[Settings, str | None]:
    """Return the settings and the model to compare with.

    Raises:
        QueryError: a setting that searches do not read.
        SettingsError: a value that the setting does not take.
    """
    if "=" not in compare:
        return settings, compare
    values = {}
    for assignment in compare.split(","):
        name, _, value = assignment.partition("=")
        field = name.strip().lower().removeprefix("siglip_")
        if field not in COMPARABLE:
            allowed = ", ".join(f"SIGLIP_{known.upper()}" for known in COMPARABLE)
            raise QueryError(
                f"--compare {name.strip()}: searches do not read this setting; allowed are "
                f"{allowed}, or the key of a model"
            )
        values[field] = value.strip()
    return Settings.load(**{**settings.model_dump(exclude_unset=True), **values}), model


def show_evaluation(
    document: EvaluateDocument, judged: JudgedQueries, metric: str, compare: str | None
) -> None:
    """Print an evaluation as tables."""
    out = console.out.print
    out(quality_tables.quality_table(document.report))
    _say_skipped(document.report)
    if judged.metrics:
        out(f"The publishers report {', '.join(judged.metrics)}: docs/quality.md.")
    if document.compared is not None and document.comparison is not None:
        out(quality_tables.quality_table(document.compared))
        out(quality_tables.comparison_table(document.comparison, after=compare or "compared"))
        _show_worse(document.worse or (), metric)


def _show_worse(worse: Sequence[WorseQuery], metric: str) -> None:
    if worse:
        console.out.print(quality_tables.worse_table(worse[:_WORSE_SHOWN], metric))
        if len(worse) > _WORSE_SHOWN:
            console.out.print(f"and {len(worse) - _WORSE_SHOWN} more; --json has all")


def _say_skipped(report: QualityReport) -> None:
    if report.skipped:
        console.err.print(
            "Left out, as the videos are not indexed: "
            f"{counted(report.skipped, 'query', 'queries')}.",
            style="yellow",
        )
    if report.min_probability == 0:
        console.err.print(
            'No search answers "nothing here" at a probability of 0; set --min-probability.'
        )
