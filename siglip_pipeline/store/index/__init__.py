"""Similarity indexes: build one beside the live one, check its recall, and publish it.

Imports `store`, `store.kinds` and `store.search`, whose queries the recall check runs.
"""
