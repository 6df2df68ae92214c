"""One dynamic partition per upload, and the mapping between a path and its partition key."""

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from urllib.parse import unquote_to_bytes

import dagster as dg

from siglip_pipeline.settings import Settings

PART = Settings.load().part
KEY_PREFIX = PART.split("/") if PART else []
"""Where the collection is divided, each part has assets and partitions of its own, so that several
code locations fit into one Dagster: see docs/decisions/0073-parts.md."""

GROUP = "_".join(["video_search", *KEY_PREFIX]).replace("-", "_")

VIDEOS_PARTITIONS_NAME = f"videos/{PART}" if PART else "videos"

# Dagster's own tags for a run over a range of partitions, both ends inclusive.
RANGE_START_TAG = "dagster/asset_partition_range_start"
RANGE_END_TAG = "dagster/asset_partition_range_end"

videos_partitions = dg.DynamicPartitionsDefinition(name=VIDEOS_PARTITIONS_NAME)

# Dagster refuses "..." and these control characters in dynamic partition keys
# (INVALID_PARTITION_SUBSTRINGS in dagster._core.definitions.partitions.utils).
_REFUSED = re.compile("[\a\b\f\n\r\t\v\0%\ud800-\udfff]")


def asset_key(name: str) -> dg.AssetKey:
    """The key of one of this project's assets, in this part of the collection."""
    return dg.AssetKey([*KEY_PREFIX, name])


def partition_key(path: str) -> str:
    """The partition key of an upload: its path, with what Dagster refuses percent-encoded.

    Names that are not UTF-8 (surrogate escapes, as Python lists them) are encoded byte by byte, so
    every file name that a disk can hold has a key, and no two share one.
    """
    return _REFUSED.sub(_percent_encoded, path).replace("...", "%2E%2E%2E")


def _percent_encoded(found: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in found.group().encode("utf-8", "surrogateescape"))


def path_of_partition(key: str) -> str:
    """The upload's path below UPLOADS; the inverse of :func:`partition_key`."""
    return unquote_to_bytes(key).decode("utf-8", "surrogateescape")


def keys_between(all_keys: Sequence[str], first: str, last: str) -> list[str]:
    """The keys of a range, both ends inclusive; none when an end is not there any more."""
    if first not in all_keys or last not in all_keys:
        return []
    return list(all_keys[all_keys.index(first) : all_keys.index(last) + 1])


def contiguous_ranges(all_keys: Sequence[str], wanted: Iterable[str]) -> list[tuple[str, str]]:
    """Group wanted keys into runs that are contiguous in ``all_keys``.

    A Dagster run covers a range that is contiguous in the insertion order of the partitions.

    Returns:
        ``(first, last)`` pairs, both inclusive, in the order of ``all_keys``.
    """
    position = {key: index for index, key in enumerate(all_keys)}
    indices = sorted(position[key] for key in set(wanted))
    if not indices:
        return []
    starts = [indices[0]] + [b for a, b in pairwise(indices) if b != a + 1]
    ends = [a for a, b in pairwise(indices) if b != a + 1] + [indices[-1]]
    return [(all_keys[start], all_keys[end]) for start, end in zip(starts, ends, strict=True)]
