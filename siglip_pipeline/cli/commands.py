"""The work of the commands `models` and `db`: each function returns the document of `--json`."""

from siglip_pipeline.errors import EmbeddedDatabaseError, ModelNotFoundError
from siglip_pipeline.evaluation.promotion import QualityGate, promote
from siglip_pipeline.services.clock import reset_future_times
from siglip_pipeline.services.home import prepare_dagster_home, with_databases
from siglip_pipeline.settings import Settings
from siglip_pipeline.store.database import (
    DatabaseOptions,
    embedded_server,
    migrate,
    open_database,
    where,
)
from siglip_pipeline.store.index.build import building
from siglip_pipeline.store.index.partitioning import partition_frames
from siglip_pipeline.store.models import ModelStore
from siglip_pipeline.store.quality_results import promotions
from siglip_pipeline.terminal import console
from siglip_pipeline.terminal.documents import (
    AppliedMigrations,
    DatabaseStatus,
    DroppedModel,
    ListedModel,
    ModelsDocument,
    PartitionedFrames,
    PromotedModel,
    StoppedDatabase,
)

_TUNED = (
    *("shared_buffers", "effective_cache_size", "maintenance_work_mem", "work_mem"),
    *("wal_level", "wal_buffers", "min_wal_size", "max_wal_size", "checkpoint_timeout"),
    *("max_connections", "max_parallel_workers", "max_parallel_maintenance_workers", "jit"),
)


def list_models(settings: Settings) -> ModelsDocument:
    """Return every model with its coverage, oldest first."""
    with open_database(DatabaseOptions.from_settings(settings)) as database:
        models = ModelStore(database)
        return ModelsDocument(
            models=tuple(
                ListedModel.of(row, models.coverage(row.model_id)) for row in models.list()
            ),
            promotions=tuple(promotions(database)),
        )


def promote_model(settings: Settings, key: str, *, force: bool) -> PromotedModel:
    """Make searches use a model that covers as much and answers as well as the active one."""
    gate = QualityGate.from_settings(settings)
    with open_database(DatabaseOptions.from_settings(settings)) as database:
        row = promote(database, key, gate, force=force, progress=console.err.print)
        return PromotedModel(key=row.key, name=row.name)


def drop_model(settings: Settings, key: str) -> DroppedModel:
    """Delete a model's vectors."""
    with open_database(DatabaseOptions.from_settings(settings)) as database:
        ModelStore(database).drop(key)
        return DroppedModel(key=key)


def migrate_database(settings: Settings) -> AppliedMigrations:
    """Apply what is missing of the schema."""
    with open_database(DatabaseOptions.from_settings(settings), schema="any") as database:
        return AppliedMigrations(applied=tuple(migrate(database)))


def partition_database(settings: Settings, key: str | None) -> PartitionedFrames:
    """Partition the table of frames of a model, or of the one that searches use.

    Raises:
        ModelNotFoundError: no such model, or none is active.
        IndexBusyError: an index is being built; `similarity_index` partitions, too.
        StoreError: the disk is too small, or the table cannot be replaced.
    """
    with open_database(DatabaseOptions.from_settings(settings)) as database:
        models = ModelStore(database)
        model = models.active() if key is None else models.get(key)
        if model is None:
            raise ModelNotFoundError("searches use no model yet; name one: `models list` shows all")
        with building(database, model.model_id):
            report = partition_frames(database, model.model_id, progress=console.err.print)
    return PartitionedFrames(
        key=model.key,
        frames=report.frames,
        partitions=report.partitions,
        videos_copied=report.videos,
        seconds=round(report.seconds, 2),
    )


def set_dagster_back(settings: Settings) -> dict[str, int]:
    """Reset the times in the future that Dagster has stored; its daemon must not run.

    Raises:
        DatabaseUnavailableError: Dagster's storage does not answer.
    """
    with with_databases(settings) as complete:
        home = prepare_dagster_home(settings)
        return {"set_back": reset_future_times(complete, home)}


def database_urls(settings: Settings, *, start: bool) -> dict[str, str]:
    """Return the URLs of both databases; ``start`` starts the embedded server and keeps it running.

    Raises:
        EmbeddedDatabaseError: the embedded server does not run.
    """
    server = embedded_server(DatabaseOptions.from_settings(settings))
    ours, dagsters = settings.database_url, settings.dagster_postgres_url
    external = ours and dagsters
    if start and not external:
        server.keep()
    if not external and not server.is_running():
        raise EmbeddedDatabaseError(
            f"the embedded database of {settings.home} is not running; "
            "`siglip-pipeline db start` starts it"
        )
    return {
        "database_url": ours.reveal() if ours else server.url(),
        "dagster_postgres_url": dagsters.reveal() if dagsters else server.dagster_url(),
    }


def database_status(settings: Settings) -> DatabaseStatus:
    """Return the database's location, versions, settings and size."""
    options = DatabaseOptions.from_settings(settings)
    is_embedded = settings.database_url is None
    with open_database(options) as database, database.connection() as connection:
        version, size_bytes = connection.execute(
            "SELECT current_setting('server_version'), pg_database_size(current_database())"
        ).fetchone() or ("", 0)
        tuned = connection.execute(
            "SELECT name, current_setting(name) FROM pg_settings WHERE name = ANY(%s)"
            " ORDER BY name",
            [list(_TUNED)],
        ).fetchall()
        return DatabaseStatus(
            where=where(database.url),
            embedded=is_embedded,
            folder=str(embedded_server(options).data) if is_embedded else None,
            postgres=version,
            pgvector=".".join(map(str, database.pgvector_version)),
            size_bytes=size_bytes,
            settings=dict(tuned),
        )


def stop_database(settings: Settings, *, force: bool) -> StoppedDatabase:
    """Stop the embedded server."""
    server = embedded_server(DatabaseOptions.from_settings(settings))
    return StoppedDatabase(stopped=server.stop(force=force))


def dagster_environment(settings: Settings) -> dict[str, str]:
    """Start the databases and return the environment that `dagster dev` needs."""
    urls = database_urls(settings, start=True)
    complete = settings.model_copy(update=urls)
    with with_databases(complete) as final, open_database(DatabaseOptions.from_settings(final)):
        pass
    return {
        **complete.environment(),
        "DAGSTER_HOME": str(prepare_dagster_home(settings)),
    }
