INSERT INTO quality_results (judged, digest, model_key, generation, purpose, report)
VALUES ('judged.jsonl', 'abc', 'm', 1, 'command', '{"tags": []}');
INSERT INTO promotions (model_key, replaced_key, overridden) VALUES ('m', NULL, 'it covers 1 of 2 videos');
