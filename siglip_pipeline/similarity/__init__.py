"""Videos that share footage.

Owns the alignment of their frames, the comparison of a collection, and the decision what is a copy.
Imports `store` and the rooms below it; no Dagster.
"""
