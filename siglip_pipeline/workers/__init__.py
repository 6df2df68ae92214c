"""Celery workers: they take steps of runs from a queue, for every shard of the collection.

Imports `defs` and `services`.
"""
