"""Download the files of a model from the Hugging Face hub; explain failures."""

import contextlib
import errno
from pathlib import Path

from siglip_pipeline.errors import ModelError, ModelNotFoundError

EXAMPLE = "google/siglip2-base-patch16-256"
"""A valid hub id, for messages."""

# No *.bin, *.pt or *.py: files that could run code are not downloaded.
_DOWNLOADED = ("*.json", "*.safetensors", "spiece.model", "tokenizer.model")

_CANNOT_WRITE = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
)


def cached_commit(name: str, revision: str | None) -> str | None:
    """Return the commit that a model has in the local cache; None if it is not there."""
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError

    with contextlib.suppress(HFValidationError):
        file = huggingface_hub.try_to_load_from_cache(name, "config.json", revision=revision)
        if isinstance(file, str):
            return Path(file).parent.name
    return None


def download(name: str, revision: str | None) -> Path:
    """Return the folder of a model in the hub's cache; download it if missing.

    Args:
        name: hub id, ``owner/name``.
        revision: branch, tag or commit; None for the main branch.

    Raises:
        ModelNotFoundError: no such model or revision, no permission, or not in the cache and the
            hub cannot be reached.
        ModelError: the hub failed, or the cache cannot be written.
    """
    import huggingface_hub  # takes half a second, which a local folder does not need
    from huggingface_hub import errors as hub

    at = f"{name!r}" + (f" at revision {revision!r}" if revision else "")
    try:
        return Path(
            huggingface_hub.snapshot_download(
                name, revision=revision, allow_patterns=list(_DOWNLOADED)
            )
        )
    except hub.HFValidationError as error:
        raise ModelNotFoundError(
            f"SIGLIP_MODEL_NAME={name!r} is neither a folder that exists nor a hub id of the form "
            f"'owner/name' such as {EXAMPLE!r}"
        ) from error
    except hub.RevisionNotFoundError as error:
        raise ModelNotFoundError(
            f"SIGLIP_MODEL_REVISION={revision!r}: {name!r} has no such branch, tag or commit"
        ) from error
    except hub.GatedRepoError as error:
        raise ModelNotFoundError(
            f"{at} requires accepting its terms: accept them on its page and log in with `hf auth "
            "login`"
        ) from error
    except hub.RepositoryNotFoundError as error:
        raise ModelNotFoundError(
            f"{at} does not exist on the hub, or is private: check SIGLIP_MODEL_NAME, or log in "
            "with `hf auth login`"
        ) from error
    # The exceptions of its transport vary between versions.
    except Exception as error:
        failure = _failure(at, name, error)
        if isinstance(failure, ModelNotFoundError) and (folder := _cached(name, revision)):
            return folder
        raise failure from error


def _cached(name: str, revision: str | None) -> Path | None:
    """Return the folder of a model in the cache; None if it is not complete there.

    Before version 2 the hub's client asks the network for a pinned commit that is in the cache.
    """
    import huggingface_hub

    with contextlib.suppress(Exception):  # what it raises varies between versions
        return Path(
            huggingface_hub.snapshot_download(
                name, revision=revision, allow_patterns=list(_DOWNLOADED), local_files_only=True
            )
        )
    return None


def _failure(at: str, name: str, error: Exception) -> ModelError:
    """Return the error for a failed transfer, with its remedy."""
    from huggingface_hub import errors as hub

    answer = error if isinstance(error, hub.HfHubHTTPError) else error.__cause__
    if isinstance(answer, hub.HfHubHTTPError):
        status = answer.response.status_code
        remedy = "try again later"
        if status in (401, 403):
            remedy = "log in again with `hf auth login`, or correct HF_TOKEN"
        return ModelError(f"{at}: the hub answered with status {status}: {remedy}")
    if isinstance(error, OSError) and error.errno in _CANNOT_WRITE:
        return ModelError(
            f"{at} cannot be written to the hub's cache ({error}): make room there, or set HF_HOME "
            "to another folder"
        )
    return ModelNotFoundError(
        f"{at} is not in the local cache and the hub cannot be reached (or HF_HUB_OFFLINE is set). "
        f"On a machine with network run `hf download {name}`, then copy its folder here and set "
        "SIGLIP_MODEL_NAME to it"
    )
