-- What people should know of a video that is indexed all the same.
ALTER TABLE videos ADD COLUMN warnings text[] NOT NULL DEFAULT '{}';

-- The second that a player shows at the first frame.
ALTER TABLE videos ADD COLUMN media_offset_seconds double precision NOT NULL
    GENERATED ALWAYS AS (coalesce((info ->> 'media_time_seconds')::double precision, 0)) STORED;

-- The content that failed, and under which conditions: the same is not decoded again.
ALTER TABLE failures ADD COLUMN source_fingerprint text;
ALTER TABLE failures ADD COLUMN source_sha256 text;
ALTER TABLE failures ADD COLUMN conditions text;

-- Names are found whatever their Unicode form.
CREATE INDEX videos_name ON videos USING hash (normalize(path, NFC));
