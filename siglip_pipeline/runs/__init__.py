"""Work that is asked of Dagster from outside of it: in this process, or through its webserver.

Imports `defs`, `definitions` and `services`.
"""
