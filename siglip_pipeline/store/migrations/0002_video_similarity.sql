-- Videos that resemble each other: one vector per video, and stretches that two of them share.
-- Written anew as a whole by each run of the asset video_similarity: see video_similarity.py.

CREATE TABLE video_vectors (
    model_id  integer NOT NULL REFERENCES models ON DELETE CASCADE,
    video_id  integer NOT NULL REFERENCES videos ON DELETE CASCADE,
    frames    integer NOT NULL,
    embedding halfvec NOT NULL,   -- mean over the video's moments, of unit length
    PRIMARY KEY (model_id, video_id)
);

CREATE TABLE shared_segments (
    model_id      integer NOT NULL REFERENCES models ON DELETE CASCADE,
    video_a       integer NOT NULL REFERENCES videos ON DELETE CASCADE,
    video_b       integer NOT NULL REFERENCES videos ON DELETE CASCADE,
    segment       integer NOT NULL,
    start_a       double precision NOT NULL,
    end_a         double precision NOT NULL,
    start_b       double precision NOT NULL,
    end_b         double precision NOT NULL,
    speed         double precision NOT NULL,   -- seconds of b that pass in a second of a
    score         double precision NOT NULL,   -- mean cosine of the frames that meet
    evidence      double precision NOT NULL,   -- how many unmistakable frames it counts for
    duplicate     boolean NOT NULL,            -- the two videos are copies, wholly or one of a part
    covered       double precision NOT NULL,   -- share of the shorter video's content, all segments
    computed_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (model_id, video_a, video_b, segment),
    CHECK (video_a < video_b)
);
CREATE INDEX shared_segments_b ON shared_segments (video_b);
