"""Names of the tables that are created per model and per index generation."""

from psycopg import sql


def frames(model_id: int) -> sql.Identifier:
    """Return the table of the vectors of all frames; it has no similarity index."""
    return sql.Identifier(f"frames_{model_id:d}")


def moments(model_id: int) -> sql.Identifier:
    """Return the table of the bounds of all moments; it has no vectors."""
    return sql.Identifier(f"moments_{model_id:d}")


def index(model_id: int, generation: int) -> sql.Identifier:
    """Return the table of one index generation."""
    return sql.Identifier(f"index_{model_id:d}_g{generation:d}")


def index_name(model_id: int, generation: int) -> str:
    """Return the name of the similarity index on :func:`index`."""
    return f"index_{model_id:d}_g{generation:d}_ann"
