"""Let one worker serve all shards of a divided collection, one after the other.

The definitions read their shard from ``SIGLIP_PART`` when their modules load. A worker takes steps
of every shard, and reloads the definitions when the shard changes; a loaded model stays.
"""

import sys

from dagster import DagsterRun

from siglip_pipeline.defs.internals import forget_loaded_jobs
from siglip_pipeline.defs.partitions import PART_TAG
from siglip_pipeline.settings import Settings, set_variable

_DEFINITIONS = ("siglip_pipeline.definitions", "siglip_pipeline.defs")


def part_of_run(run: DagsterRun) -> str | None:
    """Return the shard that a run works on; None if the collection is not divided."""
    if run.asset_selection:
        prefix = next(iter(run.asset_selection)).path[:-1]
        return "/".join(prefix) or None
    return run.tags.get(PART_TAG)


def serve_part(part: str | None) -> None:
    """Make the next load of the definitions load those of this shard."""
    if Settings.load().part == part:
        return
    set_variable("part", part)
    for name in [*sys.modules]:
        if name in _DEFINITIONS or name.startswith(f"{_DEFINITIONS[1]}."):
            del sys.modules[name]
    forget_loaded_jobs()
