"""The choice of the executor, which makes no connection."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from kombu.connection import Connection

from siglip_pipeline.cli.commands import dagster_environment
from siglip_pipeline.defs.assets import frame_embeddings, video_frames
from siglip_pipeline.defs.executors import executor_for
from siglip_pipeline.defs.queues import EMBEDDING_QUEUE, QUEUE_TAG, backend_url, celery_config
from siglip_pipeline.errors import SettingsError
from siglip_pipeline.services.home import prepare_dagster_home
from siglip_pipeline.services.ports import free_port
from siglip_pipeline.settings import Settings, child_environment


def test_runs_stay_in_their_process_unless_asked_otherwise() -> None:
    assert executor_for(Settings.load()) is dg.in_process_executor


def test_definitions_load_for_a_broker_that_does_not_exist() -> None:
    settings = Settings.load(
        executor="celery", celery_broker_url=f"redis://127.0.0.1:{free_port()}/0"
    )
    code = "from siglip_pipeline.definitions import defs; print(defs.executor.name)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=child_environment(settings),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split()[-1] == "celery"


def test_celery_without_a_broker_names_the_variable() -> None:
    with pytest.raises(SettingsError, match="SIGLIP_CELERY_BROKER_URL"):
        executor_for(Settings.load(executor="celery"))


def test_only_embedding_goes_to_the_gpu_queue() -> None:
    assert frame_embeddings.op.tags[QUEUE_TAG] == EMBEDDING_QUEUE
    assert QUEUE_TAG not in video_frames.op.tags


def test_results_lie_where_a_brokers_restart_does_not_lose_them() -> None:
    dagster_url = "postgresql+psycopg2://u@db/dagster"
    redis = Settings.load(celery_broker_url="redis://r/0", dagster_postgres_url=dagster_url)
    rabbit = Settings.load(celery_broker_url="amqp://r//", dagster_postgres_url=dagster_url)
    assert backend_url(redis).reveal() == "redis://r/0"
    assert backend_url(rabbit).reveal() == f"db+{dagster_url}"
    chosen = rabbit.model_copy(update={"celery_backend_url": "redis://other/1"})
    assert backend_url(chosen).reveal() == "redis://other/1"


def test_a_dead_worker_is_noticed_within_the_visibility_timeout() -> None:
    settings = Settings.load(celery_broker_url="redis://r/0", celery_visibility_seconds=60)
    options = celery_config(settings)["broker_transport_options"]
    assert options["visibility_timeout"] == 60
    assert options["unacked_restore_interval"] * options["unacked_restore_throttle"] <= 15
    rabbitmq = celery_config(Settings.load(celery_broker_url="amqp://r//"))
    assert "visibility_timeout" not in rabbitmq["broker_transport_options"]


@pytest.mark.parametrize("url", ["redis://r/0", "amqp://r//"])
def test_a_run_waits_ten_minutes_for_its_first_connection(url: str) -> None:
    options = celery_config(Settings.load(celery_broker_url=url))["broker_transport_options"]
    connection: Any = Connection(url, transport_options=options)  # type: ignore[no-untyped-call]
    assert connection._extract_failover_opts()["timeout"] == 600


def test_workers_not_the_pool_limit_runs_under_celery(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    alone, spread = (
        (prepare_dagster_home(settings) / "dagster.yaml").read_text()
        for settings in (
            Settings.load(home=tmp_path_factory.mktemp("home")),
            Settings.load(home=tmp_path_factory.mktemp("home"), executor="celery", celery_runs=9),
        )
    )
    assert "default_limit: 1\n" in alone
    assert "default_limit: 9\n" in spread
    assert "max_concurrent_runs: 9\n" in spread


def test_who_reads_the_instance_while_it_is_written_reads_all_of_it(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    settings = Settings.load(home=tmp_path_factory.mktemp("home"))
    file = prepare_dagster_home(settings) / "dagster.yaml"
    before = file.read_text()
    with file.open() as reader:
        prepare_dagster_home(settings.model_copy(update={"executor": "celery"}))
        assert reader.read() == before
    assert file.read_text() != before


def test_db_env_leaves_the_limits_of_celery_as_they_are(
    tmp_path_factory: pytest.TempPathFactory, database_url: str
) -> None:
    settings = Settings.load(
        home=tmp_path_factory.mktemp("home"),
        database_url=database_url,
        dagster_postgres_url=database_url.replace("postgresql://", "postgresql+psycopg2://", 1),
        executor="celery",
        celery_runs=9,
    )
    folder = Path(dagster_environment(settings)["DAGSTER_HOME"])
    assert "max_concurrent_runs: 9\n" in (folder / "dagster.yaml").read_text()
