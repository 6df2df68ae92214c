-- Vacuum frames and moments when a twentieth of the rows are dead, not a fifth: a collection that
-- loses a tenth of its videos gets the space back. New tables are made so: frames_table.py.
-- A table that was partitioned by hand has these settings on its partitions.
DO $$
DECLARE
    leaf regclass;
BEGIN
    FOR leaf IN
        SELECT c.oid
        FROM models, unnest(ARRAY['frames_', 'moments_']) AS prefix,
             to_regclass(prefix || model_id) AS stored,
             pg_class c
        WHERE c.relkind = 'r'
          AND (c.oid = stored OR c.oid IN (SELECT relid FROM pg_partition_tree(stored)))
    LOOP
        EXECUTE format('ALTER TABLE %s SET (autovacuum_vacuum_scale_factor = 0.05)', leaf);
    END LOOP;
END
$$;
