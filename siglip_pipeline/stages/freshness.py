"""Find results that the present settings would not give: of another sampling or model."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from siglip_pipeline.siglip.model_options import ModelOptions
from siglip_pipeline.stages import FramesOptions
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.models import ModelStore
from siglip_pipeline.store.videos import VideoStore

if TYPE_CHECKING:
    from siglip_pipeline.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class OutOfDate:
    """Videos whose results are not what the settings would give; both sorted by path."""

    frames: tuple[str, ...]
    """Videos with frames of another sampling, or of an upload that has changed since."""
    vectors: tuple[str, ...]
    """Videos with frames, but without vectors of them under the model in the settings."""

    @property
    def videos(self) -> list[str]:
        """Return all of them, sorted by path."""
        return sorted({*self.frames, *self.vectors})


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The sampling and the model that the settings ask for."""

    recipe: str
    """The :attr:`.FramesOptions.recipe`."""
    model: ModelOptions

    @classmethod
    def from_settings(cls, settings: "Settings") -> "Wanted":
        """Return what the environment asks for."""
        return cls(
            recipe=FramesOptions.from_settings(settings).recipe,
            model=ModelOptions.from_settings(settings),
        )


def out_of_date(database: Database, wanted: Wanted) -> OutOfDate:
    """Compare what is stored with what is wanted, without loading a model.

    The model is found by the name and revision that it was registered under; of several, the
    newest counts.
    """
    videos = VideoStore(database)
    chosen = [
        row.model_id
        for row in ModelStore(database).list()
        if row.name == wanted.model.name and wanted.model.revision in (None, row.revision)
    ]
    return OutOfDate(
        frames=tuple(videos.out_of_date_frames(wanted.recipe)),
        vectors=tuple(videos.out_of_date_vectors(chosen[-1] if chosen else None)),
    )
