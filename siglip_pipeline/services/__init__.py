"""What `siglip-pipeline up` runs: database, code server, webserver, daemon and page.

Owns their ports and their state below SIGLIP_HOME. Imports `store`, and `defs.internals` for
Dagster's own state.
"""
