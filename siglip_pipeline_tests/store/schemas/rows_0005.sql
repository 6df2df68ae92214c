UPDATE video_vectors SET ingest_id = 1, rules = 'x', pairs = 1, length_seconds = 3.5, moments = '\x003c',
                         weights = '\x0000803f', spread = '\x00000000' WHERE video_id = 1;
INSERT INTO video_pairs VALUES (1, 1, 3, '\xe0', '\xe0', '[{"start_a": 0}]', '[]');
