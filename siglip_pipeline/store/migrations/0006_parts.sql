-- Which part of a divided collection a video is of (SIGLIP_PART); null where it is not divided. Its
-- assets in Dagster are those of the part.
ALTER TABLE videos ADD COLUMN part text;
