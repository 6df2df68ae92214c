"""The Dagster layer: assets, checks, sensors, jobs and resources.

Owns what Dagster shows and starts, and :mod:`.internals`, the only module of the room that names
private parts of Dagster. It orchestrates: the work is done by the rooms below, all of which it may
import. `definitions` wires it together.
"""

import warnings

from dagster import BetaWarning, PreviewWarning

# Backfill policies and automation conditions are marked beta; saying so at every load helps nobody.
for _category in (BetaWarning, PreviewWarning):
    warnings.filterwarnings("ignore", category=_category)
