-- Videos, models, and what is stored of each video under each model.
-- The per-model tables (frames_<m>, moments_<m>) are made when a model is registered, the
-- per-generation ones (index_<m>_g<n>) when an index is built: see models.py and index.py.

CREATE EXTENSION IF NOT EXISTS vector;

CREATE TABLE models (
    model_id          integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    model_key         text NOT NULL UNIQUE,
    name              text NOT NULL,
    revision          text,
    dim               integer NOT NULL CHECK (dim BETWEEN 1 AND 4000),
    preprocess        jsonb NOT NULL,
    logit_scale       double precision NOT NULL,
    logit_bias        double precision NOT NULL,
    moment_threshold  double precision NOT NULL,
    is_active         boolean NOT NULL DEFAULT false,
    active_generation integer,
    registered_at     timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX models_one_active ON models (is_active) WHERE is_active;

CREATE TABLE videos (
    video_id           integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    path               text COLLATE "C" NOT NULL UNIQUE,
    size_bytes         bigint,
    modified_at        timestamptz,
    listed_fingerprint text,   -- the upload as it was last announced to Dagster
    source_fingerprint text,
    source_sha256      text,
    sampling           text,
    frames             integer,
    damaged_share      double precision,
    duration_seconds   double precision,
    info               jsonb,
    registered_at      timestamptz NOT NULL DEFAULT now(),
    decoded_at         timestamptz
);
CREATE INDEX videos_modified_at ON videos (modified_at);

-- The last failure of each stage; removed when the stage succeeds.
CREATE TABLE failures (
    video_id  integer NOT NULL REFERENCES videos ON DELETE CASCADE,
    stage     text NOT NULL,
    reason    text NOT NULL,
    failed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (video_id, stage)
);

-- What is stored of a video under a model, and of which source. ingest_id is new at each load.
CREATE TABLE ingests (
    model_id      integer NOT NULL REFERENCES models ON DELETE CASCADE,
    video_id      integer NOT NULL REFERENCES videos ON DELETE CASCADE,
    ingest_id     bigint GENERATED ALWAYS AS IDENTITY,
    source_sha256 text NOT NULL,
    sampling      text NOT NULL,
    frames        integer NOT NULL,
    moments       integer NOT NULL,
    moment_threshold double precision NOT NULL,
    finished_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (model_id, video_id)
);
CREATE INDEX ingests_video ON ingests (video_id);

CREATE TABLE generations (
    model_id      integer NOT NULL REFERENCES models ON DELETE CASCADE,
    generation    integer NOT NULL,
    kind          text NOT NULL,
    state         text NOT NULL CHECK (state IN ('building', 'live', 'failed', 'retired')),
    parameters    jsonb NOT NULL DEFAULT '{}',
    frames        bigint NOT NULL DEFAULT 0,
    rows          bigint NOT NULL DEFAULT 0,
    table_bytes   bigint NOT NULL DEFAULT 0,   -- with all its indexes
    ann_bytes     bigint NOT NULL DEFAULT 0,   -- the similarity index alone
    build_seconds double precision,
    recall_at_10  double precision,
    reason        text,
    started_at    timestamptz NOT NULL DEFAULT now(),
    published_at  timestamptz,
    PRIMARY KEY (model_id, generation)
);
CREATE UNIQUE INDEX generations_one_live ON generations (model_id) WHERE state = 'live';

-- Which load of each video a generation holds. late: changed since it was built; ingest_id is
-- null once the video is gone.
CREATE TABLE generation_videos (
    model_id   integer NOT NULL,
    generation integer NOT NULL,
    video_id   integer NOT NULL,
    ingest_id  bigint,
    frames     integer NOT NULL,
    late       boolean NOT NULL DEFAULT false,
    PRIMARY KEY (model_id, generation, video_id),
    FOREIGN KEY (model_id, generation) REFERENCES generations ON DELETE CASCADE
);
CREATE INDEX generation_videos_late ON generation_videos (model_id, generation) WHERE late;

-- Every recall check that was made, so that drift shows.
CREATE TABLE recall_checks (
    check_id     integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    model_id     integer NOT NULL REFERENCES models ON DELETE CASCADE,
    generation   integer NOT NULL,
    kind         text NOT NULL,
    purpose      text NOT NULL CHECK (purpose IN ('publish', 'drift')),
    passed       boolean NOT NULL,
    recall_at_10 double precision NOT NULL,
    report       jsonb NOT NULL,
    checked_at   timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX recall_checks_model ON recall_checks (model_id, checked_at);

-- The queries of the recall check: made once per model from a seed, then kept, so that figures of
-- different days compare.
CREATE TABLE recall_queries (
    model_id  integer NOT NULL REFERENCES models ON DELETE CASCADE,
    modality  text NOT NULL CHECK (modality IN ('picture', 'text')),
    position  integer NOT NULL,
    label     text NOT NULL,
    video_id  integer,         -- of a picture query: the frame is held out of its own answer
    frame_index integer,
    sampled_of bigint NOT NULL,  -- frames of the collection when it was drawn
    embedding halfvec NOT NULL,
    PRIMARY KEY (model_id, modality, position)
);
