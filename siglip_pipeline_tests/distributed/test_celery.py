"""Steps on workers of their own: routed, exact, once; and what becomes of them in faults.

The workers and runs are processes with a working folder and a SIGLIP_HOME each; they share
Postgres over TCP, the broker and an S3 server. A step is held in its middle, where it waits for an
advisory lock that the test has taken, so that each fault strikes a step at work.
"""

import contextlib
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import dagster as dg
import psycopg
import pytest
import redis

from siglip_pipeline.defs.partitions import VIDEOS_PARTITIONS_NAME
from siglip_pipeline.defs.queues import DEFAULT_QUEUE, EMBEDDING_QUEUE
from siglip_pipeline.demo.films import demo_scenes, render_video
from siglip_pipeline.demo.run import MODEL_FOLDER
from siglip_pipeline.settings import variable_of
from siglip_pipeline.store.database import DatabaseOptions, open_database
from siglip_pipeline_tests.distributed.hosts import (
    LOADED,
    READY,
    RUN_SECONDS,
    Cluster,
    Host,
    await_waiting_step,
    cluster,
)
from siglip_pipeline_tests.distributed.services import (
    RABBITMQ_SERVER,
    RabbitServer,
    RedisServer,
    listens,
    require_redis,
    wait_until,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

VIDEOS = [
    "first.mp4",
    "second.mp4",
    "killed.mp4",
    "stopped.mp4",
    "no_broker.mp4",
    "no_database.mp4",
    "no_broker_yet.mp4",
    "no_worker.mp4",
    "cancelled.mp4",
    "lost.mp4",
]
PART, OF_PART = "north", "north/divided.mp4"
SECONDS, RATE = 3, 10
EXACT = [(RATE * second, float(second)) for second in range(SECONDS)]
EMBEDDERS = ("embedder1", "embedder2")
VISIBILITY_SECONDS = 20
DATABASE_AWAY_SECONDS = 75
TAKEN = "received"


@pytest.fixture(
    scope="module", params=["redis", pytest.param("rabbitmq", marks=pytest.mark.faults)]
)
def shared(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """One decoding and two embedding workers; every video is decoded, none embedded."""
    folder = tmp_path_factory.mktemp(request.param)
    broker: RedisServer | RabbitServer
    if request.param == "redis":
        require_redis()
        broker = RedisServer(folder / "broker")
    else:
        if not RABBITMQ_SERVER.exists():
            pytest.skip("rabbitmq-server is not installed: apt-get install rabbitmq-server")
        broker = RabbitServer(folder / "broker")
    with cluster(folder, broker, celery_visibility_seconds=VISIBILITY_SECONDS) as made:
        for name, scene in zip(VIDEOS, demo_scenes(), strict=False):
            film = render_video(folder / name, [scene], seconds_per_scene=SECONDS, fps=RATE)
            made.upload(film.path, name)
        with made.instance() as instance:
            instance.add_dynamic_partitions(VIDEOS_PARTITIONS_NAME, VIDEOS)
        made.host("decoder").start_worker(DEFAULT_QUEUE, wait=False)
        for name in EMBEDDERS:
            made.host(name).start_worker(EMBEDDING_QUEUE, wait=False)
        _succeeds(made.start_run("decode", "video_frames", VIDEOS[0], VIDEOS[-1]))
        yield made


def _succeeds(run: Host) -> None:
    assert run.process is not None
    assert run.process.wait(RUN_SECONDS) == 0, run.said[-6000:]


def _embedders(cluster: Cluster) -> list[Host]:
    return [cluster.host(name) for name in EMBEDDERS]


def _taken(cluster: Cluster) -> list[int]:
    return [host.said.count(f"] {TAKEN}") for host in _embedders(cluster)]


def test_steps_run_on_the_workers_of_their_queue(shared: Cluster) -> None:
    _succeeds(shared.start_run("embed", "frame_embeddings", VIDEOS[0], VIDEOS[1]))
    assert shared.rows() == {"first.mp4": EXACT, "second.mp4": EXACT}
    assert sum(_taken(shared)) == 1
    assert sum(host.said.count(LOADED) for host in _embedders(shared)) == 1
    others = [host for name, host in shared.hosts.items() if name not in EMBEDDERS]
    assert all(LOADED not in host.said for host in others)
    if isinstance(shared.broker, RedisServer):
        # What waits in the broker for a day is the outcome of a step, not its videos' events.
        broker = redis.Redis(port=shared.broker.port)
        results: Any = [broker.get(key) for key in broker.scan_iter("celery-task-meta-*")]
        assert len(results) == 2
        assert all(b"STEP_SUCCESS" in r and b"ASSET_MATERIALIZATION" not in r for r in results)
        assert max(map(len, results)) < 20_000
    # Nothing of the videos stays on a machine: the next step may run on another.
    assert not [path for host in others for path in host.folder.rglob("*.parquet")]


@pytest.mark.faults
def test_a_killed_workers_step_is_done_by_the_other(shared: Cluster) -> None:
    before = _taken(shared)
    with shared.held("killed.mp4") as connection:
        run = shared.start_run("killed", "frame_embeddings", "killed.mp4", "killed.mp4")
        await_waiting_step(connection)
        if isinstance(shared.broker, RedisServer):
            # The step outlasts the visibility timeout, and no other worker gets it.
            broker = redis.Redis(port=shared.broker.port)
            first = _lease(broker)
            wait_until(
                lambda: _lease(broker) > first + VISIBILITY_SECONDS + 2,
                "the lease is renewed",
                RUN_SECONDS,
            )
        after = _taken(shared)
        assert sum(after) == sum(before) + 1
        victim = next(
            host for host, a, b in zip(_embedders(shared), after, before, strict=True) if a > b
        )
        assert victim.process is not None
        victim.process.send_signal(signal.SIGKILL)
        victim.process.wait()
    victim.start_worker(EMBEDDING_QUEUE, wait=False)
    _succeeds(run)
    assert shared.rows()["killed.mp4"] == EXACT
    assert sum(_taken(shared)) > sum(after)


@pytest.mark.faults
def test_a_stopped_worker_gives_its_step_back(shared: Cluster) -> None:
    before = _taken(shared)
    with shared.held("stopped.mp4") as connection:
        run = shared.start_run("stopped", "frame_embeddings", "stopped.mp4", "stopped.mp4")
        await_waiting_step(connection)
        (victim,) = (
            host
            for host, was, now in zip(_embedders(shared), before, _taken(shared), strict=True)
            if now > was
        )
        assert victim.process is not None
        victim.process.terminate()
        assert victim.process.wait(120) == 0, victim.said[-4000:]
    victim.start_worker(EMBEDDING_QUEUE, wait=False)
    _succeeds(run)
    assert shared.rows()["stopped.mp4"] == EXACT


def _lease(broker: redis.Redis) -> float:
    """The latest time stamp of a message that a worker holds."""
    leases: Any = broker.zrange("unacked_index", 0, -1, withscores=True)
    return max((float(score) for _, score in leases), default=0.0)


@pytest.mark.faults
def test_a_broker_that_went_away_is_waited_for(shared: Cluster) -> None:
    ready = [host.said.count(READY) for host in _embedders(shared)]
    broker = shared.broker
    with shared.held("no_broker.mp4") as connection:
        run = shared.start_run("no_broker", "frame_embeddings", "no_broker.mp4", "no_broker.mp4")
        await_waiting_step(connection)
        broker.stop()
        wait_until(lambda: not listens(broker.port), "the broker is away", 30)
    wait_until(lambda: shared.rows().get("no_broker.mp4") == EXACT, "the step ends", RUN_SECONDS)
    broker.start()
    _succeeds(run)
    assert shared.rows()["no_broker.mp4"] == EXACT
    wait_until(
        lambda: all(
            "Connected to" in host.said[host.said.rfind("lost") :] for host in _embedders(shared)
        ),
        "the workers found the broker again",
        RUN_SECONDS,
    )
    assert [host.said.count(READY) for host in _embedders(shared)] >= ready


@pytest.mark.faults
def test_a_run_that_begins_without_a_broker_waits_for_it(shared: Cluster) -> None:
    shared.broker.stop()
    run = _submitted(shared, "no_broker_yet", "no_broker_yet.mp4")
    time.sleep(10)
    shared.broker.start()
    _succeeds(run)
    assert shared.rows()["no_broker_yet.mp4"] == EXACT


@pytest.mark.faults
def test_a_broker_that_goes_away_as_workers_return_is_waited_for(shared: Cluster) -> None:
    hosts = [shared.host(name) for name in ("decoder", *EMBEDDERS)]

    def connections() -> list[int]:
        return [host.said.count("Connected to") for host in hosts]

    def connected(which: Callable[[Iterable[bool]], bool], before: list[int]) -> bool:
        return which(now > was for now, was in zip(connections(), before, strict=True))

    for _ in range(3):
        before = connections()
        shared.broker.stop()
        shared.broker.start()
        wait_until(partial(connected, any, before), "a worker connects", RUN_SECONDS)
        shared.broker.stop()
    before = connections()
    shared.broker.start()
    wait_until(partial(connected, all, before), "all workers connect", RUN_SECONDS)
    _succeeds(shared.start_run("returned", "video_frames", VIDEOS[0], VIDEOS[0]))


@pytest.mark.faults
def test_a_database_that_restarts_is_waited_for(shared: Cluster) -> None:
    with contextlib.suppress(psycopg.OperationalError), shared.held("no_database.mp4") as held:
        run = shared.start_run("no_db", "frame_embeddings", "no_database.mp4", "no_database.mp4")
        await_waiting_step(held)
        shared.postgres.stop(force=True)
    # Longer than a step's own retries in a row; Celery tries it again for a quarter of an hour.
    time.sleep(DATABASE_AWAY_SECONDS)
    shared.postgres.start()
    _succeeds(run)
    assert shared.rows()["no_database.mp4"] == EXACT


@pytest.mark.faults
def test_a_step_waits_for_a_worker(shared: Cluster) -> None:
    with _no_embedders(shared):
        run = _submitted(shared, "no_worker", "no_worker.mp4")
        assert "no_worker.mp4" not in shared.rows()
    _succeeds(run)
    assert shared.rows()["no_worker.mp4"] == EXACT


@pytest.mark.faults
def test_a_cancelled_run_ends_and_its_step_leaves_whole_rows(shared: Cluster) -> None:
    with shared.held("cancelled.mp4") as connection:
        run = shared.start_run("cancelled", "frame_embeddings", "cancelled.mp4", "cancelled.mp4")
        await_waiting_step(connection)
        _cancel(shared, run)
        assert "cancelled.mp4" not in shared.rows()
    wait_until(lambda: shared.rows().get("cancelled.mp4") == EXACT, "the step ends", RUN_SECONDS)
    # Its worker is free for others, and the same video can be asked for again.
    _succeeds(shared.start_run("again", "frame_embeddings", "cancelled.mp4", "cancelled.mp4"))


@pytest.mark.faults
def test_a_run_whose_message_was_lost_is_cancelled_and_started_again(shared: Cluster) -> None:
    broker = shared.broker
    with _no_embedders(shared):
        run = _submitted(shared, "lost", "lost.mp4")
        broker.stop()
        shutil.rmtree(broker.folder)
        broker.start()
    assert run.process is not None
    with pytest.raises(subprocess.TimeoutExpired):
        run.process.wait(VISIBILITY_SECONDS + 10)
    assert "lost.mp4" not in shared.rows()
    _cancel(shared, run)
    _succeeds(shared.start_run("found", "frame_embeddings", "lost.mp4", "lost.mp4"))
    assert shared.rows()["lost.mp4"] == EXACT


@pytest.mark.faults
def test_workers_serve_every_part_of_a_collection(shared: Cluster) -> None:
    film = render_video(
        shared.folder / "divided.mp4", [demo_scenes()[-1]], seconds_per_scene=SECONDS, fps=RATE
    )
    shared.upload(film.path, OF_PART)
    with shared.instance() as instance:
        instance.add_dynamic_partitions(f"videos/{PART}", [OF_PART])
    loaded = [host.said.count(LOADED) for host in _embedders(shared)]
    for asset in ("video_frames", "frame_embeddings"):
        _succeeds(shared.start_run(asset, f"{PART}/{asset}", OF_PART, OF_PART, part=PART))
    assert shared.rows()[OF_PART] == EXACT
    # Back to the undivided collection, by the same workers, with the same model.
    for name in ("back1", "back2"):
        _succeeds(shared.start_run(name, "frame_embeddings", VIDEOS[0], VIDEOS[0]))
    gained = [host.said.count(LOADED) for host in _embedders(shared)]
    assert sum(gained) - sum(loaded) <= 1


@contextmanager
def _no_embedders(cluster: Cluster) -> Iterator[None]:
    """No worker takes from the queue of embeddings within the block; after it, two do."""
    for host in _embedders(cluster):
        host.stop()
    yield
    for host in _embedders(cluster):
        host.start_worker(EMBEDDING_QUEUE, wait=False)


def _submitted(cluster: Cluster, name: str, video: str) -> Host:
    """A run whose step lies in the queue."""
    run = cluster.start_run(name, "frame_embeddings", video, video)
    wait_until(lambda: "Submitting celery task" in run.said, "the step is queued", RUN_SECONDS)
    time.sleep(3)  # it is said just before it is done
    return run


def _cancel(cluster: Cluster, run: Host) -> None:
    """Do what Dagster does when a person terminates a run: record it, then end its process."""
    assert run.process is not None
    with cluster.instance() as instance:
        (begun,) = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
        instance.report_run_canceling(begun)
        run.process.terminate()
        assert run.process.wait(60) != 0
        ended = instance.get_run_by_id(begun.run_id)
        assert ended is not None
        assert ended.status == dg.DagsterRunStatus.CANCELED, run.said[-4000:]


@pytest.mark.faults
def test_in_the_end_everything_is_there_once(shared: Cluster) -> None:
    # The first test has embedded these two, unless only tests of faults are run.
    _succeeds(shared.start_run("first", "frame_embeddings", VIDEOS[0], VIDEOS[1]))
    assert shared.rows() == dict.fromkeys([*VIDEOS, OF_PART], EXACT)
    with (
        open_database(DatabaseOptions.from_settings(shared.settings)) as database,
        database.connection() as connection,
    ):
        ingests = connection.execute("SELECT count(*) FROM ingests").fetchone()
    assert ingests == (len(VIDEOS) + 1,)
    with shared.instance() as instance:
        done = instance.get_materialized_partitions(dg.AssetKey("frame_embeddings"))
        assert done == set(VIDEOS)
        statuses = Counter(run.status for run in instance.get_runs())
        assert set(statuses) == {dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.CANCELED}
        assert statuses[dg.DagsterRunStatus.CANCELED] == 2, statuses  # by the tests above
    for host in _embedders(shared):
        # A worker loads the model once per start.
        assert host.said.count(LOADED) <= host.said.count(READY)


def test_a_step_fails_on_a_worker_with_another_model_than_its_run(shared: Cluster) -> None:
    """A worker that has missed a change of the model."""
    other = shutil.copytree(MODEL_FOLDER, shared.folder / "other_model")
    shared.host("changed").environment[variable_of("model_name")] = str(other)
    before = shared.rows()
    run = shared.start_run("changed", "frame_embeddings", VIDEOS[-1], VIDEOS[-1])
    assert run.process is not None
    assert run.process.wait(RUN_SECONDS) == 1, run.said[-6000:]
    assert "this run was launched with the model other_model (" in run.said
    assert "its worker has model (" in run.said
    assert shared.rows() == before
