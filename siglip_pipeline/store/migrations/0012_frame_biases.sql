-- How near each frame is to queries in general, by which SIGLIP_RANKING=hubness ranks it lower.
CREATE TABLE frame_biases (
    model_id    integer NOT NULL REFERENCES models ON DELETE CASCADE,
    video_id    integer NOT NULL REFERENCES videos ON DELETE CASCADE,
    ingest_id   bigint NOT NULL,     -- the load of the video that these frames are of
    bank        text NOT NULL,       -- digest of the queries that it was estimated from
    frame_index integer[] NOT NULL,
    bias        real[] NOT NULL,     -- of each of these frames
    PRIMARY KEY (model_id, video_id)
);
