"""After the clock was set back, the future times that Dagster has stored are reset once."""

import json
import time
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.definitions.sensor_definition import SensorType
from dagster._core.remote_origin import (
    InProcessCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    ScheduleInstigatorData,
    SensorInstigatorData,
    TickData,
    TickStatus,
)
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin

from siglip_pipeline.cli import main as cli
from siglip_pipeline.embedded_postgres.server import EmbeddedPostgres
from siglip_pipeline.services.clock import ClockWatch
from siglip_pipeline.services.home import prepare_dagster_home
from siglip_pipeline.settings import process_environment
from siglip_pipeline_tests.conftest import collection_settings, fresh_database

AHEAD_SECONDS = 40 * 86_400.0
LOCATION = InProcessCodeLocationOrigin(LoadableTargetOrigin(module_name="none"))
REPOSITORY = RemoteRepositoryOrigin(LOCATION, "repository")


def sensor(seen_at: float, started_at: float) -> InstigatorState:
    data = SensorInstigatorData(
        last_tick_timestamp=seen_at,
        last_tick_start_timestamp=seen_at,
        last_sensor_start_timestamp=started_at,
        last_run_key="key",
        min_interval=10,
        cursor="cursor",
        sensor_type=SensorType.STANDARD,
    )
    origin = RemoteInstigatorOrigin(REPOSITORY, "new_uploads")
    return InstigatorState(origin, InstigatorType.SENSOR, InstigatorStatus.RUNNING, data)


def schedule(started_at: float) -> InstigatorState:
    data = ScheduleInstigatorData("30 3 * * *", start_timestamp=started_at)
    origin = RemoteInstigatorOrigin(REPOSITORY, "daily")
    return InstigatorState(origin, InstigatorType.SCHEDULE, InstigatorStatus.RUNNING, data)


def add_tick(
    instance: dg.DagsterInstance, state: InstigatorState, at: float, status: TickStatus
) -> None:
    instance.create_tick(
        TickData(
            state.instigator_origin_id,
            state.name,
            state.instigator_type,
            status,
            at,
            selector_id=state.selector_id,
            run_ids=[str(at)],
        )
    )


def set_back(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> int:
    """What the command says of how many there were."""
    monkeypatch.setattr("sys.argv", ["siglip-pipeline", "db", "set-back", "--json"])
    with pytest.raises(SystemExit) as exited:
        cli.main()
    assert not exited.value.code
    return int(json.loads(capsys.readouterr().out)["set_back"])


def test_times_to_come_become_now_and_the_rest_stays(
    postgres: EmbeddedPostgres,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = time.time()
    future = now + AHEAD_SECONDS
    seen = sensor(future, now - 100)
    with fresh_database(postgres, "template1") as url:
        storage = url.replace("postgresql://", "postgresql+psycopg2://", 1)
        settings = collection_settings(tmp_path, url, DAGSTER_POSTGRES_URL=storage)
        home = prepare_dagster_home(settings)
        with (
            process_environment(settings, DAGSTER_HOME=str(home)),
            dg.DagsterInstance.get() as instance,
        ):
            instance.add_instigator_state(seen)
            instance.add_instigator_state(schedule(future))
            for at, status in (
                (now - 50, TickStatus.SUCCESS),
                (future - 9, TickStatus.SKIPPED),
                (future, TickStatus.STARTED),
            ):
                add_tick(instance, seen, at, status)
            assert set_back(monkeypatch, capsys) == 2
            states = {state.name: state for state in instance.all_instigator_state()}
            ticks = instance.get_ticks(seen.instigator_origin_id, seen.selector_id)
            assert set_back(monkeypatch, capsys) == 0
    data, daily = (states[name].instigator_data for name in ("new_uploads", "daily"))
    assert isinstance(data, SensorInstigatorData)
    assert data.last_tick_timestamp == data.last_tick_start_timestamp
    assert now <= float(data.last_tick_timestamp or 0) <= time.time()
    assert (data.last_sensor_start_timestamp, data.cursor) == (now - 100, "cursor")
    assert (data.last_run_key, data.min_interval) == ("key", 10)
    assert isinstance(daily, ScheduleInstigatorData)
    assert float(daily.start_timestamp or 0) <= time.time()
    assert daily.cron_schedule == "30 3 * * *"
    # The interrupted tick is still the last, so that the daemon continues it.
    statuses = [TickStatus.STARTED, TickStatus.SKIPPED, TickStatus.SUCCESS]
    assert [tick.status for tick in ticks] == statuses
    assert ticks[0].run_ids == [str(future)]
    assert ticks[0].timestamp <= time.time()


def test_a_clock_that_is_set_back_is_noticed_until_it_is_heeded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = time.time
    watch = ClockWatch()
    assert watch.set_back_seconds() == 0.0
    monkeypatch.setattr(time, "time", lambda: real() + AHEAD_SECONDS)
    assert watch.set_back_seconds() == 0.0
    monkeypatch.setattr(time, "time", real)
    assert watch.set_back_seconds() == pytest.approx(AHEAD_SECONDS, abs=2)
    assert watch.set_back_seconds() == pytest.approx(AHEAD_SECONDS, abs=2)
    watch.heeded()
    assert watch.set_back_seconds() == 0.0
