"""What commands show people: tables, progress, messages on stderr.

Imports records of the rooms below, and prints.
"""
