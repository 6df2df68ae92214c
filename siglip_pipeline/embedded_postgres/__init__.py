"""The Postgres server that comes with the package: its programs, its cluster, its start and stop.

Owns the server's data folder and processes, and knows nothing of what is stored in it. Imports
`files`, `cpu` and `errors`.
"""
