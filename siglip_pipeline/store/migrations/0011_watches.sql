-- Standing queries, which new videos are matched with.
CREATE TABLE watches (
    watch_id        integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name            text NOT NULL UNIQUE,
    query           text NOT NULL,
    min_probability double precision NOT NULL,
    videos          text[],            -- paths and globs; NULL: all videos
    webhook         text,              -- a secret
    calibration     jsonb,             -- what the last one found
    model_key       text,              -- of the vector; NULL until the first video is matched
    embedding       halfvec,
    created_at      timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE watch_hits (
    hit_id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    watch_id        integer NOT NULL REFERENCES watches ON DELETE CASCADE,
    video_id        integer NOT NULL REFERENCES videos ON DELETE CASCADE,
    source_sha256   text NOT NULL,     -- a video with other content has other hits
    model_key       text NOT NULL,
    frame_index     integer NOT NULL,
    time_seconds    double precision NOT NULL,
    start_seconds   double precision NOT NULL,
    end_seconds     double precision NOT NULL,
    score           double precision NOT NULL,
    probability     double precision NOT NULL,
    found_at        timestamptz NOT NULL DEFAULT now(),
    attempts        integer NOT NULL DEFAULT 0,
    next_attempt_at timestamptz,       -- NULL: there is nothing to send, or not any more
    sent_at         timestamptz,
    failure         text               -- of the last attempt
);
CREATE INDEX watch_hits_watch ON watch_hits (watch_id, hit_id);
CREATE INDEX watch_hits_video ON watch_hits (video_id);
CREATE INDEX watch_hits_due ON watch_hits (next_attempt_at) WHERE next_attempt_at IS NOT NULL;
