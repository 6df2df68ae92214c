"""What is out of date under the present settings: made by another sampling or another model."""

from dataclasses import dataclass

from siglip_pipeline.settings import Settings
from siglip_pipeline.stages import current_recipe
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.models import ModelStore
from siglip_pipeline.store.videos import VideoStore


@dataclass(frozen=True, slots=True, kw_only=True)
class OutOfDate:
    """Videos whose results are not what the settings would give; each sorted by path."""

    frames: tuple[str, ...]
    """Stored frames are of another sampling, or the upload has changed since."""
    vectors: tuple[str, ...]
    """The frames have no vectors of the model in the settings, or vectors of older frames."""

    @property
    def videos(self) -> list[str]:
        """All of them."""
        return sorted({*self.frames, *self.vectors})


def out_of_date(database: Database, settings: Settings) -> OutOfDate:
    """Compare what is stored with what the settings ask for; no model is loaded.

    The model in the settings is known by the name and revision that it was registered under; of
    several with the same, the newest counts.
    """
    videos = VideoStore(database)
    chosen = [
        row.model_id
        for row in ModelStore(database).list()
        if row.name == settings.model_name and settings.model_revision in (None, row.revision)
    ]
    return OutOfDate(
        frames=tuple(videos.out_of_date_frames(current_recipe(settings))),
        vectors=tuple(videos.out_of_date_vectors(chosen[-1] if chosen else None)),
    )
