"""The processes of `siglip-pipeline up`: database, code server, webserver, daemon and page.

Owns their start, supervision and end, their ports, and their state below SIGLIP_HOME. Imports
`definitions` and the rooms below it.
"""
