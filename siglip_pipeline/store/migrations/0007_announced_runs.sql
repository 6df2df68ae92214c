-- The run that an announcement asked Dagster for, by its run key, until that run is known to exist.
ALTER TABLE videos ADD COLUMN announced_run text;
ALTER TABLE videos ADD COLUMN announced_at timestamptz;
