"""The Dagster layer: assets, checks, sensors, jobs and resources.

Owns what Dagster shows and starts, and :mod:`.internals`, the only module here that uses private
parts of Dagster. These modules only orchestrate: the rooms below do the work, and this room may
import all of them. `definitions` puts everything together.
"""

import warnings

from dagster import BetaWarning, PreviewWarning

# Dagster marks backfill policies and automation conditions as beta, and warns at every load.
for _category in (BetaWarning, PreviewWarning):
    warnings.filterwarnings("ignore", category=_category)
