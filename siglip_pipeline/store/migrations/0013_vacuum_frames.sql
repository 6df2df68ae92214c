-- Vacuum frames and moments when a twentieth of the rows are dead, not a fifth: a collection that
-- loses a tenth of its videos gets the space back. New tables are made so: frames_table.py.
DO $$
DECLARE
    model integer;
BEGIN
    FOR model IN SELECT model_id FROM models LOOP
        EXECUTE format('ALTER TABLE IF EXISTS frames_%s SET (autovacuum_vacuum_scale_factor = 0.05)', model);
        EXECUTE format('ALTER TABLE IF EXISTS moments_%s SET (autovacuum_vacuum_scale_factor = 0.05)', model);
    END LOOP;
END
$$;
