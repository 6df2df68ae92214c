INSERT INTO watches (name, query, min_probability) VALUES ('gate', 'a person', 0.5);
INSERT INTO watch_hits (watch_id, video_id, source_sha256, model_key, frame_index, time_seconds, start_seconds, end_seconds, score, probability)
SELECT watch_id, video_id, 'abc', 'm', 0, 0, 0, 1, 0.1, 0.6 FROM watches, (SELECT video_id FROM videos LIMIT 1) v;
