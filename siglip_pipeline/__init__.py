"""Search large collections of video by content: a Dagster pipeline over SigLIP 2 and pgvector."""

__version__ = "0.1.0"
