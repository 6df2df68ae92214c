"""Paths map one-to-one to partition keys that Dagster accepts."""

from itertools import pairwise

import dagster as dg
import pytest
from dagster._core.storage import tags
from hypothesis import given
from hypothesis import strategies as st

from siglip_pipeline.defs.partitions import VIDEOS_PARTITIONS_NAME, partition_key, path_of_partition
from siglip_pipeline.runs import dagster_api
from siglip_pipeline.stages.run_names import (
    RANGE_END_TAG,
    RANGE_START_TAG,
    asset_path,
    contiguous_ranges,
    op_name,
)

AWKWARD = st.text(st.sampled_from("aé.%\n\t\0\x7f\udcff/ '\"-"), min_size=1)


@given(st.one_of(st.text(min_size=1), AWKWARD))
def test_every_path_has_a_key_and_comes_back(path: str) -> None:
    try:
        path.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return  # no file system hands out lone surrogates outside the escape range
    assert path_of_partition(partition_key(path)) == path


@pytest.mark.parametrize(
    "path", ["a.mp4", "b/ç 漢字.mkv", "....mp4", "a\nb\tc.mp4", "100%.mp4", "\udcff.mp4"]
)
def test_dagster_accepts_the_key(path: str) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions(VIDEOS_PARTITIONS_NAME, [partition_key(path)])
        assert instance.has_dynamic_partition(VIDEOS_PARTITIONS_NAME, partition_key(path))


def test_ordinary_names_stay_readable() -> None:
    assert partition_key("holiday/beach day.mp4") == "holiday/beach day.mp4"


@given(st.sets(st.integers(0, 30)))
def test_ranges_cover_exactly_what_is_wanted(wanted: set[int]) -> None:
    keys = [f"k{index:02d}" for index in range(31)]
    ranges = contiguous_ranges(keys, [keys[index] for index in wanted])
    covered = [
        key for first, last in ranges for key in keys[keys.index(first) : keys.index(last) + 1]
    ]
    assert covered == [keys[index] for index in sorted(wanted)]
    # There are as few ranges as possible: none begins where another ends.
    for (_, last), (first, _) in pairwise(ranges):
        assert keys.index(first) > keys.index(last) + 1


def test_who_asks_over_http_uses_dagsters_own_names() -> None:
    assert (dagster_api.WILL_RETRY_TAG, dagster_api.AUTO_RETRY_RUN_ID_TAG) == (
        tags.WILL_RETRY_TAG,
        tags.AUTO_RETRY_RUN_ID_TAG,
    )
    assert (RANGE_START_TAG, RANGE_END_TAG) == (
        tags.ASSET_PARTITION_RANGE_START_TAG,
        tags.ASSET_PARTITION_RANGE_END_TAG,
    )
    for part in (None, "2025/in-door.b"):
        key = dg.AssetKey(asset_path("video_frames", part))
        assert op_name("video_frames", part) == key.to_python_identifier()
