"""`db migrate` is killed: each migration is applied wholly or not, and the next run continues."""

import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest

from siglip_pipeline.embedded_postgres.server import EmbeddedPostgres
from siglip_pipeline.store.schema import migrations
from siglip_pipeline_tests.conftest import TEMPLATE, fresh_database
from siglip_pipeline_tests.faults.harness import Pipeline, Zygote, settings_for
from siglip_pipeline_tests.faults.pauses import arm, await_pause, disarm, remove

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

MIGRATE = ("db", "migrate", "--json")


def schema(url: str) -> list[tuple[object, ...]]:
    """Every column, index and constraint, and which migrations are noted as applied."""
    found: list[tuple[object, ...]] = []
    with psycopg.connect(url, autocommit=True) as connection:
        for query in (
            "SELECT table_name, column_name, data_type, is_nullable, column_default"
            " FROM information_schema.columns WHERE table_schema = 'public' ORDER BY 1, 2",
            "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'"
            " ORDER BY 2",
            "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid)"
            " FROM pg_constraint WHERE connamespace = 'public'::regnamespace ORDER BY 1, 2",
        ):
            found += connection.execute(query.encode()).fetchall()
        if any(row[0] == "schema_migrations" for row in found):
            found += connection.execute(
                "SELECT number, name, digest FROM schema_migrations ORDER BY 1"
            ).fetchall()
    return found


def _pipeline(url: str, tmp_path: Path, zygote: Zygote) -> Pipeline:
    settings = settings_for(tmp_path, tmp_path, database_url=url, DAGSTER_POSTGRES_URL=url)
    return Pipeline(settings, tmp_path, zygote)


def test_killed_in_the_middle_of_a_migration(
    postgres: EmbeddedPostgres, zygote: Zygote, tmp_path: Path
) -> None:
    with fresh_database(postgres, "template1") as url:
        pipeline = _pipeline(url, tmp_path, zygote)
        before = schema(url)
        arm(url, "migration")
        pid = pipeline.start(*MIGRATE)
        await_pause(url, "a migration has made an index")
        os.kill(pid, signal.SIGKILL)
        assert zygote.status() == -signal.SIGKILL
        # The server has not noticed yet. The next one waits for it, and does it all.
        pipeline.start(*MIGRATE)
        time.sleep(1)
        disarm(url)
        assert zygote.status() == 0, pipeline.said
        remove(url)
        assert before == []
        assert schema(url) == schema(postgres.url(TEMPLATE))


def _seconds_undisturbed(postgres: EmbeddedPostgres, tmp_path: Path, zygote: Zygote) -> float:
    with fresh_database(postgres, "template1") as url:
        pipeline = _pipeline(url, tmp_path, zygote)
        began = time.monotonic()
        assert pipeline.run(*MIGRATE) == 0, pipeline.said
        seconds = time.monotonic() - began
        assert schema(url) == schema(postgres.url(TEMPLATE))
    return seconds


def test_killed_at_any_moment(
    postgres: EmbeddedPostgres, zygote: Zygote, tmp_path: Path, seed: int
) -> None:
    draw = random.Random(seed)
    print(f"SIGLIP_FAULT_SEED={seed}")
    whole = schema(postgres.url(TEMPLATE))
    seconds = min(_seconds_undisturbed(postgres, tmp_path, zygote) for _ in range(2))
    struck = 0
    for _ in range(10):
        with fresh_database(postgres, "template1") as url:
            pipeline = _pipeline(url, tmp_path, zygote)
            pid = pipeline.start(*MIGRATE)
            time.sleep(draw.random() * seconds)
            with suppress(ProcessLookupError):  # it was quicker than the first one
                os.kill(pid, signal.SIGKILL)
            struck += zygote.status() == -signal.SIGKILL
            # All of it or nothing: there is no half of a schema.
            assert schema(url) in ([], whole)
            assert pipeline.run(*MIGRATE) == 0, pipeline.said
            assert schema(url) == whole
    assert struck > 5, "most of the kills came too late to strike anything"
    assert len(migrations()) >= 4
