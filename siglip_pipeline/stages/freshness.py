"""Find results that the present settings would not give: of another sampling or model."""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from siglip_pipeline.errors import ModelError
from siglip_pipeline.records import Upload
from siglip_pipeline.siglip.identity import model_spec
from siglip_pipeline.siglip.model_options import ModelOptions
from siglip_pipeline.stages.frames_options import FramesOptions
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.models import ModelRow, ModelStore
from siglip_pipeline.store.videos import VideoStore

if TYPE_CHECKING:
    from siglip_pipeline.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class OutOfDate:
    """Videos whose results are not what the settings would give; both sorted by path."""

    frames: tuple[str, ...]
    """Videos with frames of another sampling, or of an upload that has changed since."""
    vectors: tuple[str, ...]
    """Videos whose vectors are of another model than that in the settings, or of older frames."""

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
    model_key: str | None
    """Key of a model in a folder; None for one of the hub, and for a folder that cannot be read."""

    @classmethod
    def from_settings(cls, settings: "Settings") -> "Wanted":
        """Return what the environment asks for; reads the files of a model in a folder."""
        model = ModelOptions.from_settings(settings)
        return cls(
            recipe=FramesOptions.from_settings(settings).recipe,
            model=model,
            model_key=_key_of_folder(model),
        )


def out_of_date(database: Database, wanted: Wanted, *, listing: Iterable[Upload] = ()) -> OutOfDate:
    """Compare what is stored with what is wanted, without loading a model or asking a hub.

    Args:
        listing: uploads as they are now; those that changed are out of date, announced or not.
    """
    videos = VideoStore(database)
    chosen = _registered(ModelStore(database).list(), wanted)
    changed = changed_uploads(videos.fingerprints(), listing) if listing else ()
    return OutOfDate(
        frames=tuple(sorted({*videos.out_of_date_frames(wanted.recipe), *changed})),
        vectors=tuple(videos.out_of_date_vectors(chosen[-1] if chosen else None)),
    )


def changed_uploads(known: Mapping[str, str], listing: Iterable[Upload]) -> set[str]:
    """Return the videos of a listing whose files are not those that were worked on last.

    Args:
        known: fingerprints by path, :meth:`.VideoStore.fingerprints`.
        listing: uploads as they are now.
    """
    return {
        upload.path
        for upload in listing
        if upload.path in known and not upload.has_fingerprint(known[upload.path])
    }


def known_by_earlier_form(known: Mapping[str, str], listing: Iterable[Upload]) -> list[Upload]:
    """Return the uploads of a listing whose fingerprint is stored as earlier versions made it.

    Args:
        known: fingerprints by path, :meth:`.VideoStore.fingerprints`.
        listing: uploads as they are now.
    """
    return [
        upload
        for upload in listing
        if upload.fingerprint != known.get(upload.path) in upload.fingerprints
    ]


def _key_of_folder(options: ModelOptions) -> str | None:
    if Path(options.name).expanduser().is_dir():
        with contextlib.suppress(ModelError, OSError):
            return model_spec(options).key
    return None


def _registered(models: Sequence[ModelRow], wanted: Wanted) -> list[int]:
    """Return the ids of models that are wanted, the newest last.

    A folder is identified by its key, not its path; a model of the hub, and a folder that cannot be
    read, by their registered name and revision.
    """
    if wanted.model_key is not None:
        return [row.model_id for row in models if row.key == wanted.model_key]
    return [
        row.model_id
        for row in models
        if row.name == wanted.model.name and wanted.model.revision in (None, row.revision)
    ]
