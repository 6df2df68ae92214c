"""The Dagster layer: assets, sensors, checks and resources. They orchestrate; the domain works."""
