"""Parts of a divided collection, as a worker sees them: it serves all, one after the other.

Which part the definitions are of is read from ``SIGLIP_PART`` as their modules load. A worker takes
steps of every part, and has them load anew when the part changes; the model, and whatever else is
loaded, stays.
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
    """Have the definitions of a part loaded by whoever asks for them next."""
    if Settings.load().part == part:
        return
    set_variable("part", part)
    for name in [*sys.modules]:
        if name in _DEFINITIONS or name.startswith(f"{_DEFINITIONS[1]}."):
            del sys.modules[name]
    forget_loaded_jobs()
