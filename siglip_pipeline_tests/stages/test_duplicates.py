"""Which uploads are hashed, which are decoded, and which use frames that exist or will."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from siglip_pipeline.records import Stage, Upload
from siglip_pipeline.stages import duplicates
from siglip_pipeline.stages.duplicates import FramesPlan, plan_frames
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.failed_contents import FailedContents
from siglip_pipeline.store.videos import VideoStore
from siglip_pipeline.uploads.upload_store import UploadStore
from siglip_pipeline.video.decode_options import DecodeOptions
from siglip_pipeline.video.hashes import sha256_many
from siglip_pipeline_tests.store import made


@dataclass
class Planner:
    """Plans what is in a folder; the children that hash are real."""

    folder: Path
    database: Database
    hashed: list[list[str]] = field(default_factory=list)
    options: DecodeOptions = field(default_factory=DecodeOptions)
    workers: int = 2
    children: list[int] = field(default_factory=list)

    @property
    def uploads(self) -> UploadStore:
        return UploadStore(str(self.folder), settle_seconds=0)

    @property
    def failed_contents(self) -> FailedContents:
        return FailedContents(self.database, conditions="today's")

    def write(self, **contents: bytes) -> None:
        for name, content in contents.items():
            (self.folder / f"{name}.mp4").write_bytes(content)

    def stored(self, name: str, content: bytes, upload: Upload | None = None) -> None:
        """Note a video as decoded, whose file is ``upload``, or is gone."""
        gone = Upload(path=f"{name}.mp4", size_bytes=len(content), modified_at=1e9)
        made.record(
            self.database,
            f"{name}.mp4",
            upload=upload or gone,
            sha256=sha256(content).hexdigest(),
        )

    def plans(self) -> Iterator[FramesPlan]:
        return plan_frames(
            list(self.uploads.list()),
            uploads=self.uploads,
            records=VideoStore(self.database),
            failed_contents=self.failed_contents,
            sampling="fps:1",
            options=self.options,
            workers=self.workers,
        )


@pytest.fixture
def planner(tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch) -> Planner:
    planner = Planner(tmp_path, database)

    def noted(batch: Iterable[Upload], *arguments: Any, **options: Any) -> Any:
        planner.hashed.append(_names(batch := list(batch)))
        planner.children.append(options["workers"])
        return sha256_many(batch, *arguments, **options)

    monkeypatch.setattr(duplicates, "sha256_many", noted)
    return planner


def _names(uploads: Iterable[Upload]) -> list[str]:
    return [upload.path.removesuffix(".mp4") for upload in uploads]


def _shown(plan: FramesPlan) -> dict[str, Any]:
    """What a plan says, by the names of the uploads, without what it does not say."""
    shown: dict[str, Any] = {
        "decode": _names(plan.decode),
        "of": {
            name: _names(others)
            for name in _names(plan.decode)
            if (others := plan.duplicates.of(f"{name}.mp4"))
        },
        "stored": {_names([upload])[0]: row.video for upload, row in plan.stored},
        "failed": {_names([upload])[0]: error.reason for upload, error in plan.failed},
        "failed before": {_names([upload])[0]: f.reason for upload, f in plan.failed_before},
    }
    return {name: said for name, said in shown.items() if said}


def test_only_what_shares_its_size_is_hashed_and_large_uploads_come_last(
    planner: Planner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicates, "SMALL_BYTES", 100)
    planner.write(a=b"1" * 300, b=b"2" * 300, c=b"1" * 101, d=b"1" * 101, e=b"1" * 5, f=b"1" * 100)
    planner.write(g=b"2" * 100, h=b"1" * 100, i=b"1" * 7, j=b"1" * 7, k=b"1" * 7, l=b"1" * 400)
    plans = planner.plans()
    assert _shown(next(plans)) == {"decode": ["e", "l"]}
    assert planner.hashed == [], "what has a size of its own waits for no hash"
    assert _shown(next(plans)) == {"decode": ["f", "g", "i"], "of": {"f": ["h"], "i": ["j", "k"]}}
    assert planner.hashed == [["f", "g", "h", "i", "j", "k"]]
    assert [_shown(plan) for plan in plans] == [
        {"decode": ["c"], "of": {"c": ["d"]}},
        {"decode": ["a", "b"]},
    ]
    assert planner.hashed[1:] == [["c", "d"], ["a", "b"]]


def test_uploads_of_up_to_a_gibibyte_are_hashed_in_one_batch(planner: Planner) -> None:
    planner.options = DecodeOptions(max_upload_gib=0)  # none is read, but for its size
    for name, size_bytes in {"small": 5, "full": 2**30, "large": 2**30 + 1}.items():
        for copy in "ab":
            with (planner.folder / f"{name}_{copy}.mp4").open("wb") as file:
                file.truncate(size_bytes)
    assert len(list(planner.plans())) == 2
    assert planner.hashed == [["full_a", "full_b", "small_a", "small_b"], ["large_a", "large_b"]]


@pytest.mark.parametrize(("workers", "children"), [(2, 2), (1, 1), (0, 3)])
def test_as_many_are_hashed_at_once_as_was_said_or_as_there_are_cores(
    planner: Planner, workers: int, children: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicates, "available_cores", lambda: 3)
    planner.write(a=b"1", b=b"1")
    planner.workers = workers
    assert len(list(planner.plans())) == 1
    assert planner.children == [children]


def test_nothing_to_decode_is_no_plan(planner: Planner) -> None:
    assert list(planner.plans()) == []
    planner.write(a=b"1", b=b"1")
    assert [_shown(plan) for plan in planner.plans()] == [{"decode": ["a"], "of": {"a": ["b"]}}]


def test_frames_of_equal_content_are_used_again(planner: Planner) -> None:
    planner.stored("gone", b"moved")
    planner.stored("other", b"other content, long")
    planner.write(a=b"moved", b=b"content that's long", c=b"renamed, and copied", d=b"moved")
    planner.write(touched=b"as it was, only touched")
    planner.stored("touched", b"as it was, only touched")
    assert [_shown(plan) for plan in planner.plans()] == [
        {
            "decode": ["b", "c"],
            "stored": {"a": "gone.mp4", "d": "gone.mp4", "touched": "touched.mp4"},
        }
    ]
    assert planner.hashed == [["a", "b", "c", "d", "touched"]]


def test_frames_of_an_unchanged_file_that_waits_are_not_used(planner: Planner) -> None:
    """It waits because they are gone or damaged; its double gets none of them either."""
    planner.write(alone=b"alone", first=b"doubled", second=b"doubled")
    for name in ("alone", "first"):
        upload = planner.uploads.get(f"{name}.mp4")
        planner.stored(name, (planner.folder / upload.path).read_bytes(), upload)
    plans = [_shown(plan) for plan in planner.plans()]
    assert plans[0] == {"decode": ["alone"]}
    assert plans[1] == {"decode": ["first"], "stored": {"second": "first.mp4"}}
    assert planner.hashed == [["first", "second"]]


def test_another_name_of_the_same_file_uses_its_frames(planner: Planner) -> None:
    """Hard links have the fingerprint of the file whose own frames cannot be used."""
    planner.write(m=b"linked")
    for name in "az":
        (planner.folder / f"{name}.mp4").hardlink_to(planner.folder / "m.mp4")
    planner.stored("m", b"linked", planner.uploads.get("m.mp4"))
    assert [_shown(plan) for plan in planner.plans()] == [
        {"decode": ["m"], "stored": {"a": "m.mp4", "z": "m.mp4"}}
    ]


def test_what_failed_before_fails_again_only_with_the_same_content(planner: Planner) -> None:
    planner.write(touched=b"no film", fresh=b"of its own size")
    planner.write(changed=b"no film, again", altered=b"no film, again")
    for upload in planner.uploads.list():
        VideoStore(planner.database).record_failure(
            upload.path, stage=Stage.FRAMES, reason=f"{upload.path} is bad", upload=upload
        )
        content = (planner.folder / upload.path).read_bytes()
        planner.failed_contents.note(upload, sha256(content).hexdigest())
    # The hash of one is below that of what failed, the other's is above.
    planner.write(touched=b"no film", changed=b"no film, later", altered=b"no film, other")
    assert [_shown(plan) for plan in planner.plans()] == [
        {"decode": ["fresh"]},  # asked for, though it has not changed
        {"decode": ["altered", "changed"], "failed before": {"touched": "touched.mp4 is bad"}},
    ]
    assert planner.hashed == [["altered", "changed", "touched"]]


def test_what_cannot_be_hashed_is_decoded_for_its_reason(planner: Planner) -> None:
    planner.write(a=b"1" * 2000, b=b"1" * 2000)
    planner.options = DecodeOptions(max_upload_gib=1e-6)
    assert [_shown(plan) for plan in planner.plans()] == [{"decode": ["a", "b"]}]
