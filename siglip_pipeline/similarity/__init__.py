"""Videos that share footage.

Owns the alignment of their frames, the comparison of a collection, and the copy decision.
Imports `store` and the rooms below it; no Dagster.
"""
