"""Runs that are asked of Dagster from outside it: in this process, or through its webserver.

Owns the launch of runs and backfills and the wait for their end. Imports `services` and the rooms
below it.
"""
