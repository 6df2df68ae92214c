"""A worker whose environment is not that of the services that start runs says so."""

import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import MagicMock

import dagster as dg
import pytest
import sqlalchemy.exc
from celery import Celery

from siglip_pipeline.cli import main as cli
from siglip_pipeline.embedded_postgres.server import EmbeddedPostgres
from siglip_pipeline.errors import SettingsError
from siglip_pipeline.services.ports import free_port
from siglip_pipeline.settings import Settings, child_environment
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.models import ModelStore, activate
from siglip_pipeline.workers import celery_worker
from siglip_pipeline_tests.conftest import collection_settings, fresh_database
from siglip_pipeline_tests.store.made import spec

NO_BROKER = "redis://127.0.0.1:1/0"


def test_a_step_of_a_run_that_is_not_there_fails_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was left out, and the run failed with steps "in an unknown state to this process"."""
    settings = Settings.load(
        celery_broker_url=NO_BROKER,
        dagster_postgres_url="postgresql+psycopg2://someone:secret@db:5433/other",
    )
    monkeypatch.setattr(celery_worker, "run_of_step", lambda packed: "0815")
    task = celery_worker.worker_app(settings).tasks["execute_plan"]
    with (
        dg.instance_for_test(),
        pytest.raises(
            SettingsError, match=r"does not find run 0815 .* db:5433/other: give"
        ) as said,
    ):
        task({}, {})
    assert "secret" not in str(said.value)


def test_a_result_that_cannot_be_stored_is_said_in_a_line(caplog: pytest.LogCaptureFixture) -> None:
    """Celery writes a traceback of a hundred lines for each of its 120 tries."""
    url = f"db+postgresql+psycopg2://me:hunter2@127.0.0.1:{free_port()}/results"
    settings = Settings.load(celery_broker_url=NO_BROKER, celery_backend_url=url)
    app = celery_worker.worker_app(settings)
    app.conf.result_backend_max_retries = 1
    with pytest.raises(sqlalchemy.exc.OperationalError):
        _ = app.backend  # looks for its tables
    (record,) = [record for record in caplog.records if record.name == "celery.backends.base"]
    assert "Retrying 0 more times. " in record.message
    assert "Connection refused" in record.message
    assert record.exc_info is None
    assert "\n" not in record.message
    assert "hunter2" not in record.message


def test_a_queue_to_which_no_step_goes_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for queue in ("siglipp", "dagster,siglip"):
        monkeypatch.setattr(sys, "argv", ["siglip-pipeline", "worker", "--queue", queue])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 2
        assert f"--queue {queue}: no step goes there" in capsys.readouterr().err


def test_a_worker_warns_of_another_model(
    database: Database, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it embeds is not searched."""
    settings = Settings.load(
        celery_broker_url=NO_BROKER,
        database_url=database.url,
        dagster_postgres_url="postgresql+psycopg2://somewhere/dagster",
        model_name="google/siglip2-base-patch16-256",
    )
    monkeypatch.setattr(celery_worker, "pipeline_environment", nullcontext)
    monkeypatch.setattr(celery_worker, "open_instance", nullcontext)
    monkeypatch.setattr(Celery, "Worker", lambda app, **_: MagicMock(exitcode=0))

    def warnings(queue: str) -> list[str]:
        caplog.clear()
        assert celery_worker.run_worker(settings, [queue]) == 0
        return [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]

    assert warnings("siglip") == []
    model = ModelStore(database).register(spec())
    with database.connection() as connection:
        activate(connection, model)
    [said] = warnings("siglip")
    assert "embeds with google/siglip2-base-patch16-256, and searches ask" in said
    assert warnings("dagster") == []


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["results", "database"])
def test_a_database_that_is_not_there_ends_a_worker(
    postgres: EmbeddedPostgres, tmp_path: Path, missing: str
) -> None:
    """It started, took steps, and failed each of them, or waited for ten minutes."""
    with fresh_database(postgres) as url:
        other = postgres.url("no_such")
        settings = collection_settings(
            tmp_path,
            other if missing == "database" else url,
            DAGSTER_POSTGRES_URL=_for_dagster(url),
            celery_broker_url=NO_BROKER,
            celery_backend_url=f"db+{_for_dagster(other if missing == 'results' else url)}",
        )
        done = subprocess.run(
            [sys.executable, "-m", "siglip_pipeline.cli.main", "worker", "--queue", "siglip"],
            env=child_environment(settings),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert done.returncode == 2, done.stderr
    assert "error: no connection to" in done.stderr
    assert (" for results of steps " in done.stderr) == (missing == "results")
    assert 'database "no_such" does not exist' in done.stderr
    assert "Traceback" not in done.stderr


def _for_dagster(url: str) -> str:
    return url.replace("postgresql://", "postgresql+psycopg2://", 1)
