"""Names of the tables that are created per model and per index generation."""

from psycopg import sql


def frames(model_id: int) -> sql.Identifier:
    """Return the table of the vectors of all frames; it has no similarity index."""
    return sql.Identifier(f"frames_{model_id:d}")


def frames_part(model_id: int, part: int) -> sql.Identifier:
    """Return one partition of :func:`frames`, where that is partitioned."""
    return sql.Identifier(f"frames_{model_id:d}_p{part:02d}")


def frames_copy(model_id: int) -> sql.Identifier:
    """Return the partitioned copy of :func:`frames`, which takes its name when it is complete."""
    return sql.Identifier(f"frames_{model_id:d}_copy")


def frames_copied(model_id: int) -> sql.Identifier:
    """Return the table that tells which load of each video is in :func:`frames_copy`."""
    return sql.Identifier(f"frames_{model_id:d}_copied")


def moments(model_id: int) -> sql.Identifier:
    """Return the table of the bounds of all moments; it has no vectors."""
    return sql.Identifier(f"moments_{model_id:d}")


def index(model_id: int, generation: int) -> sql.Identifier:
    """Return the table of one index generation."""
    return sql.Identifier(f"index_{model_id:d}_g{generation:d}")


def clusters(model_id: int, generation: int) -> sql.Identifier:
    """Return the table of the centres of clusters of :func:`index`; there may be none."""
    return sql.Identifier(f"clusters_{model_id:d}_g{generation:d}")


def index_name(model_id: int, generation: int) -> str:
    """Return the name of the similarity index on :func:`index`."""
    return f"index_{model_id:d}_g{generation:d}_ann"
