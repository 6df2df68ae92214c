"""Nearest frames and moments by SQL: which index answers, within which videos, and what is one hit.

Imports `store` and `store.kinds`.
"""
