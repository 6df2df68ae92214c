-- The texts that people searched for, with SIGLIP_QUERY_LOG=on: nothing of who or from where.
CREATE TABLE query_log (
    query_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    text     text NOT NULL,
    asked_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX query_log_asked_at ON query_log (asked_at);
