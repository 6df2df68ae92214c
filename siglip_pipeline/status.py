"""What is there, what failed, what is still to come: `siglip-pipeline status`."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why one video is not searchable."""

    video: str
    stage: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineStatus:
    """One look at the whole pipeline."""

    total: int
    indexed: int
    failed: int
    pending: int
    with_frames: int
    failures: tuple[Failure, ...]
    frames: int
    vectors: int
    model: dict[str, Any] | None
    index: dict[str, Any] | None

    def to_json(self) -> dict[str, Any]:
        """The document that ``status --json`` prints."""
        return {
            "videos": {
                "total": self.total,
                "indexed": self.indexed,
                "failed": self.failed,
                "pending": self.pending,
            },
            "failures": [
                {"video": failure.video, "stage": failure.stage, "reason": failure.reason}
                for failure in self.failures
            ],
            "frames": self.frames,
            "vectors": self.vectors,
            "model": self.model,
            "index": self.index,
        }
