"""Text: times as people read them, values that hide their secrets, records as JSON.

Imports errors alone.
"""
