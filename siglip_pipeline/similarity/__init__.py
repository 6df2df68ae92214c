"""Videos that resemble each other: alignment of their frames, and the decision what is a copy.

Imports `store`.
"""
