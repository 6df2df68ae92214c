-- Every evaluation of judged queries, so that changes of quality show; models may be dropped.
CREATE TABLE quality_results (
    result_id    integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    judged       text NOT NULL,      -- name of the file
    digest       text NOT NULL,      -- of its queries and judgements: equal ones compare
    model_key    text NOT NULL,
    generation   integer,
    purpose      text NOT NULL CHECK (purpose IN ('command', 'check', 'promotion')),
    report       jsonb NOT NULL,
    evaluated_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX quality_results_judged ON quality_results (judged, purpose, result_id);

-- Which model became the active one when, and what --force overrode.
CREATE TABLE promotions (
    promotion_id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    model_key    text NOT NULL,
    replaced_key text,
    overridden   text,
    promoted_at  timestamptz NOT NULL DEFAULT now()
);
