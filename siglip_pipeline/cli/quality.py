"""The commands `evaluate` and `explain`; `cli/main.py` adds them to the others."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from siglip_pipeline.cli.common import Json, load_settings
from siglip_pipeline.cli.search import (
    FromSeconds,
    Image,
    Like,
    MinProbability,
    PerVideo,
    Since,
    ToSeconds,
    Until,
    Videos,
    query_terms,
    search_filter,
)
from siglip_pipeline.errors import QueryError
from siglip_pipeline.evaluation.annotations import FORMS, read_judged
from siglip_pipeline.evaluation.comparing import (
    Comparison,
    WorseQuery,
    compare_reports,
    worse_queries,
)
from siglip_pipeline.evaluation.evaluating import EvaluationOptions, evaluate
from siglip_pipeline.evaluation.judged_queries import JudgedQueries
from siglip_pipeline.evaluation.quality_report import QualityReport
from siglip_pipeline.search import SearchOptions, SearchService, parse_moment
from siglip_pipeline.settings import Settings
from siglip_pipeline.store.database import Database, DatabaseOptions, open_database
from siglip_pipeline.store.quality import record_quality
from siglip_pipeline.terminal import console, quality_tables
from siglip_pipeline.text.json_form import Given, to_json

COMPARABLE = ("search_min_probability",)
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


def evaluate_command(
    judged: Annotated[Path, typer.Argument(help="File of judged queries: docs/quality.md.")],
    form: Annotated[
        str,
        typer.Option(help=f"Form of the file: judged (JSON Lines), {', '.join(FORMS)}."),
    ] = "judged",
    model: Annotated[
        str | None, typer.Option(help="Key of a model (`models list`). Default: the active one.")
    ] = None,
    min_probability: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help='Probability below which a search answers "nothing here". '
            "Default: SIGLIP_SEARCH_MIN_PROBABILITY.",
        ),
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL_OR_SETTINGS",
            help="Key of another model, or settings (SIGLIP_NAME=VALUE,…), to show beside.",
        ),
    ] = None,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave out queries of videos not indexed.")
    ] = False,
    json_: Json = False,
) -> None:
    """Measure how well search answers judged queries: recall, MRR, nDCG, mAP, with intervals.

    Every result is stored in the database.
    """
    settings = load_settings(search_min_probability=min_probability)
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
    if json_:
        console.print_json(document)
    else:
        _show(document, queries, settings.quality_metric, compare)


def explain(
    query: Annotated[
        str, typer.Argument(help='The query, as `search` takes it; "" with --image or --like.')
    ],
    moment: Annotated[
        str, typer.Argument(metavar="VIDEO@SECONDS", help="The moment that was expected.")
    ],
    image: Image = None,
    like: Like = None,
    k: Annotated[int, typer.Option("--k", "-k", help="How many moments the search shows.")] = 10,
    video: Videos = None,
    from_seconds: FromSeconds = None,
    to_seconds: ToSeconds = None,
    since: Since = None,
    until: Until = None,
    min_probability: MinProbability = None,
    per_video: PerVideo = None,
    json_: Json = False,
) -> None:
    """Say why a search does not show a moment, and what would change that.

    Was it sampled, what does it score, which filter hides it, did the index miss it, which hits are
    better? The filters are those of `search`.
    """
    settings = load_settings()
    filter = search_filter(
        video, from_seconds, to_seconds, since, until, min_probability, per_video
    )
    path, seconds = parse_moment(moment)
    terms = query_terms(query or None, image, like)
    with open_database(DatabaseOptions.from_settings(settings)) as database:
        service = SearchService(database, SearchOptions.from_settings(settings))
        explanation = service.explain(terms, path, seconds, k=k, filter=filter)
    if json_:
        console.print_json(explanation)
    else:
        console.out.print(quality_tables.explanation_table(explanation))


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("evaluate")(evaluate_command)
    app.command()(explain)


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


def _show(
    document: EvaluateDocument, judged: JudgedQueries, metric: str, compare: str | None
) -> None:
    out = console.out.print
    out(quality_tables.quality_table(document.report))
    _say_skipped(document.report)
    if judged.metrics:
        out(f"The publishers report {', '.join(judged.metrics)}: docs/quality.md.")
    if document.compared is not None and document.comparison is not None:
        out(quality_tables.quality_table(document.compared))
        out(
            quality_tables.comparison_table(
                document.comparison, before="now", after=compare or "compared"
            )
        )
        _show_worse(document.worse or (), metric)


def _show_worse(worse: Sequence[WorseQuery], metric: str) -> None:
    if worse:
        console.out.print(quality_tables.worse_table(worse[:_WORSE_SHOWN], metric))
        if len(worse) > _WORSE_SHOWN:
            console.out.print(f"and {len(worse) - _WORSE_SHOWN} more; --json has all")


def _say_skipped(report: QualityReport) -> None:
    if report.skipped:
        console.err.print(
            f"{report.skipped} queries are left out: their videos are not indexed.",
            style="yellow",
        )
    if report.min_probability == 0:
        console.err.print(
            'No search answers "nothing here" at a probability of 0; set --min-probability.'
        )
