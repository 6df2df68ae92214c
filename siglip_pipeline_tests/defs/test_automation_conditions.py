"""The conditions of `automation`, evaluated by Dagster tick by tick over runs and backfills."""

import logging
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.asset_daemon_cursor import AssetDaemonCursor
from dagster._core.definitions.automation_tick_evaluation_context import (
    AutomationTickEvaluationContext,
)
from dagster._core.events import StepMaterializationData
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill
from dagster._core.test_utils import freeze_time
from dagster._serdes import deserialize_value, serialize_value

from siglip_pipeline.definitions import defs
from siglip_pipeline.defs.partitions import VIDEOS_PARTITIONS_NAME
from siglip_pipeline.stages.run_names import FRAMES_PER_RUN, RANGE_END_TAG, RANGE_START_TAG

FRAMES = dg.AssetKey("video_frames")
VECTORS = dg.AssetKey("frame_embeddings")
MATCHES = dg.AssetKey("watch_hits")
INDEX = dg.AssetKey("similarity_index")
SIMILARITY = dg.AssetKey("video_similarity")
GRAPH = defs.resolve_asset_graph()
JOBS = {
    FRAMES: defs.resolve_job_def("sample_frames"),
    VECTORS: defs.resolve_job_def("embed_frames"),
    MATCHES: defs.resolve_job_def("match_watches"),
    INDEX: defs.resolve_job_def("rebuild_index"),
    SIMILARITY: defs.resolve_job_def("compare_videos"),
}
LONGEST_WAIT = timedelta(minutes=9, seconds=30)

Event = dg.DagsterEventType


class Collection:
    """Runs, backfills and ticks of `automation` for one asset, at times of its own."""

    def __init__(
        self, instance: dg.DagsterInstance, asset: dg.AssetKey = VECTORS, *others: dg.AssetKey
    ) -> None:
        self._asset = asset
        self._others = others
        """Assets that are requested with it; a test asks them about themselves."""
        self.now = datetime(2026, 1, 1, 12, 0, 2, tzinfo=UTC)
        self._instance = instance
        self._cursor = AssetDaemonCursor.empty()
        self._backfills: list[tuple[Any, list[str]]] = []
        self._numbers = count()
        self.tick()  # the first tick requests nothing

    def add(self, videos: int) -> list[str]:
        """Return new partitions."""
        keys = [f"{next(self._numbers):05}.mp4" for _ in range(videos)]
        self._instance.add_dynamic_partitions(VIDEOS_PARTITIONS_NAME, keys)
        return keys

    def begin(self, asset: dg.AssetKey, keys: Sequence[str] = ()) -> dg.DagsterRun:
        """Create a run that has started."""
        partitions = {RANGE_START_TAG: keys[0], RANGE_END_TAG: keys[-1]} if keys else {}
        with freeze_time(self.now):
            return self._instance.create_run_for_job(
                JOBS[asset],
                status=dg.DagsterRunStatus.STARTED,
                asset_selection=frozenset({asset}),
                tags=partitions,
            )

    def store(self, run: dg.DagsterRun, key: str | None = None) -> None:
        """Materialize one partition of a run, or its asset that has none."""
        asset = next(iter(run.asset_selection or ()))
        made = StepMaterializationData(dg.AssetMaterialization(asset, partition=key))
        self._report(run, Event.ASSET_MATERIALIZATION, made)

    def end(self, run: dg.DagsterRun, how: dg.DagsterEventType = Event.RUN_SUCCESS) -> None:
        self._report(run, how)

    def make(
        self,
        asset: dg.AssetKey,
        keys: Sequence[str] = (),
        *,
        meanwhile: Callable[[], object] = lambda: None,
    ) -> None:
        """Materialize partitions, or an asset that has none, by a run that ends."""
        run = self.begin(asset, keys)
        meanwhile()
        partitions: Sequence[str | None] = keys or [None]
        for key in partitions:
            self.store(run, key)
        self.end(run)

    def embed(
        self,
        *,
        meanwhile: Callable[[], object] = lambda: None,
        then: Callable[[], object] = lambda: None,
    ) -> None:
        """Do what the requested backfills are to do, `then` included, and end them."""
        while self._backfills:
            backfill, keys = self._backfills.pop()
            self.make(self._asset, keys, meanwhile=meanwhile)
            then()
            done = backfill.with_status(BulkActionStatus.COMPLETED_SUCCESS)
            self._instance.update_backfill(done)

    def fail(self, made: int) -> None:
        """Do a part of what a requested backfill is to do; its run fails."""
        backfill, keys = self._backfills.pop()
        run = self.begin(self._asset, keys)
        for key in keys[:made]:
            self.store(run, key)
        self.end(run, Event.RUN_FAILURE)
        self._instance.update_backfill(backfill.with_status(BulkActionStatus.COMPLETED_FAILED))

    def cancel(self) -> None:
        """Cancel a requested backfill before it has made a run."""
        backfill, _ = self._backfills.pop()
        self._instance.update_backfill(backfill.with_status(BulkActionStatus.CANCELED))

    def forget(self) -> None:
        """Lose what earlier ticks noted."""
        self._cursor = AssetDaemonCursor.empty()

    def tick(self, seconds: float = 5) -> list[str]:
        """Return the videos that are requested some seconds later: in one request."""
        self.now += timedelta(seconds=seconds)
        with freeze_time(self.now):
            tick = AutomationTickEvaluationContext(
                evaluation_id=self._cursor.evaluation_id + 1,
                instance=self._instance,
                asset_graph=GRAPH,
                cursor=self._cursor,
                materialize_run_tags={},
                observe_run_tags={},
                auto_observe_asset_keys=set(),
                asset_selection=dg.AssetSelection.assets(self._asset, *self._others),
                logger=logging.getLogger(__name__),
                emit_backfills=True,
                evaluation_time=self.now,
            )
            requests, cursor, _ = tick.evaluate()
            # As the daemon keeps it.
            self._cursor = deserialize_value(serialize_value(cursor), AssetDaemonCursor)
            assert len(requests) <= 1
            return self._launch(requests[0]) if requests else []

    def _launch(self, request: dg.RunRequest) -> list[str]:
        """Create what the daemon would: a run of one video or none, or a backfill of several."""
        subset = request.asset_graph_subset
        if subset is None and request.partition_key is None:
            return ["the collection"]
        if subset is None:
            assert request.partition_key is not None
            self.make(self._asset, [request.partition_key])
            return [request.partition_key]
        keys = sorted(subset.get_partitions_subset(self._asset).get_partition_keys())
        keys += ["the collection"] * any(
            not GRAPH.get(key).is_partitioned for key in subset.asset_keys
        )
        backfill: Any = PartitionBackfill.from_asset_graph_subset(
            f"backfill {next(self._numbers)}",
            *(self.now.timestamp(), {}, self._instance, subset, None, None, None),
        )
        self._instance.add_backfill(backfill)
        self._backfills.append((backfill, [key for key in keys if key != "the collection"]))
        return keys

    def _report(self, run: dg.DagsterRun, kind: dg.DagsterEventType, data: Any = None) -> None:
        event = dg.DagsterEvent(kind.value, run.job_name, event_specific_data=data)
        self._instance.report_dagster_event(event, run.run_id, timestamp=self.now.timestamp())


@pytest.fixture
def collection() -> Iterator[Collection]:
    with dg.DagsterInstance.ephemeral() as instance:  # in memory: thousands of writes are seconds
        yield Collection(instance)


def test_one_video_is_requested_at_the_next_tick(collection: Collection) -> None:
    videos = collection.add(1)
    run = collection.begin(FRAMES, videos)
    assert collection.tick() == []
    collection.store(run, videos[0])
    assert collection.tick() == videos
    assert collection.tick() == []


@pytest.mark.slow
def test_300_videos_become_one_backfill(collection: Collection) -> None:
    """Their frames arrive in portions, from four runs at a time, over two minutes."""
    videos = collection.add(300)
    starts = range(0, len(videos), FRAMES_PER_RUN)
    queued = [videos[start : start + FRAMES_PER_RUN] for start in starts]
    runs = [(collection.begin(FRAMES, keys), [*keys]) for keys in queued]
    requested = []
    while runs:
        for run, keys in runs[:4]:
            for key in keys[:6]:
                collection.store(run, key)
            del keys[:6]
            if not keys:
                collection.end(run)
        runs = [(run, keys) for run, keys in runs if keys]
        requested.append(collection.tick())
    assert len(requested) > 12
    assert [keys for keys in requested if keys] == [videos]
    collection.embed()
    assert [keys for keys in (collection.tick(seconds=60) for _ in range(14)) if keys] == []


def test_what_arrives_during_a_backfill_becomes_the_next_one(collection: Collection) -> None:
    first, second, third = (collection.add(2) for _ in range(3))
    collection.make(FRAMES, first)
    assert collection.tick() == first
    for keys in (second, third):
        collection.make(FRAMES, keys)
        assert collection.tick() == []
    collection.embed()
    assert collection.tick() == second + third


@pytest.mark.slow
def test_uploads_that_never_stop_hold_no_video_back_for_long(collection: Collection) -> None:
    """For twenty minutes, a video is always in work."""
    stored: dict[str, datetime] = {}
    waited = []
    requests = 0
    (video,) = collection.add(1)
    run = collection.begin(FRAMES, [video])
    for _ in range(30):
        (following,) = collection.add(1)
        next_run = collection.begin(FRAMES, [following])
        collection.store(run, video)
        collection.end(run)
        stored[video] = collection.now
        run, video = next_run, following
        requested = collection.tick(seconds=40)
        requests += bool(requested)
        waited += [collection.now - stored.pop(key) for key in requested]
        assert all(collection.now - since < LONGEST_WAIT for since in stored.values())
        collection.embed()
    assert timedelta(minutes=3) < max(waited) < LONGEST_WAIT + timedelta(seconds=40)
    assert 3 <= requests <= 5


@pytest.mark.parametrize("asset", [FRAMES, VECTORS])
def test_a_run_that_hangs_holds_no_other_video_back_for_long(
    collection: Collection, asset: dg.AssetKey
) -> None:
    (held, *others) = collection.add(5)
    if asset == VECTORS:
        collection.make(FRAMES, [held])
        assert collection.tick() == [held]
    collection.begin(asset, [held])
    collection.make(FRAMES, others)
    began = collection.now
    while not (requested := collection.tick(seconds=20)):
        assert collection.now - began < LONGEST_WAIT
    assert requested == others
    collection.embed()
    assert [keys for keys in (collection.tick(seconds=60) for _ in range(14)) if keys] == []


@pytest.mark.parametrize("minutes", range(5, 10))
def test_frames_that_wait_for_a_run_wait_no_longer_when_it_ends(
    collection: Collection, minutes: int
) -> None:
    """New frames of a video, whose old ones are embedded; another video is always in work."""
    (held, video) = collection.add(2)
    collection.make(FRAMES, [video])
    assert collection.tick() == [video]
    collection.begin(FRAMES, [held])
    run = collection.begin(VECTORS, [video])
    assert collection.tick() == []
    collection.make(FRAMES, [video])
    began = collection.now
    for _ in range(3 * minutes):
        assert collection.tick(seconds=20) == []
    collection.store(run, video)
    collection.end(run)
    while collection.tick(seconds=20) != [video]:
        assert collection.now - began < max(LONGEST_WAIT, timedelta(minutes=minutes + 5.5))


def test_what_could_not_be_matched_is_requested_again_each_hour() -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        collection = Collection(instance, MATCHES)
        videos = collection.add(3)
        collection.make(VECTORS, videos)
        assert collection.tick() == videos
        collection.fail(made=1)
        assert [keys for keys in (collection.tick(seconds=120) for _ in range(20)) if keys] == []
        assert collection.tick(seconds=1800) == videos[1:]
        collection.fail(made=0)
        assert collection.tick(seconds=60) == []
        assert collection.tick(seconds=3600) == videos[1:]
        collection.embed()
        assert collection.tick(seconds=3600) == []


def test_what_a_lost_run_has_stored_is_requested_when_it_is_known_to_be_lost(
    collection: Collection,
) -> None:
    videos = collection.add(4)
    run = collection.begin(FRAMES, videos)
    for key in videos[:2]:
        collection.store(run, key)
    assert collection.tick() == []
    collection.end(run, Event.RUN_FAILURE)
    assert collection.tick() == videos[:2]


def test_after_a_time_without_ticks_frames_are_requested_at_once(collection: Collection) -> None:
    """The daemon was away; a run that hangs does not matter any more."""
    (held, *others) = collection.add(3)
    collection.begin(FRAMES, [held])
    collection.make(FRAMES, others)
    assert collection.tick() == []
    assert collection.tick(seconds=3600) == others


def test_frames_that_waited_when_the_sensor_lost_its_memory_are_requested(
    collection: Collection,
) -> None:
    """Somebody has reset its cursor."""
    (old, *new, without_frames) = collection.add(4)
    collection.make(FRAMES, [old])
    assert collection.tick() == [old]
    collection.make(FRAMES, new)
    collection.forget()
    assert collection.tick() == new
    collection.embed()
    collection.forget()
    assert [collection.tick() for _ in range(3)] == [[]] * 3
    collection.make(FRAMES, [without_frames])
    assert collection.tick() == [without_frames]


def test_vectors_that_somebody_else_makes_are_not_requested(collection: Collection) -> None:
    *videos, last = collection.add(3)
    run = collection.begin(FRAMES, [*videos, last])
    for key in videos:
        collection.store(run, key)
    assert collection.tick() == []
    collection.make(VECTORS, videos)
    assert collection.tick() == []
    collection.store(run, last)
    assert collection.tick() == [last]


def test_new_frames_of_a_known_video_are_requested(collection: Collection) -> None:
    videos = collection.add(2)
    for _ in range(2):
        collection.make(FRAMES, videos)
        assert collection.tick() == videos
        collection.embed()
        assert collection.tick() == []


@pytest.mark.parametrize("asset", [INDEX, SIMILARITY])
@pytest.mark.parametrize("looks", [0, 1, 3])
def test_vectors_that_come_while_an_index_is_built_are_in_the_next_one(
    asset: dg.AssetKey, looks: int
) -> None:
    """Its run read the vectors when it began; it may be short, or last for several ticks."""
    with dg.DagsterInstance.ephemeral() as instance:
        collection = Collection(instance, asset)
        first, second = collection.add(2)
        collection.make(VECTORS, [first])
        assert collection.tick() == ["the collection"]
        collection.make(
            asset, meanwhile=lambda: _make_and_look(collection, VECTORS, [second], looks)
        )
        assert collection.tick() == ["the collection"]
        collection.make(asset)
        assert [collection.tick() for _ in range(3)] == [[]] * 3


@pytest.mark.parametrize(("asset", "source"), [(VECTORS, FRAMES), (MATCHES, VECTORS)])
@pytest.mark.parametrize("looks", [0, 1, 3])
def test_what_changes_while_it_is_read_is_requested_again(
    asset: dg.AssetKey, source: dg.AssetKey, looks: int
) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        collection = Collection(instance, asset)
        videos = collection.add(3)
        collection.make(source, videos)
        assert collection.tick() == videos
        collection.embed(meanwhile=lambda: _make_and_look(collection, source, videos[:1], looks))
        assert collection.tick() == videos[:1]
        assert [collection.tick() for _ in range(3)] == [[]] * 3


@pytest.mark.parametrize("asset", [MATCHES, INDEX, SIMILARITY])
def test_what_is_made_in_the_backfill_of_its_vectors_is_not_requested_again(
    asset: dg.AssetKey,
) -> None:
    """The backfill holds it while the vectors are made: they come before its run begins."""
    with dg.DagsterInstance.ephemeral() as instance:
        collection = Collection(instance, VECTORS, asset)
        first, *others = collection.add(3)
        collection.make(VECTORS, [first])
        collection.make(FRAMES, others)
        assert {*others} <= {*collection.tick()}
        collection.embed(then=lambda: _make_after_a_tick(collection, asset, others))
        assert [collection.tick() for _ in range(3)] == [[]] * 3


@pytest.mark.parametrize("asset", [INDEX, SIMILARITY])
@pytest.mark.parametrize("cancelled", [False, True])
def test_an_index_that_was_requested_with_vectors_that_failed_is_requested_again(
    asset: dg.AssetKey, cancelled: bool
) -> None:
    """Dagster makes one backfill of both, and none of what lies downstream of a failure."""
    with dg.DagsterInstance.ephemeral() as instance:
        collection = Collection(instance, VECTORS, asset)
        first, *others = collection.add(3)
        collection.make(VECTORS, [first])
        collection.make(FRAMES, others)
        assert collection.tick() == [*others, "the collection"]
        if cancelled:
            collection.cancel()
        else:
            collection.fail(0)
        assert collection.tick() == ["the collection"]
        collection.make(asset)
        assert [collection.tick() for _ in range(3)] == [[]] * 3


@pytest.mark.parametrize("asset", [INDEX, SIMILARITY])
def test_an_index_whose_run_failed_is_requested_again_each_hour(asset: dg.AssetKey) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        collection = Collection(instance, asset)
        collection.make(VECTORS, collection.add(1))
        for _ in range(2):
            assert collection.tick() == ["the collection"]
            collection.end(collection.begin(asset), Event.RUN_FAILURE)
            assert [collection.tick(300) for _ in range(10)] == [[]] * 10
            collection.now += timedelta(minutes=10)
        assert collection.tick() == ["the collection"]
        collection.make(asset)
        assert [collection.tick(1200) for _ in range(6)] == [[]] * 6


def _make_and_look(
    collection: Collection, asset: dg.AssetKey, keys: Sequence[str], looks: int
) -> None:
    collection.make(asset, keys)
    assert [collection.tick() for _ in range(looks)] == [[]] * looks


def _make_after_a_tick(collection: Collection, asset: dg.AssetKey, keys: Sequence[str]) -> None:
    assert collection.tick() == []
    collection.make(asset, keys if GRAPH.get(asset).is_partitioned else ())
    assert collection.tick() == []
