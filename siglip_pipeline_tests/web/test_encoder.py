"""Texts that arrive together share a forward pass; the model itself is the demo's."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from siglip_pipeline.errors import ModelError
from siglip_pipeline.records import FloatArray
from siglip_pipeline.siglip.model_options import ModelOptions
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.models import ModelRow, ModelStore
from siglip_pipeline.web.encoder import MAX_BATCH, BatchingEmbedder
from siglip_pipeline_tests.web.conftest import Collection, wait_until

pytestmark = pytest.mark.timeout(600)


class Held(BatchingEmbedder):
    """The real embedder, whose passes wait until they are let go; notes what each pass holds."""

    def __init__(self, collection: Collection) -> None:
        super().__init__(ModelOptions.from_settings(collection.settings))
        self.go = threading.Event()
        self.passes: list[list[str]] = []

    def forward(self, model: ModelRow, texts: Sequence[str]) -> FloatArray:
        self.passes.append(list(texts))
        assert self.go.wait(60)
        if "fails" in texts:
            raise ModelError("no such model")
        return super().forward(model, texts)


@pytest.fixture
def held(collection: Collection) -> Held:
    return Held(collection)


@pytest.fixture(scope="module")
def model(collection: Collection) -> ModelRow:
    with Database(collection.settings.database_url or "") as database:
        row = ModelStore(database).active()
    assert row is not None
    return row


def test_what_arrives_during_a_pass_goes_into_the_next_one(held: Held, model: ModelRow) -> None:
    texts = [f"a red circle {number}" for number in range(8)]
    with ThreadPoolExecutor(20) as threads:
        first = threads.submit(held.texts, model, ["a blue star"])
        wait_until(lambda: held.passes)
        # Each text twice: the same words are embedded once.
        others = [threads.submit(held.texts, model, [text]) for text in texts * 2]
        wait_until(lambda: held.waiting() == len(texts))
        held.go.set()
        vectors = [other.result(60)[0] for other in others]
        assert first.result(60).shape == (1, model.dim)
    assert held.passes[0] == ["a blue star"]
    assert len(held.passes) == 2
    assert sorted(held.passes[1]) == texts
    alone_ND = BatchingEmbedder.forward(held, model, texts)
    np.testing.assert_allclose(vectors, [*alone_ND, *alone_ND], atol=1e-5)


def test_what_was_asked_before_needs_no_pass(held: Held, model: ModelRow) -> None:
    held.go.set()
    first = held.texts(model, ["a star", "a heart"])
    again = held.texts(model, ["A heart", "a star"])
    assert held.passes == [["a star", "a heart"]]
    np.testing.assert_array_equal(first, again[::-1])


def test_a_failure_reaches_everyone_who_waited_and_is_not_remembered(
    held: Held, model: ModelRow
) -> None:
    with ThreadPoolExecutor(4) as threads:
        first = threads.submit(held.texts, model, ["a blue star"])
        wait_until(lambda: held.passes)
        waiting = [threads.submit(held.texts, model, [text]) for text in ("fails", "a heart")]
        wait_until(lambda: held.waiting() == 2)
        held.go.set()
        assert first.result(60).shape == (1, model.dim)
        for future in waiting:
            with pytest.raises(ModelError):
                future.result(60)
    assert held.texts(model, ["a heart"]).shape == (1, model.dim)


def test_a_pass_has_its_limit(held: Held, model: ModelRow) -> None:
    held.go.set()
    texts = [f"text {number}" for number in range(2 * MAX_BATCH + 1)]
    assert held.texts(model, texts).shape == (len(texts), model.dim)
    assert max(len(one) for one in held.passes) <= MAX_BATCH
    assert sorted(text for one in held.passes for text in one) == sorted(texts)
