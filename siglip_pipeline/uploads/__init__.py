"""The folder or bucket that videos arrive in.

Owns listing, names, fingerprints, safe opening and ingest of uploads. Nothing here decodes a file.
Imports `files`, `text`, `records` and `errors`.
"""
