"""Postgres with pgvector: videos, their vectors, and the indexes that search them.

Owns the schema, its migrations, and all SQL but that of `similarity`. Imports `embedded_postgres`
and `siglip` (numpy only), `hits` and the rooms below it; no Dagster.
"""
