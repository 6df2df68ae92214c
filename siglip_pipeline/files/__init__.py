"""Files of this machine: opened beneath a folder, private to one user, or kept short.

Imports errors alone.
"""
