"""Every exception that this package raises on purpose.

::

    SiglipPipelineError
    ├── SettingsError               a setting has a value that cannot be used
    ├── UploadError                 one upload cannot be read
    │   └── UploadNotFoundError
    ├── UploadsUnavailableError *   the uploads folder or bucket cannot be reached
    │   └── UploadsUrlError         no storage is known for its URL
    ├── VideoError                  one video failed; the rest of its batch continues
    │   └── VideoInterruptedError * its storage or the machine failed: the file may be good
    ├── FrameStoreError             a stored frame file is missing, or the store refused
    │   ├── DamagedFramesError      its content differs from what was written
    │   ├── FrameStoreVersionError  it was written by a newer version of this program
    │   └── StorageFullError        there is no room for frames
    ├── ModelError                  a model cannot be used
    │   ├── ModelNotFoundError
    │   ├── UnsupportedModelError
    │   ├── CorruptWeightsError
    │   └── DeviceUnavailableError
    ├── EmbeddingError              a vector came out unusable (not finite, wrong size)
    ├── StoreError                  the vector database refused
    │   ├── DatabaseUnavailableError *
    │   ├── DatabaseFullError       the server has no room left
    │   ├── DatabaseVersionError    Postgres or pgvector is too old, or the schema too new
    │   ├── EmbeddedDatabaseError
    │   ├── VectorError             vectors that must not be stored
    │   └── SimilarityIndexError    an index could not be built or published
    │       └── IndexBusyError *    another process is building one
    ├── SearchError
    │   ├── QueryError              the query itself is wrong
    │   │   ├── PictureTooLargeError
    │   │   └── PictureTimeoutError  decoding the picture took longer than it may
    │   ├── JudgedQueriesError      a file of judged queries does not fit
    │   ├── ModelChangedError *     another model was promoted each time that it was tried
    │   ├── NothingIndexedError     there is nothing to search yet
    │   └── WatchError              a standing query cannot be added
    │       └── WatchNotFoundError
    ├── LaunchError                 a service could not be started (port taken, already running)
    └── RunFailedError              a Dagster run failed as a whole, not for single videos

``*`` is often temporary: ``retryable`` is true, and Dagster tries again.
A message names the value, what is allowed, and the remedy.
"""

import errno
from collections.abc import Iterator
from typing import ClassVar, Final

NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Error numbers of a full disk, a quota, and a limit on file size."""


class SiglipPipelineError(Exception):
    """Base of every exception raised on purpose by this package."""

    retryable: ClassVar[bool] = False
    """Whether the same call may succeed later without any change."""


class SettingsError(SiglipPipelineError, ValueError):
    """A setting has a value that cannot be used."""


class UploadError(SiglipPipelineError):
    """One upload cannot be read."""


class UploadNotFoundError(UploadError):
    """The upload is not, or no longer, below UPLOADS."""


class UploadsUnavailableError(SiglipPipelineError):
    """The uploads folder or bucket cannot be reached."""

    retryable = True


class UploadsUrlError(UploadsUnavailableError):
    """No storage is known for the URL of the uploads, or its package is not installed."""

    retryable = False


class VideoError(SiglipPipelineError):
    """One video failed.

    Attributes:
        video: path below UPLOADS, POSIX separators.
        reason: one sentence for a person, without the video's name.
    """

    def __init__(self, video: str, reason: str) -> None:
        super().__init__(f"{video}: {reason}")
        self.video = video
        self.reason = reason

    def __reduce__(self) -> tuple[type["VideoError"], tuple[str, str]]:
        """Pickle by both arguments: this error crosses process boundaries."""
        return type(self), (self.video, self.reason)


class VideoInterruptedError(VideoError):
    """Work on one video was cut short by its storage or the machine: the file may be good."""

    retryable = True


class FrameStoreError(SiglipPipelineError):
    """A stored frame file is missing or written by a newer version, or the store refused."""


class DamagedFramesError(FrameStoreError):
    """A stored frame file is not what was written: cut short, zeroed, overwritten."""


class StorageFullError(FrameStoreError):
    """There is no room for frames: a full disk, a quota, a limit of the process."""


class FrameStoreVersionError(FrameStoreError):
    """A stored frame file was written by a newer version: it must not be replaced by this one."""


class ModelError(SiglipPipelineError):
    """A model cannot be used."""


class ModelNotFoundError(ModelError):
    """Neither a folder of that name nor a reachable or cached hub repository exists."""


class UnsupportedModelError(ModelError):
    """The checkpoint is not a SigLIP or SigLIP 2 model."""


class CorruptWeightsError(ModelError):
    """The weights are truncated, damaged, or not safetensors."""


class DeviceUnavailableError(ModelError):
    """The device that was asked for by name is not there."""


class EmbeddingError(SiglipPipelineError):
    """A vector came out unusable: not finite, zero, or of the wrong size."""


class StoreError(SiglipPipelineError):
    """The vector database refused."""


class DatabaseUnavailableError(StoreError):
    """No connection to the database could be made, or it was lost."""

    retryable = True


class DatabaseFullError(StoreError):
    """The server has no room left on its disk."""


class DatabaseVersionError(StoreError):
    """Postgres or pgvector is too old, or the schema is newer than this program."""


class EmbeddedDatabaseError(StoreError):
    """The embedded Postgres server could not be started, reached or stopped."""


class VectorError(StoreError):
    """Vectors that must not be stored: NaN, infinite, or not of unit length."""


class SimilarityIndexError(StoreError):
    """An index could not be built, or did not reach the recall that publishing needs."""


class IndexBusyError(SimilarityIndexError):
    """Another process is building an index of the same model."""

    retryable = True


class SearchError(SiglipPipelineError):
    """A search could not be answered."""


class QueryError(SearchError):
    """The query itself is wrong: empty, unreadable picture, unknown video or moment."""


class PictureTooLargeError(QueryError):
    """The picture's header promises more pixels than are decoded."""


class PictureTimeoutError(QueryError):
    """Decoding the picture took longer than it may, or no decoder was free in that time."""


class JudgedQueriesError(SearchError):
    """A file of judged queries cannot be read or does not fit; names the line."""


class ModelChangedError(SearchError):
    """Another model was promoted whenever the search was tried."""

    retryable = True


class NothingIndexedError(SearchError):
    """There is nothing to search yet."""


class WatchError(SearchError):
    """A standing query cannot be added: its name is taken, or a value of it cannot be used."""


class WatchNotFoundError(WatchError):
    """There is no standing query of this name."""


class LaunchError(SiglipPipelineError):
    """A service could not be started: a port is taken, or one is already running."""


class DagsterAwayError(LaunchError):
    """No Dagster answers at its address: it may be starting again."""


class RunFailedError(SiglipPipelineError):
    """A Dagster run failed as a whole, e.g. for a missing model, not for a damaged video."""


def with_causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those that it came from, the first of all last."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
