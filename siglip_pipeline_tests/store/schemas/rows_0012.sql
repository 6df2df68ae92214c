INSERT INTO frame_biases (model_id, video_id, ingest_id, bank, frame_index, bias)
SELECT model_id, video_id, 1, 'abc', '{0, 25}', '{0.1, 0.2}' FROM (SELECT model_id FROM models LIMIT 1) m, (SELECT video_id FROM videos LIMIT 1) v;
