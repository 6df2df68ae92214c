"""The partitions of unfinished and of waiting runs, and of backfills."""

import dagster as dg
import pytest
from dagster._core.definitions.assets.graph.asset_graph_subset import AssetGraphSubset
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill

from siglip_pipeline.definitions import defs
from siglip_pipeline.defs import in_flight
from siglip_pipeline.defs.in_flight import partitions_in_flight, partitions_that_wait
from siglip_pipeline.defs.partitions import videos_partitions
from siglip_pipeline.stages.run_names import RANGE_END_TAG, RANGE_START_TAG


def make_run(
    instance: dg.DagsterInstance, asset: str, status: dg.DagsterRunStatus, first: str, last: str
) -> dg.DagsterRun:
    return instance.create_run_for_job(
        defs.resolve_implicit_global_asset_job_def(),
        status=status,
        asset_selection=frozenset({dg.AssetKey(asset)}),
        tags={
            "dagster/asset_partition_range_start": first,
            "dagster/asset_partition_range_end": last,
        },
    )


@pytest.mark.parametrize(
    ("tags", "covered"),
    [
        ({"dagster/partition": "b"}, ["b"]),
        ({RANGE_START_TAG: "b", RANGE_END_TAG: "c"}, ["b", "c"]),
        ({RANGE_START_TAG: "b", RANGE_END_TAG: "c", "dagster/partition": "a"}, ["a"]),
        ({RANGE_START_TAG: "b"}, []),
        ({RANGE_END_TAG: "b"}, []),
        ({}, []),
    ],
)
def test_a_run_covers_a_partition_or_a_range(tags: dict[str, str], covered: list[str]) -> None:
    run = dg.DagsterRun(job_name="any", tags=tags)
    assert in_flight.partitions_of_run(run, ["a", "b", "c", "d"]) == covered


# A queued run can be created only with a code location.
@pytest.mark.parametrize(
    "status", [s for s in dg.DagsterRunStatus if s is not dg.DagsterRunStatus.QUEUED]
)
def test_a_run_is_in_flight_until_it_has_ended(
    instance: dg.DagsterInstance, status: dg.DagsterRunStatus
) -> None:
    instance.add_dynamic_partitions("videos", ["a.mp4", "b.mp4"])
    make_run(instance, "frame_embeddings", status, "b.mp4", "b.mp4")
    ended = status.value in ("SUCCESS", "FAILURE", "CANCELED")
    busy = partitions_in_flight(instance, ["a.mp4", "b.mp4"])
    assert busy == (frozenset() if ended else frozenset({"b.mp4"}))
    waiting = partitions_that_wait(instance, dg.AssetKey("frame_embeddings"), after="a.mp4")
    assert waiting == (["b.mp4"] if status.value == "NOT_STARTED" else [])
    assert dg.DagsterRunStatus.QUEUED in in_flight.UNFINISHED


def test_partitions_that_wait_and_of_runs_in_flight(instance: dg.DagsterInstance) -> None:
    keys = [f"{n}.mp4" for n in range(8)]
    instance.add_dynamic_partitions("videos", [*keys, "gone.mp4"])
    status = dg.DagsterRunStatus
    make_run(instance, "frame_embeddings", status.NOT_STARTED, "1.mp4", "2.mp4")
    make_run(instance, "frame_embeddings", status.STARTED, "0.mp4", "0.mp4")
    make_run(instance, "video_frames", status.NOT_STARTED, "4.mp4", "4.mp4")
    make_run(instance, "frame_embeddings", status.NOT_STARTED, "6.mp4", "6.mp4")
    make_run(instance, "frame_embeddings", status.SUCCESS, "7.mp4", "7.mp4")
    make_run(instance, "frame_embeddings", status.NOT_STARTED, "7.mp4", "gone.mp4")
    # Runs of more assets, and of a job that names none.
    for assets in (frozenset(map(dg.AssetKey, ("video_frames", "frame_embeddings"))), None):
        instance.create_run_for_job(
            defs.resolve_implicit_global_asset_job_def(),
            status=status.NOT_STARTED,
            asset_selection=assets,
            tags={"dagster/partition": "5.mp4"},
        )
    instance.delete_dynamic_partition("videos", "gone.mp4")
    asset = dg.AssetKey("frame_embeddings")
    assert partitions_that_wait(instance, asset, after="0.mp4") == ["1.mp4", "2.mp4", "6.mp4"]
    busy = partitions_in_flight(instance, keys)
    assert busy == frozenset({"0.mp4", "1.mp4", "2.mp4", "4.mp4", "5.mp4", "6.mp4"})


def test_what_a_backfill_is_about_to_make_waits_too(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [f"{n}.mp4" for n in range(8)]
    instance.add_dynamic_partitions("videos", keys)
    asset = dg.AssetKey("frame_embeddings")

    def subset(*names: str) -> AssetGraphSubset:
        keys = videos_partitions.subset_with_partition_keys(names)
        return AssetGraphSubset(  # type: ignore[call-arg]  # a record that mypy does not see through
            partitions_subsets_by_asset_key={asset: keys}, non_partitioned_asset_keys=frozenset()
        )

    def backfill(name: str, targets: AssetGraphSubset) -> PartitionBackfill:
        made: PartitionBackfill = PartitionBackfill.from_asset_graph_subset(
            name, 1.0, {}, instance, targets, None, None, None
        )
        instance.add_backfill(made)
        return made

    going_on = backfill("aaaa", subset("0.mp4", "2.mp4", "4.mp4", "6.mp4"))
    assert going_on.asset_backfill_data is not None
    known = going_on.asset_backfill_data._replace(materialized_subset=subset("4.mp4"))
    instance.update_backfill(
        going_on.with_asset_backfill_data(known, instance, defs.resolve_asset_graph())
    )
    ended = backfill("bbbb", subset("5.mp4"))
    instance.update_backfill(ended._replace(status=BulkActionStatus.COMPLETED_SUCCESS))
    assert partitions_that_wait(instance, asset, after="0.mp4") == ["2.mp4", "6.mp4"]
    make_run(instance, "frame_embeddings", dg.DagsterRunStatus.NOT_STARTED, "7.mp4", "7.mp4")
    # First the queued runs, then the backfill's later keys that are not materialized.
    assert partitions_that_wait(instance, asset, after="0.mp4") == ["7.mp4", "2.mp4", "6.mp4"]
    assert partitions_that_wait(instance, asset, after="2.mp4") == ["7.mp4", "6.mp4"]
    everything = partitions_that_wait(instance, asset, after="that is not there")
    assert everything == ["7.mp4", "0.mp4", "2.mp4", "6.mp4"]
    assert partitions_in_flight(instance, keys) is None, "the keys of its next runs are not known"
    assert in_flight.MOST_AHEAD == 256
    monkeypatch.setattr(in_flight, "MOST_AHEAD", 2)
    assert partitions_that_wait(instance, asset, after="0.mp4") == ["7.mp4", "2.mp4"]
