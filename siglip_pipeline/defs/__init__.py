"""The Dagster layer: assets, sensors, checks and resources. They orchestrate; the domain works."""

import warnings

from dagster import BetaWarning, PreviewWarning

# Backfill policies and automation conditions are marked beta; saying so at every load helps nobody.
for _category in (BetaWarning, PreviewWarning):
    warnings.filterwarnings("ignore", category=_category)
