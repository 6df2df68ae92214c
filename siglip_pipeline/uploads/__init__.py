"""Uploads: which files arrived, what they are called, and how they are opened and copied in.

Owns the folder or bucket that videos arrive in. Nothing here decodes a file. Imports `files`,
`text`, records and errors.
"""
