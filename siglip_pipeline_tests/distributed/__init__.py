"""Several hosts on one machine: processes that share Postgres, a broker and an object store."""
