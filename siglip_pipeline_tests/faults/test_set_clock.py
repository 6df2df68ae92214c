"""The clock is set by weeks, forwards and back, in the middle of decoding and of embedding.

It is set for all processes of the pipeline and for its Postgres, as it is on one machine.
"""

import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psycopg
import pytest

from siglip_pipeline.embedded_postgres import cluster
from siglip_pipeline.embedded_postgres.server import EmbeddedPostgres
from siglip_pipeline.services.ports import free_port
from siglip_pipeline.settings import Settings
from siglip_pipeline.store.database import DatabaseOptions, open_database
from siglip_pipeline.video.frame_store import FrameStore
from siglip_pipeline_tests.faults.conftest import Reference
from siglip_pipeline_tests.faults.harness import (
    FILMS,
    Pipeline,
    read_stored,
    settings_for,
    started_zygote,
)
from siglip_pipeline_tests.faults.pauses import gate
from siglip_pipeline_tests.faults.set_clock import (
    DAY_SECONDS,
    SetClock,
    make_clock,
    reason_it_cannot_be_had,
)
from siglip_pipeline_tests.faults.test_services import arrive
from siglip_pipeline_tests.runs.test_daemon import Services
from siglip_pipeline_tests.services.test_up import _up

WHY_NOT = reason_it_cannot_be_had()
pytestmark = [
    pytest.mark.faults,
    pytest.mark.timeout(900),
    pytest.mark.skipif(WHY_NOT is not None, reason=WHY_NOT or ""),
]

DAYS = 40
FIRST, *OTHERS = FILMS


@pytest.fixture
def clock(open_folder: Path) -> SetClock:
    return make_clock(open_folder)


@pytest.fixture
def server(
    open_folder: Path, clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> Iterator[EmbeddedPostgres]:
    """The embedded server of the home in that folder, with the clock; the pipeline joins it."""
    plain = cluster.server_environment()
    monkeypatch.setattr(cluster, "server_environment", lambda: {**plain, **clock.environment})
    server = EmbeddedPostgres(open_folder / "home")
    with server.lease():
        yield server


def assert_the_clock_is_set(server: EmbeddedPostgres, days_ahead: int) -> None:
    with psycopg.connect(server.url(), autocommit=True) as connection:
        row = connection.execute("SELECT extract(epoch FROM clock_timestamp())").fetchone()
    assert row is not None
    assert abs(float(row[0]) - time.time() - days_ahead * DAY_SECONDS) < 60


def nothing_is_held(server: EmbeddedPostgres) -> bool:
    with psycopg.connect(server.url(), autocommit=True) as connection:
        row = connection.execute(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
        ).fetchone()
    return row == (0,)


def times_made(server: EmbeddedPostgres, asset: str) -> dict[str, int]:
    """How often Dagster has each partition of an asset as made."""
    with psycopg.connect(server.url("dagster"), autocommit=True) as connection:
        rows = connection.execute(
            "SELECT partition, count(*) FROM event_logs WHERE asset_key = %s"
            " AND dagster_event_type = 'ASSET_MATERIALIZATION' GROUP BY 1",
            [json.dumps([asset])],
        ).fetchall()
    return dict(rows)


@pytest.mark.parametrize("days", [DAYS, -DAYS])
def test_a_run_while_the_clock_is_set(
    days: int,
    open_folder: Path,
    films: Path,
    clock: SetClock,
    server: EmbeddedPostgres,
    reference: Reference,
) -> None:
    settings = settings_for(open_folder, films)
    prefix = ["env", *(f"{name}={value}" for name, value in clock.environment.items())]
    with (
        (open_folder / "zygote").open("ab") as log,
        started_zygote(log, prefix=prefix) as zygote,
    ):
        pipeline = Pipeline(settings, open_folder, zygote)
        assert pipeline.run("materialize", FIRST, "--json") == 0, pipeline.said[-4000:]
        for asset, point, ahead in (
            ("video_frames", "frames are recorded", days),
            ("frame_embeddings", "COPY", 0),
        ):
            with gate(server.url(), point) as await_pause:
                pipeline.start("materialize", "--all-missing", "--assets", asset, "--json")
                await_pause()
                clock.set(days_ahead=ahead)
                assert_the_clock_is_set(server, ahead)
            assert zygote.status() == 0, pipeline.said[-6000:]
            assert nothing_is_held(server)
        pipeline.finish()
        assert pipeline.stored() == reference.stored
        assert times_made(server, "video_frames") == dict.fromkeys(FILMS, 1)
        assert times_made(server, "frame_embeddings") == dict.fromkeys(FILMS, 1)


@pytest.fixture
def up_settings(open_folder: Path) -> Settings:
    (open_folder / "uploads").mkdir()
    return settings_for(
        open_folder,
        open_folder / "uploads",
        dagster_port=free_port(),
        page_port=free_port(),
        uploads_settle_seconds=0.2,
        remove_deleted=False,
    )


def daemons_are_healthy(services: Services) -> bool:
    query = "{ instance { daemonHealth { allDaemonStatuses { daemonType healthy required } } } }"
    found = services.ask(query)["instance"]["daemonHealth"]["allDaemonStatuses"]
    return all(daemon["healthy"] for daemon in found if daemon["required"])


@pytest.mark.parametrize("days", [DAYS, -DAYS])
def test_all_services_while_the_clock_is_set(
    days: int,
    up_settings: Settings,
    films: Path,
    clock: SetClock,
    server: EmbeddedPostgres,
    reference: Reference,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in clock.environment.items():
        monkeypatch.setenv(name, value)
    with _up(up_settings, up_settings.home.parent / "up.log") as up:
        services = Services(up)
        arrive(films, up_settings, FIRST)
        services.wait(lambda: services.settled(indexed=1))
        for name, point, ahead in zip(
            OTHERS, ("frames are recorded", "COPY"), (days, 0), strict=False
        ):
            with gate(server.url(), point) as await_pause:
                arrive(films, up_settings, name)
                await_pause()
                clock.set(days_ahead=ahead)
            services.wait(partial(services.settled, indexed=2 + OTHERS.index(name)))
        arrive(films, up_settings, OTHERS[-1])
        services.wait(lambda: services.settled(indexed=len(FILMS)))
        services.wait(lambda: up.status()["index"]["rows"] == len(reference.stored.vectors))
        services.wait(lambda: daemons_are_healthy(services))
        with open_database(DatabaseOptions.from_settings(up_settings)) as database:
            stored = read_stored(database, FrameStore(up_settings.frame_store_url))
        assert stored == reference.stored
        assert times_made(server, "uploads") == dict.fromkeys(FILMS, 1)
        assert times_made(server, "video_frames") == dict.fromkeys(FILMS, 1)
        assert times_made(server, "frame_embeddings") == dict.fromkeys(FILMS, 1)
        services.wait(lambda: nothing_is_held(server))
        assert up.interrupt() < 15
