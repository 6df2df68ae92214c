"""One dynamic partition per upload, and runs over ranges of them."""

from collections.abc import Iterable, Sequence
from itertools import pairwise

import dagster as dg

from siglip_pipeline.settings import Settings
from siglip_pipeline.uploads.names import partition_key, path_of_partition

__all__ = [
    "GROUP",
    "KEY_PREFIX",
    "PART",
    "PART_TAG",
    "RANGE_END_TAG",
    "RANGE_START_TAG",
    "VIDEOS_PARTITIONS_NAME",
    "asset_key",
    "contiguous_ranges",
    "keys_between",
    "partition_key",
    "path_of_partition",
    "videos_partitions",
]

PART = Settings.load().part
PART_TAG = "siglip/part"
"""Tag of a job's runs: the shard. Some jobs select no assets that would tell it."""

KEY_PREFIX = PART.split("/") if PART else []
"""Each shard has its own assets and partitions, so that one Dagster can load several code
locations. See docs/decisions/0073-parts.md."""

GROUP = "_".join(["video_search", *KEY_PREFIX]).replace("-", "_")

VIDEOS_PARTITIONS_NAME = f"videos/{PART}" if PART else "videos"

# Dagster's own tags for a run over a range of partitions, both ends inclusive.
RANGE_START_TAG = "dagster/asset_partition_range_start"
RANGE_END_TAG = "dagster/asset_partition_range_end"

videos_partitions = dg.DynamicPartitionsDefinition(name=VIDEOS_PARTITIONS_NAME)


def asset_key(name: str) -> dg.AssetKey:
    """Return the key of one of this project's assets in this shard."""
    return dg.AssetKey([*KEY_PREFIX, str(name)])


def keys_between(all_keys: Sequence[str], first: str, last: str) -> list[str]:
    """Return the keys of a range, both ends inclusive; none if an end was deleted."""
    if first not in all_keys or last not in all_keys:
        return []
    return list(all_keys[all_keys.index(first) : all_keys.index(last) + 1])


def contiguous_ranges(
    all_keys: Sequence[str], wanted: Iterable[str], *, most: int | None = None
) -> list[tuple[str, str]]:
    """Group wanted keys into runs that are contiguous in ``all_keys``.

    A Dagster run covers a range that is contiguous in the insertion order of the partitions.

    Args:
        all_keys: every partition key in insertion order.
        wanted: keys among them.
        most: keys in a range; None sets no limit.

    Returns:
        ``(first, last)`` pairs, both inclusive, in the order of ``all_keys``.
    """
    position = {key: index for index, key in enumerate(all_keys)}
    indices = sorted(position[key] for key in set(wanted))
    if not indices:
        return []
    starts = [indices[0]] + [b for a, b in pairwise(indices) if b != a + 1]
    ends = [a for a, b in pairwise(indices) if b != a + 1] + [indices[-1]]
    step = most or len(indices)
    return [
        (all_keys[first], all_keys[min(first + step - 1, end)])
        for start, end in zip(starts, ends, strict=True)
        for first in range(start, end + 1, step)
    ]
