"""Names of the tables that are made per model and per index generation."""

from psycopg import sql


def frames(model_id: int) -> sql.Identifier:
    """Vectors of all frames under a model; never carries a similarity index."""
    return sql.Identifier(f"frames_{model_id:d}")


def moments(model_id: int) -> sql.Identifier:
    """Where the moments of each video begin and end under a model; no vectors."""
    return sql.Identifier(f"moments_{model_id:d}")


def index(model_id: int, generation: int) -> sql.Identifier:
    """What one index generation searches."""
    return sql.Identifier(f"index_{model_id:d}_g{generation:d}")


def index_name(model_id: int, generation: int) -> str:
    """Name of the similarity index on :func:`index`."""
    return f"index_{model_id:d}_g{generation:d}_ann"
