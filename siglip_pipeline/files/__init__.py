"""Files of this machine: opened beneath a folder, private to one user, or rotated.

Owns how files are opened safely, not what is in them. Imports `errors`.
"""
