-- How often each upload was announced to Dagster, and since when it has been missing.
ALTER TABLE videos ADD COLUMN announcements integer NOT NULL DEFAULT 0;
ALTER TABLE videos ADD COLUMN missing_since timestamptz;
