INSERT INTO videos (path, source_sha256, sampling, frames)
VALUES ('copy.mp4', repeat('a', 64), 'fps:1 768px q90', 3);
INSERT INTO video_vectors VALUES (1, 1, 3, '[1,0,0]'), (1, 3, 3, '[1,0,0]');
INSERT INTO shared_segments VALUES (1, 1, 3, 0, 0, 3.5, 0, 3.5, 1, 1, 2, true, 1, '2026-01-05Z');
