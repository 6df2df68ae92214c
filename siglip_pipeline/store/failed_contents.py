"""Content that could not be decoded: it is not decoded again when only its fingerprint changes.

A failure holds under its conditions, a text of whatever can change the outcome. Under others the
content is decoded again.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from siglip_pipeline.records import Stage, Upload
from siglip_pipeline.store.database import Database

_NOTE = """
UPDATE failures f SET source_fingerprint = %s, source_sha256 = %s, conditions = %s
FROM videos v WHERE v.path = %s AND f.video_id = v.video_id AND f.stage = %s
"""

_FAILED = """
SELECT v.path, f.source_fingerprint, f.source_sha256, f.reason
FROM failures f JOIN videos v USING (video_id)
WHERE v.path = ANY(%s) AND f.stage = %s AND f.conditions = %s
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedContent:
    """The content of an upload that failed, and why."""

    sha256: str
    reason: str


class FailedContents:
    """Failures of the first stage, by the content of the upload."""

    def __init__(self, database: Database, *, conditions: str) -> None:
        self._database = database
        self._conditions = conditions

    def note(self, upload: Upload, sha256: str) -> None:
        """Record the content of an upload whose failure is recorded."""
        values = [upload.fingerprint, sha256, self._conditions, upload.path, Stage.FRAMES]
        with self._database.connection() as connection:
            connection.execute(_NOTE, values)

    def of_changed(self, uploads: Sequence[Upload]) -> dict[str, FailedContent]:
        """Return by path what failed of those uploads whose fingerprint has changed since."""
        by_path = {upload.path: upload for upload in uploads}
        with self._database.connection() as connection:
            rows = connection.execute(_FAILED, [[*by_path], Stage.FRAMES, self._conditions])
            return {
                path: FailedContent(sha256=sha256, reason=reason)
                for path, fingerprint, sha256, reason in rows
                if not by_path[path].has_fingerprint(fingerprint)
            }
