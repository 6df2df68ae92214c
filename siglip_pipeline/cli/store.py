"""The commands `models …` and `db …`: what is stored, and where."""

import shlex
import sys
from typing import Annotated

import typer

from siglip_pipeline.cli.common import Json
from siglip_pipeline.cli.common import load_settings as _settings
from siglip_pipeline.cli.completion import complete_model
from siglip_pipeline.settings import libpq_variables
from siglip_pipeline.terminal import console
from siglip_pipeline.text.in_words import ago_in_words

ModelKey = Annotated[
    str,
    typer.Argument(
        help="The model's key, as `models list` shows it.", autocompletion=complete_model
    ),
]

models_app = typer.Typer(no_args_is_help=True, help="Models side by side: list, promote, drop.")
db_app = typer.Typer(no_args_is_help=True, help="The database: where it is, start, stop, migrate.")


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.add_typer(models_app, name="models")
    app.add_typer(db_app, name="db")


@models_app.command("list")
def models_list(json_: Json = False) -> None:
    """Show every model with vectors here, and how much of the collection each covers."""
    from siglip_pipeline.cli.commands import list_models

    document = list_models(_settings())
    if json_:
        console.print_json(document)
    else:
        console.out.print(console.models_table(document.models))
        for promotion in document.promotions:
            if promotion.overridden is not None:
                console.out.print(
                    f"{promotion.model_key} was promoted with --force "
                    f"{ago_in_words(promotion.promoted_at)} although: {promotion.overridden}"
                )


@models_app.command("promote")
def models_promote(
    key: ModelKey,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Even if it covers fewer videos than the active one, or answers worse."
        ),
    ] = False,
    json_: Json = False,
) -> None:
    """Make searches use this model, if it covers all videos and its index passed the recall check.

    With SIGLIP_JUDGED_QUERIES set it must also answer these as well as the active model. Promote
    the old one again to go back.
    """
    from siglip_pipeline.cli.commands import promote_model

    document = promote_model(_settings(), key, force=force)
    if json_:
        console.print_json(document)
    else:
        console.out.print(f"Searches use {document.name} ({document.key}) from now on.")


@models_app.command("drop")
def models_drop(
    key: ModelKey,
    json_: Json = False,
) -> None:
    """Delete a model's vectors and index; the model that searches use is refused."""
    from siglip_pipeline.cli.commands import drop_model

    document = drop_model(_settings(), key)
    if json_:
        console.print_json(document)
    else:
        console.out.print(f"Dropped {document.key}.")


@db_app.command("url")
def db_url(json_: Json = False) -> None:
    """Print the database's URL, for psql and other tools. `db start` starts the embedded one."""
    from siglip_pipeline.cli.commands import database_urls

    urls = database_urls(_settings(), start=False)
    if json_:
        console.print_json(urls)
    else:
        sys.stdout.write(urls["database_url"] + "\n")


@db_app.command("start")
def db_start(json_: Json = False) -> None:
    """Start the embedded database and leave it running until `db stop`."""
    from siglip_pipeline.cli.commands import database_urls

    urls = database_urls(_settings(), start=True)
    if json_:
        console.print_json(urls)
    else:
        console.err.print("The embedded database runs; `siglip-pipeline db stop` stops it.")


@db_app.command("stop")
def db_stop(
    force: Annotated[
        bool, typer.Option("--force", help="Even if another process is using it.")
    ] = False,
    json_: Json = False,
) -> None:
    """Stop the embedded database that `db start` left running."""
    from siglip_pipeline.cli.commands import stop_database

    document = stop_database(_settings(), force=force)
    if json_:
        console.print_json(document)
    else:
        console.err.print("Stopped." if document.stopped else "It was not running.")


@db_app.command("status")
def db_status(json_: Json = False) -> None:
    """Show the database's version, size, and the settings computed for this machine."""
    from siglip_pipeline.cli.commands import database_status

    document = database_status(_settings())
    if json_:
        console.print_json(document)
    else:
        console.out.print(console.database_table(document))


@db_app.command("env")
def db_env(json_: Json = False) -> None:
    """Start the embedded database and print `export` lines for `dagster dev`.

    Use it as: eval "$(siglip-pipeline db env)" && dagster dev -w workspace.yaml
    """
    from siglip_pipeline.cli.commands import dagster_environment

    of_other_servers = libpq_variables()
    environment = dagster_environment(_settings())
    if json_:
        console.print_json(dict(environment))
    else:
        for name in sorted({*of_other_servers} - {*libpq_variables()}):
            sys.stdout.write(f"unset {name}\n")
        for name, value in environment.items():
            sys.stdout.write(f"export {name}={shlex.quote(value)}\n")


@db_app.command("migrate")
def db_migrate(json_: Json = False) -> None:
    """Bring the schema up to date."""
    from siglip_pipeline.cli.commands import migrate_database

    document = migrate_database(_settings())
    if json_:
        console.print_json(document)
    else:
        applied = ", ".join(document.applied) or "nothing to do"
        console.err.print(f"Migrations: {applied}.")


@db_app.command("partition")
def db_partition(
    key: Annotated[
        str | None,
        typer.Argument(
            help="The model's key, as `models list` shows it; default: the one that searches use.",
            autocompletion=complete_model,
        ),
    ] = None,
    json_: Json = False,
) -> None:
    """Divide the table of a model's frames by video, while loads and searches go on.

    `similarity_index` does it from SIGLIP_FRAMES_TABLE_LIMIT frames on. It takes the table's size
    of disk for a while. Started again after it was stopped, it continues.
    """
    from siglip_pipeline.cli.commands import partition_database

    document = partition_database(_settings(), key)
    if json_:
        console.print_json(document)
    elif not document.videos_copied:
        console.err.print(f"The frames of {document.key} are in partitions already.")


@db_app.command("set-back")
def db_set_back(json_: Json = False) -> None:
    """Reset the future times that Dagster stored while the clock was ahead; stop its daemon first.

    `up` does this automatically.
    """
    from siglip_pipeline.cli.commands import set_dagster_back

    document = set_dagster_back(_settings())
    if json_:
        console.print_json(document)
    else:
        console.err.print(f"Sensors and schedules that were ahead: {document['set_back']}.")
