INSERT INTO recall_truths (model_id, share, queries, video_ids, ingest_ids, distances, found_in)
SELECT model_id, 1, 'abc', '{1}', '{1}', '\x00000000', '\x01000000' FROM models LIMIT 1;
