"""Documents of commands that are also shown as tables."""

from dataclasses import dataclass

from siglip_pipeline.store.models import Coverage, ModelRow
from siglip_pipeline.store.quality_results import Promotion


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedModel:
    """A model with its coverage of the collection."""

    name: str
    revision: str | None
    key: str
    dim: int
    active: bool
    generation: int | None
    embedded: int
    missing: int
    failed: int
    vectors: int

    @classmethod
    def of(cls, row: ModelRow, coverage: Coverage) -> "ListedModel":
        """Return a model's row with its coverage."""
        return cls(
            name=row.name,
            revision=row.revision,
            key=row.key,
            dim=row.dim,
            active=row.is_active,
            generation=row.active_generation,
            embedded=coverage.embedded,
            missing=coverage.missing,
            failed=coverage.failed,
            vectors=coverage.frames,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelsDocument:
    """What ``models list --json`` prints."""

    models: tuple[ListedModel, ...]
    """Oldest first."""
    promotions: tuple[Promotion, ...]
    """Which model became the active one when; newest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseStatus:
    """What ``db status --json`` prints."""

    where: str
    embedded: bool
    folder: str | None
    """Of the embedded server's files."""
    postgres: str
    pgvector: str
    size_bytes: int
    settings: dict[str, str]
    """Values of the settings that are computed for this machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromotedModel:
    """What ``models promote --json`` prints."""

    key: str
    name: str
    active: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class DroppedModel:
    """What ``models drop --json`` prints."""

    key: str
    dropped: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class AppliedMigrations:
    """What ``db migrate --json`` prints."""

    applied: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionedFrames:
    """What ``db partition --json`` prints."""

    key: str
    """The model whose table of frames it is."""
    frames: int
    partitions: int
    videos_copied: int
    """0 if the table had partitions before."""
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StoppedDatabase:
    """What ``db stop --json`` prints."""

    stopped: bool
    """False if it did not run."""
