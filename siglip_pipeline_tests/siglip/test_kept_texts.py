"""Vectors of texts that every home of a user shares."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from siglip_pipeline.defs.resources import SiglipResource
from siglip_pipeline.demo.run import MODEL_FOLDER
from siglip_pipeline.records import FloatArray
from siglip_pipeline.siglip import model as loader
from siglip_pipeline.siglip.kept_texts import kept_text_vectors
from siglip_pipeline_tests.store import made

TEXTS = ["a cat", "two boats at night"]


class _Tower:
    """Counts how often texts are embedded."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, texts: Sequence[str]) -> FloatArray:
        self.calls += 1
        vectors_ND = np.eye(len(texts), made.spec().dim, dtype=np.float32)
        return vectors_ND


def test_texts_are_embedded_once_for_a_model(tmp_path: Path) -> None:
    tower, spec = _Tower(), made.spec()
    first = kept_text_vectors(TEXTS, spec, folder=tmp_path, embed=tower)
    np.testing.assert_array_equal(
        kept_text_vectors(TEXTS, spec, folder=tmp_path, embed=tower), first
    )
    assert tower.calls == 1
    kept_text_vectors(TEXTS[::-1], spec, folder=tmp_path, embed=tower)
    kept_text_vectors(TEXTS, made.spec(key="other"), folder=tmp_path, embed=tower)
    assert tower.calls == 3


@pytest.mark.parametrize("damage", ["cut", "pickle", "nan", "folder"])
def test_what_is_kept_and_cannot_be_used_is_made_anew(tmp_path: Path, damage: str) -> None:
    tower, spec = _Tower(), made.spec()
    kept_text_vectors(TEXTS, spec, folder=tmp_path, embed=tower)
    [file] = (tmp_path / "texts").iterdir()
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-3])
    elif damage == "pickle":
        np.save(file, np.array([object()]), allow_pickle=True)
    elif damage == "nan":
        np.save(file, np.full((len(TEXTS), spec.dim), np.nan, np.float32))
    else:
        file.unlink()
        file.mkdir()
    vectors_ND = kept_text_vectors(TEXTS, spec, folder=tmp_path, embed=tower)
    assert np.isfinite(vectors_ND).all()
    assert tower.calls == 2


def test_a_new_home_loads_no_text_tower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SIGLIP_MODEL_NAME", str(MODEL_FOLDER))
    monkeypatch.setenv("SIGLIP_HOME", str(tmp_path / "one"))
    first = SiglipResource().embed_texts(TEXTS)
    monkeypatch.setenv("SIGLIP_HOME", str(tmp_path / "two"))
    monkeypatch.setattr(loader, "get_model", None)
    np.testing.assert_array_equal(SiglipResource().embed_texts(TEXTS), first)
