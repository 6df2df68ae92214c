"""Dagster marks as out of date exactly what a change of settings affects."""

from collections.abc import Iterator
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest

from siglip_pipeline.defs.outcomes import CheckOutcome, PartitionOutcomes

KEYS = ["a", "b", "c"]
partitions = dg.DynamicPartitionsDefinition(name="videos")


def _assets(frames_code: str, vectors_code: str, content: str = "1") -> list[Any]:
    policy = dg.BackfillPolicy.multi_run(10)

    @dg.asset(
        partitions_def=partitions,
        backfill_policy=policy,
        output_required=False,
        code_version=frames_code,
    )
    def frames(context: dg.AssetExecutionContext) -> Iterator[Any]:
        outcomes = PartitionOutcomes(context)
        for key in context.partition_keys:
            outcomes.succeed(key, data_version=f"{key}-{frames_code}-{content}", metadata={})
        yield from outcomes.finish()

    @dg.asset(
        partitions_def=partitions,
        backfill_policy=policy,
        output_required=False,
        code_version=vectors_code,
        deps=[frames],
        check_specs=[dg.AssetCheckSpec("whole", asset="vectors", partitions_def=partitions)],
    )
    def vectors(context: dg.AssetExecutionContext) -> Iterator[Any]:
        outcomes = PartitionOutcomes(context)
        for key in context.partition_keys:
            check = CheckOutcome(name="whole", passed=key != "b", metadata={"length": 1})
            outcomes.succeed(key, data_version=f"{key}-{vectors_code}", metadata={}, checks=[check])
        yield from outcomes.finish()

    return [frames, vectors]


def _materialize(instance: dg.DagsterInstance, assets: list[Any], selection: str) -> None:
    tags = {
        "dagster/asset_partition_range_start": KEYS[0],
        "dagster/asset_partition_range_end": KEYS[-1],
    }
    assert dg.materialize(assets, instance=instance, selection=selection, tags=tags).success


def _stale(instance: dg.DagsterInstance, assets: list[Any]) -> set[str]:
    graph = dg.Definitions(assets=assets).resolve_asset_graph()
    resolver = CachingStaleStatusResolver(instance, graph, LoadingContextForTest(instance))
    return {
        f"{name} {key}"
        for name in ("frames", "vectors")
        for key in KEYS
        if resolver.get_status(dg.AssetKey(name), key) is StaleStatus.STALE
    }


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("videos", KEYS)
        assets = _assets("fps:1", "base")
        _materialize(instance, assets, "frames")
        _materialize(instance, assets, "vectors")
        yield instance


def test_nothing_is_out_of_date_after_a_run(instance: dg.DagsterInstance) -> None:
    assert _stale(instance, _assets("fps:1", "base")) == set()


def test_another_model_concerns_the_vectors_alone(instance: dg.DagsterInstance) -> None:
    assert _stale(instance, _assets("fps:1", "so400m")) == {f"vectors {key}" for key in KEYS}


def test_another_sampling_concerns_the_frames_and_once_made_the_vectors(
    instance: dg.DagsterInstance,
) -> None:
    assets = _assets("fps:2", "base")
    assert _stale(instance, assets) == {f"frames {key}" for key in KEYS}
    _materialize(instance, assets, "frames")
    assert _stale(instance, assets) == {f"vectors {key}" for key in KEYS}
    _materialize(instance, assets, "vectors")
    assert _stale(instance, assets) == set()


def test_making_the_same_frames_again_leaves_the_vectors_current(
    instance: dg.DagsterInstance,
) -> None:
    assets = _assets("fps:1", "base")
    _materialize(instance, assets, "frames")
    assert _stale(instance, assets) == set()


def test_checks_are_kept_per_partition(instance: dg.DagsterInstance) -> None:
    key = dg.AssetCheckKey(dg.AssetKey("vectors"), "whole")
    records = instance.event_log_storage.get_asset_check_execution_history(key, limit=10)
    found = {}
    for record in records:
        assert record.event is not None
        assert record.event.dagster_event is not None
        evaluation = record.event.dagster_event.asset_check_evaluation_data
        found[evaluation.partition] = evaluation.passed
    assert found == {"a": True, "b": False, "c": True}
