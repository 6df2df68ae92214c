"""Partitions of one range run succeed and fail independently."""

from collections.abc import Iterator
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.partitions.context import partition_loading_context

from siglip_pipeline.defs import outcomes
from siglip_pipeline.defs.outcomes import CheckOutcome, PartitionOutcomes, retrying_temporary_errors
from siglip_pipeline.errors import (
    DatabaseUnavailableError,
    VectorError,
    VideoError,
    VideoInterruptedError,
)
from siglip_pipeline.stages.run_names import RANGE_END_TAG, RANGE_START_TAG

KEYS = ["a", "bad", "c", "d"]
BAD, BROKEN = {"bad"}, {"c"}
"""Partitions that fail, and that fail their check; tests change them."""
ERROR = VideoError
SEVERITY = dg.AssetCheckSeverity.ERROR
partitions = dg.DynamicPartitionsDefinition(name="videos")


WHOLE = dg.AssetCheckKey(dg.AssetKey("graded"), "whole")


@dg.asset(
    partitions_def=partitions,
    backfill_policy=dg.BackfillPolicy.multi_run(10),
    output_required=False,
    check_specs=[dg.AssetCheckSpec("whole", asset="graded", partitions_def=partitions)],
)
def graded(
    context: dg.AssetExecutionContext,
) -> Iterator[dg.MaterializeResult[Any] | dg.Output[None]]:
    collected = PartitionOutcomes(context)
    for key in context.partition_keys:
        if key in BAD:
            collected.fail(key, ERROR(key, "it is bad"))
        else:
            check = CheckOutcome(
                name="whole", passed=key not in BROKEN, metadata={"length": 1}, severity=SEVERITY
            )
            collected.succeed(
                key, data_version=f"v-{key}", metadata={"length": len(key)}, checks=[check]
            )
    yield from collected.finish()


def _run(instance: dg.DagsterInstance, first: str, last: str) -> dg.ExecuteInProcessResult:
    tags = {
        RANGE_START_TAG: first,
        RANGE_END_TAG: last,
    }
    return dg.materialize([graded], instance=instance, tags=tags, raise_on_error=False)


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("videos", KEYS)
        yield instance


def test_good_partitions_are_green_and_the_bad_one_is_named(instance: dg.DagsterInstance) -> None:
    result = _run(instance, "a", "d")
    assert not result.success
    assert instance.get_materialized_partitions(graded.key) == {"a", "c", "d"}
    failure = result.failure_data_for_node("graded")
    assert failure is not None
    assert failure.user_failure_data is not None
    assert failure.user_failure_data.description == "1 of 4 videos failed:\nbad: it is bad"


def test_a_range_whose_ends_are_exchanged_is_no_success(instance: dg.DagsterInstance) -> None:
    result = _run(instance, "c", "a")
    failure = result.failure_data_for_node("graded")
    assert failure is not None
    assert failure.user_failure_data is not None
    told = "no partition lies between c and a, which comes first: exchange them"
    assert failure.user_failure_data.description == told


@pytest.mark.parametrize(("bad", "more"), [(20, []), (21, ["… and 1 more"])])
def test_of_many_that_failed_twenty_are_named_and_all_counted(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, bad: int, more: list[str]
) -> None:
    keys = [f"k{number:02}" for number in range(bad + 3)]
    instance.add_dynamic_partitions("videos", keys)
    monkeypatch.setattr(f"{__name__}.BAD", {*keys[:bad]})
    failure = _run(instance, keys[0], keys[-1]).failure_data_for_node("graded")
    assert failure is not None
    said = failure.user_failure_data
    assert said is not None
    assert said.description is not None
    assert said.description.splitlines() == [
        f"{bad} of {bad + 3} videos failed:",
        *(f"{key}: it is bad" for key in keys[:20]),
        *more,
    ]
    assert {name: value.value for name, value in said.metadata.items()} == {
        "failed": bad,
        "succeeded": 3,
    }


@pytest.mark.parametrize(("first", "last", "expected"), [("c", "d", 2), ("c", "c", 1)])
def test_a_good_run_materializes_each_partition_once_with_its_version(
    instance: dg.DagsterInstance, first: str, last: str, expected: int
) -> None:
    assert _run(instance, first, last).success
    records = instance.fetch_materializations(graded.key, limit=10).records
    assert len(records) == expected
    for record in records:
        event = record.asset_materialization
        assert event is not None
        assert event.tags is not None
        assert event.tags["dagster/data_version"] == f"v-{event.partition}"
        assert event.metadata["length"].value == 1


def test_what_follows_in_the_run_of_one_partition_goes_on(instance: dg.DagsterInstance) -> None:
    @dg.asset(
        partitions_def=partitions,
        deps=[graded],
        backfill_policy=dg.BackfillPolicy.multi_run(10),
    )
    def below() -> None:
        pass

    assert dg.materialize([graded, below], instance=instance, partition_key="a").success
    assert instance.get_materialized_partitions(below.key) == {"a"}


def _checked(instance: dg.DagsterInstance) -> dict[str, set[str]]:
    """Partitions by the status of their check, as Dagster counts them."""
    with partition_loading_context(dynamic_partitions_store=instance):
        state = instance.event_log_storage.get_asset_check_state([(WHOLE, partitions)])[WHOLE]
        found = {
            status.value: set(subset.subset_value.get_partition_keys())
            for status, subset in state.subsets.items()
        }
    return {status: keys for status, keys in found.items() if keys}


def test_checks_are_of_what_was_made_and_clear_when_it_is_made_well(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not _run(instance, "a", "d").success
    expected = {"SUCCEEDED": {"a", "d"}, "FAILED": {"c"}}
    found = _checked(instance)
    assert {status: found.get(status) for status in expected} == expected
    monkeypatch.setattr(f"{__name__}.BROKEN", set())
    monkeypatch.setattr(f"{__name__}.BAD", set())
    # A run over one partition, by its tag and as a range, and one over some.
    assert _run(instance, "c", "c").success
    assert dg.materialize([graded], instance=instance, partition_key="bad").success
    assert _checked(instance) == {"SUCCEEDED": set(KEYS)}
    assert _run(instance, "bad", "c").success
    assert _checked(instance) == {"SUCCEEDED": set(KEYS)}
    # The check fails again after the partition gets worse.
    monkeypatch.setattr(f"{__name__}.BROKEN", {"a"})
    assert _run(instance, "a", "a").success
    assert _checked(instance) == {"SUCCEEDED": {"bad", "c", "d"}, "FAILED": {"a"}}


def test_what_was_interrupted_is_tried_again_and_the_rest_is_kept(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = 0

    class Healing(VideoInterruptedError):
        def __init__(self, video: str, reason: str) -> None:
            nonlocal tries
            super().__init__(video, reason)
            tries += 1
            if tries == 2:
                BAD.clear()

    monkeypatch.setattr(f"{__name__}.BAD", {"bad"})
    monkeypatch.setattr(f"{__name__}.ERROR", Healing)
    monkeypatch.setattr("siglip_pipeline.defs.outcomes._FIRST_RETRY_SECONDS", 0.01)
    assert _run(instance, "a", "d").success
    assert tries == 2
    assert instance.get_materialized_partitions(graded.key) == {*KEYS}
    # What never heals is named in the end.
    monkeypatch.setattr(f"{__name__}.BAD", {"bad"})
    monkeypatch.setattr("siglip_pipeline.defs.outcomes._MAX_RETRIES", 1)
    result = _run(instance, "a", "d")
    failure = result.failure_data_for_node("graded")
    assert failure is not None
    assert failure.user_failure_data is not None
    assert failure.user_failure_data.description == "1 of 4 videos failed:\nbad: it is bad"
    assert tries == 4


def test_a_bad_file_is_not_tried_again_though_other_failures_are(
    instance: dg.DagsterInstance,
) -> None:
    tries: list[str] = []

    @dg.asset(
        partitions_def=partitions,
        output_required=False,
        retry_policy=dg.RetryPolicy(max_retries=2),
    )
    def stubborn(context: dg.AssetExecutionContext) -> Iterator[Any]:
        tries.append(context.partition_key)
        collected = PartitionOutcomes(context)
        collected.fail(context.partition_key, VideoError("bad", "it is bad"))
        yield from collected.finish()

    result = dg.materialize(
        [stubborn], instance=instance, partition_key="bad", raise_on_error=False
    )
    assert not result.success
    assert tries == ["bad"]


def test_a_warning_stays_a_warning(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    for severity in dg.AssetCheckSeverity:
        monkeypatch.setattr(f"{__name__}.SEVERITY", severity)
        result = _run(instance, "c", "c")
        (evaluation,) = result.get_asset_check_evaluations()
        assert (evaluation.passed, evaluation.severity) == (False, severity)


def test_each_wait_before_a_retry_is_twice_the_one_before(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.BAD", {"bad"})
    monkeypatch.setattr(f"{__name__}.ERROR", VideoInterruptedError)
    assert outcomes._FIRST_RETRY_SECONDS == 5.0
    monkeypatch.setattr(outcomes, "_FIRST_RETRY_SECONDS", 0.01)
    result = _run(instance, "a", "d")
    assert not result.success
    waits = [
        event.step_retry_data.seconds_to_wait
        for event in result.all_events
        if event.event_type == dg.DagsterEventType.STEP_UP_FOR_RETRY
    ]
    assert waits == [0.01, 0.02, 0.04, 0.08, 0.16]


def test_only_what_heals_is_tried_again() -> None:
    tries: list[str] = []

    @dg.asset
    def flaky(context: dg.AssetExecutionContext) -> None:
        tries.append("healing")
        with retrying_temporary_errors(context):
            if len(tries) < 2:
                raise DatabaseUnavailableError("the server is restarting")

    @dg.asset
    def broken(context: dg.AssetExecutionContext) -> None:
        tries.append("broken")
        with retrying_temporary_errors(context):
            raise VectorError("a vector is not finite")

    with pytest.MonkeyPatch.context() as patch, dg.DagsterInstance.ephemeral() as instance:
        patch.setattr("siglip_pipeline.defs.outcomes._FIRST_RETRY_SECONDS", 0.01)
        assert dg.materialize([flaky], instance=instance).success
        assert not dg.materialize([broken], instance=instance, raise_on_error=False).success
    assert tries == ["healing", "healing", "broken"]
