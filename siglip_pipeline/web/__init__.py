"""HTTP: the JSON API, the media of a player, the search page, and the guard of Dagster's UI.

Owns routes, limits, keys and templates: ``app.create_app`` assembles them, ``serve.serve`` runs
them. Nothing here writes to the database, and no path from a client reaches the file system: only
ids that the database knows do. Imports `services` and the rooms below it.
"""
