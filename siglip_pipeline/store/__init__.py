"""Postgres with pgvector: videos, their vectors, and the indexes that search them."""
