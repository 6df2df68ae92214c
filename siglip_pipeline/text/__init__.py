"""Values as text: timecodes, secrets that hide themselves, and records as JSON.

Owns the one JSON form of records. Imports no other room.
"""
