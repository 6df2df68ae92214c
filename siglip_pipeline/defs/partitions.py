"""Define the partitions and the keys of this shard: one dynamic partition per upload."""

import dagster as dg

from siglip_pipeline.settings import Settings
from siglip_pipeline.stages.run_names import asset_path, partitions_name
from siglip_pipeline.uploads import names
from siglip_pipeline.uploads.names import partition_key, path_of_partition

__all__ = [
    "GROUP",
    "KEY_PREFIX",
    "SHARD",
    "SHARD_TAG",
    "SHARD_TAGS",
    "VIDEOS_PARTITIONS_NAME",
    "asset_key",
    "no_upload_has",
    "partition_key",
    "path_of_partition",
    "videos_partitions",
]

SHARD = Settings.load().part
SHARD_TAG = "siglip/part"
"""Tag of a job's runs: the shard. Some jobs select no assets that would tell it."""
SHARD_TAGS = {SHARD_TAG: SHARD} if SHARD else {}
"""The tags of each job."""

KEY_PREFIX = SHARD.split("/") if SHARD else []
"""Each shard has its own assets and partitions, so that one Dagster can load several code
locations. See docs/decisions/0073-parts.md."""

GROUP = "_".join(["video_search", *KEY_PREFIX]).replace("-", "_")

VIDEOS_PARTITIONS_NAME = partitions_name(SHARD)

videos_partitions = dg.DynamicPartitionsDefinition(name=VIDEOS_PARTITIONS_NAME)


def asset_key(name: str) -> dg.AssetKey:
    """Return the key of one of this project's assets in this shard."""
    return dg.AssetKey(asset_path(name, SHARD))


def no_upload_has(key: str) -> str | None:
    """Return why no upload of this shard can have this partition key; None if one can."""
    return names.no_upload_has(key, shard=SHARD)
