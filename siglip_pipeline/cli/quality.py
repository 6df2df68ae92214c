"""The commands `evaluate` and `explain`; `cli/quality_work.py` does their work."""

from pathlib import Path
from typing import Annotated

import typer

from siglip_pipeline.cli.common import Json, load_settings
from siglip_pipeline.cli.completion import complete_model, complete_moment
from siglip_pipeline.cli.filter_options import NO_FILTER, with_filter_options
from siglip_pipeline.cli.search import Image, Like
from siglip_pipeline.hits import SearchFilter
from siglip_pipeline.terminal import console


def evaluate_command(
    judged: Annotated[Path, typer.Argument(help="File of judged queries: docs/quality.md.")],
    form: Annotated[
        str,
        typer.Option(
            help="Form of the file: judged (JSON Lines), or a published one (docs/quality.md)."
        ),
    ] = "judged",
    model: Annotated[
        str | None,
        typer.Option(
            help="Key of a model (`models list`). Default: the active one.",
            autocompletion=complete_model,
        ),
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
    # Every command reads this module: only this one pays for what it imports.
    from siglip_pipeline.cli.quality_work import evaluate_file, show_evaluation

    document, queries = evaluate_file(
        settings, judged, form=form, model=model, compare=compare, skip_missing=skip_missing
    )
    if json_:
        console.print_json(document)
    else:
        show_evaluation(document, queries, settings.quality_metric, compare)


def evaluations(
    judged: Annotated[
        str | None, typer.Option(help="Of the file of judged queries of this name only.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="The newest so many.")] = 20,
    json_: Json = False,
) -> None:
    """Show earlier results of `evaluate`, of the check retrieval_quality and of promotions."""
    settings = load_settings()
    from siglip_pipeline.cli.quality_work import list_evaluations
    from siglip_pipeline.terminal.quality_tables import history_table

    document = list_evaluations(settings, judged=judged, limit=limit)
    if json_:
        console.print_json(document)
    else:
        console.out.print(history_table(document.evaluations, settings.quality_metric))


@with_filter_options
def explain(
    query: Annotated[
        str, typer.Argument(help='The query, as `search` takes it; "" with --image or --like.')
    ],
    moment: Annotated[
        str,
        typer.Argument(
            metavar="VIDEO@SECONDS",
            help="The moment that was expected.",
            autocompletion=complete_moment,
        ),
    ],
    image: Image = None,
    like: Like = None,
    k: Annotated[int, typer.Option("--k", "-k", help="How many moments the search shows.")] = 10,
    filter: SearchFilter = NO_FILTER,
    json_: Json = False,
) -> None:
    """Say why a search does not show a moment, and what would change that.

    Was it sampled, what does it score, which filter hides it, did the index miss it, which hits are
    better? The filters are those of `search`.
    """
    settings = load_settings()
    from siglip_pipeline.cli.quality_work import explain_moment
    from siglip_pipeline.terminal.quality_tables import explanation_table

    explanation = explain_moment(settings, query or None, image, like, moment, k=k, filter=filter)
    if json_:
        console.print_json(explanation)
    else:
        console.out.print(explanation_table(explanation))


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("evaluate")(evaluate_command)
    app.command()(evaluations)
    app.command()(explain)
