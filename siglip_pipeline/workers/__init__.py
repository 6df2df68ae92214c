"""Celery workers: they take steps of runs from a queue, for every shard of the collection.

Owns the worker's command, its leases on messages, and the choice of a step's shard. Imports
`services` and the rooms below it.
"""
