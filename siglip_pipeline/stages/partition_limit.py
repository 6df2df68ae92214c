"""Warn before a set of partitions exceeds what Dagster advises."""

_WARN_FROM = 0.9


def partition_warning(partitions: int, *, shard: str | None, limit: int) -> str | None:
    """Return a warning for a set of partitions that is nearly full; None while it is not.

    Args:
        partitions: how many there are.
        shard: the folder below UPLOADS that they are of; None for the whole collection.
        limit: how many Dagster advises at most.
    """
    if partitions < _WARN_FROM * limit:
        return None
    place = f"below {shard}/" if shard else "in one set of partitions"
    return (
        f"{partitions:,} videos {place}, where Dagster advises at most "
        f"{limit:,} (SIGLIP_PARTITION_LIMIT): put further uploads into another "
        "folder, and start a code location for it that has SIGLIP_PART set; docs/operations.md "
        "shows how"
    )
