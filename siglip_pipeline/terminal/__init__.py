"""What commands show to people: tables, progress, and messages on stderr.

Owns the Rich consoles and what is printed on them. Imports the records of the rooms below.
"""
