"""HTTP: the JSON API, the media that a player needs, and the search page.

``app.create_app`` puts it together; ``serve.serve`` runs it. Nothing here writes to the database,
and no path from a client reaches the file system: only ids that the database knows do.
"""
