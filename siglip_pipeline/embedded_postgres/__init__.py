"""The Postgres server that comes with the package: its programs, its cluster, its start and stop.

Knows nothing of what is stored in it. Imports `files`, `text`, settings and errors.
"""
