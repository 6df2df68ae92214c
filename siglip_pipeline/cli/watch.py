"""The commands `watch …`: standing queries. `cli/watch_work.py` does their work."""

from typing import Annotated

import typer

from siglip_pipeline.cli.common import Json, load_settings
from siglip_pipeline.cli.completion import complete_video, complete_watch
from siglip_pipeline.terminal import console

Name = Annotated[
    str,
    typer.Argument(help="The watch, as `watch list` shows it.", autocompletion=complete_watch),
]

watch_app = typer.Typer(
    no_args_is_help=True, help="Standing queries: new videos are matched as they are embedded."
)


@watch_app.command()
def add(
    name: Annotated[str, typer.Argument(help="What to call it.")],
    text: Annotated[str, typer.Argument(help="What the moments show.")],
    min_probability: Annotated[
        float,
        typer.Option(min=0, max=1, help="Moments that are at least as probable are hits."),
    ],
    video: Annotated[
        list[str] | None,
        typer.Option(
            help="Only these: a path or a glob such as 'gate/**'. May be repeated.",
            autocompletion=complete_video,
        ),
    ] = None,
    webhook: Annotated[
        str | None,
        typer.Option(help="http(s) address that each new hit is posted to as JSON, once."),
    ] = None,
    json_: Json = False,
) -> None:
    """Add a standing query. Videos that are embedded from now on are matched with it."""
    settings = load_settings()
    from siglip_pipeline.cli.watch_work import add_watch

    document = add_watch(
        settings, name, text, min_probability=min_probability, videos=video, webhook=webhook
    )
    if json_:
        console.print_json(document)
    else:
        console.out.print(f"{document.name} watches for {document.query!r}.")


@watch_app.command("list")
def list_(json_: Json = False) -> None:
    """Show the standing queries, with their hits and what could not be sent."""
    settings = load_settings()
    from siglip_pipeline.cli.watch_work import list_watches
    from siglip_pipeline.terminal.watch_tables import watches_table

    document = list_watches(settings)
    if json_:
        console.print_json(document)
    else:
        console.out.print(watches_table(document.watches))


@watch_app.command()
def remove(name: Name, json_: Json = False) -> None:
    """Remove a standing query and its hits."""
    settings = load_settings()
    from siglip_pipeline.cli.watch_work import remove_watch

    document = remove_watch(settings, name)
    if json_:
        console.print_json(document)
    else:
        console.out.print(f"Removed {document.name}.")


@watch_app.command()
def hits(
    name: Name,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="The newest so many.")] = 50,
    json_: Json = False,
) -> None:
    """Show the hits of a standing query, newest first."""
    settings = load_settings()
    from siglip_pipeline.cli.watch_work import watch_hits
    from siglip_pipeline.terminal.watch_tables import hits_table

    document = watch_hits(settings, name, limit=limit)
    if json_:
        console.print_json(document)
    else:
        console.out.print(hits_table(document.hits))


@watch_app.command()
def calibrate(
    name: Name,
    answers: Annotated[
        typer.FileText | None,
        typer.Option(
            help='JSON Lines, {"video": …, "frame_index": …, "fits": true}, of the moments that '
            "--json shows; - for stdin.",
        ),
    ] = None,
    json_: Json = False,
) -> None:
    """Set the threshold by twenty moments around it, which you judge; states its precision.

    Asks yes or no for each moment. With --json and without --answers it only shows them.
    """
    settings = load_settings()
    from siglip_pipeline.cli.watch_work import ask, calibrate_watch, shown_moments
    from siglip_pipeline.search.calibrating import calibration_sentence

    if json_ and answers is None:
        console.print_json(shown_moments(settings, name))
        return
    document = calibrate_watch(settings, name, ask if answers is None else answers)
    if json_:
        console.print_json(document)
    else:
        console.out.print(f"{calibration_sentence(document)} It is set now.")


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.add_typer(watch_app, name="watch")
