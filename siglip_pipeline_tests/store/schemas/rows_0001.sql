-- Rows as the program of schema version 1 wrote them: two videos, two models, one index.
INSERT INTO models (model_key, name, revision, dim, preprocess, logit_scale, logit_bias,
                    moment_threshold, is_active, active_generation)
VALUES ('old-key', 'made/old', NULL, 3, '{"version": 1}', 4.6, -16, 0.9, true, 1),
       ('new-key', 'made/new', 'abc', 3, '{"version": 1}', 4.6, -16, 0.95, false, NULL);
INSERT INTO videos (path, size_bytes, modified_at, listed_fingerprint, source_fingerprint,
                    source_sha256, sampling, frames, damaged_share, duration_seconds, info, decoded_at)
VALUES ('a/ü ''quoted''.mp4', 10, '2026-01-02Z', '10-1', '10-1', repeat('a', 64),
        'fps:1 768px q90', 3, 0.25, 3.5, '{"codec": "h264", "time_base": "1/25"}', '2026-01-03Z'),
       ('broken.mp4', 4, NULL, '4-', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO failures VALUES (2, 'video_frames', 'it is no video', '2026-01-03Z');
CREATE TABLE frames_1 (video_id integer NOT NULL, frame_index integer NOT NULL,
    time_seconds double precision NOT NULL, embedding halfvec(3) STORAGE PLAIN NOT NULL,
    PRIMARY KEY (video_id, frame_index));
CREATE TABLE moments_1 (video_id integer NOT NULL, moment integer NOT NULL,
    first_frame integer NOT NULL, last_frame integer NOT NULL, start_seconds double precision NOT NULL,
    end_seconds double precision NOT NULL, PRIMARY KEY (video_id, moment));
CREATE TABLE index_1_g1 (video_id integer NOT NULL, moment integer NOT NULL,
    first_frame integer NOT NULL, last_frame integer NOT NULL, start_seconds double precision NOT NULL,
    end_seconds double precision NOT NULL, embedding halfvec(3) STORAGE PLAIN NOT NULL,
    PRIMARY KEY (video_id, moment));
INSERT INTO frames_1 VALUES (1, 0, 0, '[1,0,0]'), (1, 25, 1, '[1,0,0]'), (1, 50, 2, '[0,1,0]');
INSERT INTO moments_1 VALUES (1, 0, 0, 25, 0, 2), (1, 1, 50, 50, 2, 3.5);
INSERT INTO index_1_g1 VALUES (1, 0, 0, 25, 0, 2, '[1,0,0]'), (1, 1, 50, 50, 2, 3.5, '[0,1,0]');
INSERT INTO ingests (model_id, video_id, source_sha256, sampling, frames, moments, moment_threshold)
VALUES (1, 1, repeat('a', 64), 'fps:1 768px q90', 3, 2, 0.9);
INSERT INTO generations (model_id, generation, kind, state, frames, rows, recall_at_10, published_at)
VALUES (1, 1, 'moments', 'live', 3, 2, 1.0, '2026-01-04Z');
INSERT INTO generation_videos (model_id, generation, video_id, ingest_id, frames) VALUES (1, 1, 1, 1, 3);
INSERT INTO recall_checks (model_id, generation, kind, purpose, passed, recall_at_10, report)
VALUES (1, 1, 'moments', 'publish', true, 1.0, '{}');
INSERT INTO recall_queries VALUES (1, 'text', 0, 'a red circle', NULL, NULL, 3, '[1,0,0]');
