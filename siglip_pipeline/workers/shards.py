"""Let one worker serve all shards of a divided collection, one after the other.

The definitions read their shard from ``SIGLIP_PART`` when their modules load. A worker takes steps
of every shard, and reloads the definitions when the shard changes; a loaded model stays.
"""

import sys

from dagster import DagsterRun

from siglip_pipeline.defs.internals import forget_loaded_jobs
from siglip_pipeline.defs.partitions import SHARD_TAG
from siglip_pipeline.settings import Settings, set_shard

_DEFINITIONS = ("siglip_pipeline.definitions", "siglip_pipeline.defs")


def shard_of_run(run: DagsterRun) -> str | None:
    """Return the shard that a run works on; None if the collection is not divided."""
    if run.asset_selection:
        prefix = next(iter(run.asset_selection)).path[:-1]
        return "/".join(prefix) or None
    return run.tags.get(SHARD_TAG)


def serve_shard(shard: str | None) -> None:
    """Make the next load of the definitions load those of this shard."""
    if Settings.load().part == shard:
        return
    set_shard(shard)
    for name in [*sys.modules]:
        if name in _DEFINITIONS or name.startswith(f"{_DEFINITIONS[1]}."):
            del sys.modules[name]
    forget_loaded_jobs()
