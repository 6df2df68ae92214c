"""How many partitions one set may hold, and what to do before it is full."""

_WARN_FROM = 0.9


def partition_warning(partitions: int, *, part: str | None, limit: int) -> str | None:
    """What to tell people about a set of partitions that is nearly full; None while it is not."""
    if partitions < _WARN_FROM * limit:
        return None
    place = f"below {part}/" if part else "in one set of partitions"
    return (
        f"{partitions:,} videos {place}, where Dagster advises at most "
        f"{limit:,} (SIGLIP_PARTITION_LIMIT): put further uploads into another "
        "folder, and start a code location for it that has SIGLIP_PART set; docs/operations.md "
        "shows how"
    )
