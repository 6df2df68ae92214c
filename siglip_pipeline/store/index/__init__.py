"""Similarity indexes: building one beside the live one, the recall check, and publishing.

Imports `store`, `store.kinds` and `store.search`, whose queries the recall check asks.
"""
