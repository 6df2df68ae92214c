"""Files of a model from the Hugging Face hub, and what to do when they do not come."""

import errno
from pathlib import Path

from siglip_pipeline.errors import ModelError, ModelNotFoundError

EXAMPLE = "google/siglip2-base-patch16-256"
"""A hub id that works, for messages."""

# No *.bin, *.pt or *.py: what could run code is not even downloaded.
_DOWNLOADED = ("*.json", "*.safetensors", "spiece.model", "tokenizer.model")

_CANNOT_WRITE = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
)


def download(name: str, revision: str | None) -> Path:
    """The folder in the hub's cache that holds a model, downloaded if it is not there yet.

    Args:
        name: hub id, ``owner/name``.
        revision: branch, tag or commit; None for the main branch.

    Raises:
        ModelNotFoundError: no such model or revision, no right to it, or neither in the cache nor
            within reach.
        ModelError: the hub failed, or the cache cannot be written.
    """
    import huggingface_hub  # half a second that a local folder need not pay
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
            f"{at} asks for its terms to be accepted: do so on its page and log in with `hf auth "
            "login`"
        ) from error
    except hub.RepositoryNotFoundError as error:
        raise ModelNotFoundError(
            f"{at} does not exist on the hub, or is private: check SIGLIP_MODEL_NAME, or log in "
            "with `hf auth login`"
        ) from error
    # Its transport has exceptions of its own kind, and what they are changes between versions.
    except Exception as error:
        answer = error if isinstance(error, hub.HfHubHTTPError) else error.__cause__
        if isinstance(answer, hub.HfHubHTTPError):
            status = answer.response.status_code
            remedy = "try again later"
            if status in (401, 403):
                remedy = "log in again with `hf auth login`, or correct HF_TOKEN"
            raise ModelError(f"{at}: the hub answered with status {status}: {remedy}") from error
        if isinstance(error, OSError) and error.errno in _CANNOT_WRITE:
            raise ModelError(
                f"{at} cannot be written to the hub's cache ({error}): make room there, or set "
                "HF_HOME to another folder"
            ) from error
        raise ModelNotFoundError(
            f"{at} is not in the local cache and the hub cannot be reached (or HF_HUB_OFFLINE is "
            f"set). On a machine with network run `hf download {name}`, then copy its folder here "
            "and set SIGLIP_MODEL_NAME to it"
        ) from error
