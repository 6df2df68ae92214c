"""The command `siglip-pipeline`: options, documents, and exit codes. Nothing imports it."""
