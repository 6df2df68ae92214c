"""What is out of date under the present settings: made by another sampling or another model."""

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
    """Videos whose results are not what the settings would give; each sorted by path."""

    frames: tuple[str, ...]
    """Stored frames are of another sampling, or the upload has changed since."""
    vectors: tuple[str, ...]
    """The frames have no vectors of the model in the settings, or vectors of older frames."""

    @property
    def videos(self) -> list[str]:
        """All of them."""
        return sorted({*self.frames, *self.vectors})


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the results of a video should be made by."""

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
    """Compare what is stored with what is asked for; no model is loaded.

    The model is known by the name and revision that it was registered under; of
    several with the same, the newest counts.
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
