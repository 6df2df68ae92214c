"""The command `siglip-pipeline`.

Owns options, the documents of ``--json``, and exit codes; nothing imports it. Imports any room.
"""
