-- The nearest frames of the recall check's queries, by an exact search of the videos of a share of
-- the collection: the next check compares only the frames of loads that are not among these.
CREATE TABLE recall_truths (
    model_id   integer NOT NULL REFERENCES models ON DELETE CASCADE,
    share      double precision NOT NULL,
    queries    text NOT NULL,       -- a digest of their vectors, in order
    video_ids  integer[] NOT NULL,  -- the loads that were compared
    ingest_ids bigint[] NOT NULL,
    distances  bytea NOT NULL,      -- little-endian float32, the same number for each query
    found_in   bytea NOT NULL,      -- int32: the video of each
    PRIMARY KEY (model_id, share)
);
