"""How well search finds: judged queries, metrics, comparisons, and the gate of promotions.

Owns the form of judged queries and of published annotations, what is measured of them, and when a
model is worse than another. Imports `search`, `store` and the rooms below them.
"""
