"""Search by SQL: the nearest frames and moments, within which videos, grouped into hits.

Imports `store` and `store.kinds`.
"""
