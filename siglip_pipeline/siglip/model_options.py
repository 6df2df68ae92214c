"""Options: the model and its device. Imports no torch, as `status` reads them too."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from siglip_pipeline.settings import Settings

DType = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """A SigLIP or SigLIP 2 checkpoint, and the device that it is loaded on."""

    name: str
    """Hub id or local folder."""
    revision: str | None = None
    """Pinned hub revision: branch, tag or commit."""
    max_num_patches: int | None = None
    """Patches per image of a NaFlex checkpoint; None for the checkpoint's own number."""
    device: str = "auto"
    """``auto``, ``cuda``, ``cuda:N``, ``mps`` or ``cpu``."""
    dtype: DType = "auto"
    fingerprints: Path | None = None
    """A JSON file that caches the hashes of weight files; None to compute them each time."""
    card_leases: Path | None = None
    """The folder in which processes agree on who uses which card; None to use the first."""

    @classmethod
    def from_settings(cls, settings: "Settings") -> "ModelOptions":
        """Return the options that the environment asks for."""
        return cls(
            name=settings.model_name,
            revision=settings.model_revision,
            max_num_patches=settings.max_num_patches,
            device=settings.device,
            dtype=settings.dtype,
            fingerprints=settings.home / "cache" / "fingerprints.json",
            card_leases=settings.cache.expanduser() / "cards",
        )
