"""Names that Dagster and its callers share: jobs, batches, and ranges of partitions.

It is free of Dagster, which takes a second to import: `materialize` asks a running one over HTTP.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Final

from siglip_pipeline.records import Stage

JOB_OF: Final = {
    Stage.FRAMES: "sample_frames",
    Stage.VECTORS: "embed_frames",
    Stage.INDEX: "rebuild_index",
    Stage.SIMILARITY: "compare_videos",
}
"""The job of each asset."""

# The sizes differ so that Dagster makes separate runs of the assets: if two were in one run, one
# failed video would prevent the second of all others.
FRAMES_PER_RUN: Final = 32
EMBEDDINGS_PER_RUN: Final = 64
WATCHED_PER_RUN: Final = 256

# Dagster's own tags for a run over a range of partitions, both ends inclusive.
RANGE_START_TAG: Final = "dagster/asset_partition_range_start"
RANGE_END_TAG: Final = "dagster/asset_partition_range_end"


def asset_path(asset: str, shard: str | None) -> list[str]:
    """Return the key of an asset of a shard, as its components."""
    return [*(shard.split("/") if shard else []), str(asset)]


def op_name(asset: str, shard: str | None) -> str:
    """Return the name of the op of an asset, as the config of a run has it."""
    return "__".join(asset_path(asset, shard)).replace("-", "_").replace(".", "_")


def partitions_name(shard: str | None) -> str:
    """Return the name of the set of partitions of a shard."""
    return f"videos/{shard}" if shard else "videos"


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
