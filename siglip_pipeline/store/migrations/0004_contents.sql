-- Equal content is found by its hash, under each model.
CREATE INDEX ingests_content ON ingests (model_id, source_sha256);
CREATE INDEX videos_size ON videos (size_bytes);
