-- Videos are compared with each other once: what a comparison found is kept, and only videos whose
-- vectors have changed are compared again. See comparisons.py for what the bytes hold.
ALTER TABLE video_vectors
    ADD COLUMN ingest_id      bigint,            -- the load that was compared
    ADD COLUMN rules          text,              -- what it was compared by
    ADD COLUMN pairs          integer,           -- rows of video_pairs that spread counts
    ADD COLUMN length_seconds double precision,
    ADD COLUMN moments        bytea,             -- float16 [M, D]: the mean vectors of its moments
    ADD COLUMN weights        bytea,             -- float32 [N]: 1 over the number of frames like it
    ADD COLUMN spread         bytea;             -- float32 [N]: other videos with a frame like it
ALTER TABLE video_vectors
    ALTER COLUMN moments SET STORAGE EXTERNAL,
    ALTER COLUMN weights SET STORAGE EXTERNAL,
    ALTER COLUMN spread SET STORAGE EXTERNAL;

-- Pairs of videos that have frames alike, and the stretches that these make, whatever comes of it.
CREATE TABLE video_pairs (
    model_id integer NOT NULL REFERENCES models ON DELETE CASCADE,
    video_a  integer NOT NULL REFERENCES videos ON DELETE CASCADE,
    video_b  integer NOT NULL REFERENCES videos ON DELETE CASCADE,
    frames_a bytea NOT NULL,   -- bits: which frames of a have one like it in b
    frames_b bytea NOT NULL,
    segments jsonb NOT NULL,
    weak     jsonb NOT NULL,   -- stretches of weaker matches, where segments hold little
    PRIMARY KEY (model_id, video_a, video_b),
    CHECK (video_a < video_b)
);
CREATE INDEX video_pairs_b ON video_pairs (model_id, video_b);
CREATE INDEX video_pairs_video_b ON video_pairs (video_b);
