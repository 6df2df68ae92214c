"""One collection of films and one undisturbed run of it, which every case is compared with."""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest
from psycopg import sql

from siglip_pipeline.embedded_postgres.server import EmbeddedPostgres
from siglip_pipeline.services.home import prepare_dagster_home
from siglip_pipeline.settings import process_environment
from siglip_pipeline_tests.conftest import fresh_database
from siglip_pipeline_tests.faults.harness import (
    FILMS,
    Pipeline,
    Stored,
    Zygote,
    render_films,
    settings_for,
    started_zygote,
)

DAGSTER_TEMPLATE = "template_dagster"

Make = Callable[..., Pipeline]


@pytest.fixture(autouse=True)
def _decoders_of_their_own(own_decoders: None) -> None:
    """What a fault leaves behind is of this test."""


@dataclass(frozen=True)
class Reference:
    """What an undisturbed run stored, and how long it took."""

    stored: Stored
    seconds: float
    frame_store: str


@pytest.fixture(scope="session")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render_films(tmp_path_factory.mktemp("films"))


@pytest.fixture(scope="session")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    log = tmp_path_factory.mktemp("zygote") / "log"
    with log.open("ab") as output, started_zygote(output) as started:
        yield started


@pytest.fixture(scope="session")
def dagster_template(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database with Dagster's schema, to copy from: making it anew takes seconds."""
    with psycopg.connect(postgres.url("postgres"), autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DAGSTER_TEMPLATE)))
    home = tmp_path_factory.mktemp("template")
    settings = settings_for(home, home).model_copy(
        update={"dagster_postgres_url": dagster_url(postgres.url(DAGSTER_TEMPLATE))}
    )
    dagster_home = prepare_dagster_home(settings)
    with (
        process_environment(settings, DAGSTER_HOME=str(dagster_home)),
        dg.DagsterInstance.get() as instance,
    ):
        instance.get_runs(limit=1)
        instance.get_dynamic_partitions("videos")
        instance.all_instigator_state()
    with psycopg.connect(postgres.url("postgres"), autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE datname = %s",
            [DAGSTER_TEMPLATE],
        )
    return DAGSTER_TEMPLATE


def dagster_url(url: str) -> str:
    return url.replace("postgresql://", "postgresql+psycopg2://", 1)


@pytest.fixture(scope="session")
def make_pipeline(
    postgres: EmbeddedPostgres,
    dagster_template: str,
    films: Path,
    zygote: Zygote,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Make]:
    """Makes pipelines over the films, each with databases and a home of its own."""
    with ExitStack() as stack:

        def make(*, uploads: Path | str = films, **overrides: Any) -> Pipeline:
            url = stack.enter_context(fresh_database(postgres))
            dagster = stack.enter_context(fresh_database(postgres, dagster_template))
            folder = tmp_path_factory.mktemp("pipeline")
            settings = settings_for(
                folder,
                uploads,
                database_url=url,
                DAGSTER_POSTGRES_URL=dagster_url(dagster),
                **overrides,
            )
            return Pipeline(settings, folder, zygote)

        yield make


@pytest.fixture(scope="session")
def reference(make_pipeline: Make) -> Reference:
    """The undisturbed run."""
    pipeline = make_pipeline()
    began = time.monotonic()
    pipeline.finish()
    seconds = time.monotonic() - began
    stored = pipeline.stored()
    assert set(stored.states.values()) == {"indexed"}
    assert {video for video, _ in stored.vectors} == set(FILMS)
    assert stored.indexed == len(stored.vectors) == 4 * sum(FILMS.values())
    return Reference(stored, seconds, pipeline.settings.frame_store_url.reveal())


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that the system user of root's Postgres may enter."""
    with tempfile.TemporaryDirectory(prefix="siglip-tests-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)
        EmbeddedPostgres(Path(folder) / "home").stop(force=True)


@pytest.fixture(scope="session")
def seed() -> int:
    """Printed by every case that draws; SIGLIP_FAULT_SEED repeats one."""
    return int(os.environ.get("SIGLIP_FAULT_SEED", time.time_ns() % 1_000_000))
