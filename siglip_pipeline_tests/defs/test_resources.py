"""What a run's config may say about the model, before anything is embedded."""

from typing import Any

import dagster as dg
import pytest

from siglip_pipeline.defs.assets import frame_embeddings, similarity_index
from siglip_pipeline.defs.resources import SiglipResource, model_tags
from siglip_pipeline.defs.video_similarity import video_similarity
from siglip_pipeline.defs.watch_hits import watch_hits
from siglip_pipeline.demo.run import MODEL_FOLDER
from siglip_pipeline.errors import SettingsError
from siglip_pipeline.settings import Settings, process_environment


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("device", "cudaa", "allowed are auto, cuda, cuda:N, mps and cpu"),
        ("dtype", "float8", "'auto', 'float32', 'bfloat16' or 'float16'"),
        ("batch_size", 0, "at least 1"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_by_what_every_run_asks_first(
    field: str, value: object, allowed: str
) -> None:
    config: dict[str, Any] = {field: value}
    with pytest.raises(SettingsError, match=f"SIGLIP_{field.upper()}={value!r}: .*{allowed}"):
        SiglipResource(**config).settings()


def test_an_empty_field_is_taken_from_the_environment() -> None:
    empty = SiglipResource(model_name="", model_revision="", device="", dtype="")
    assert empty.settings() == Settings.load()


@pytest.mark.parametrize(
    ("executor", "config", "fails"),
    [("celery", {}, True), ("in_process", {}, False), ("celery", {"model_revision": "v1"}, False)],
)
def test_a_worker_with_another_model_than_its_run_fails_the_step(
    executor: str, config: dict[str, Any], *, fails: bool
) -> None:
    """What it would make is not searched. A run's own config holds on every machine."""

    @dg.asset(op_tags={**model_tags(), "siglip/model": "owner/model", "siglip/model_version": ""})
    def made(siglip: SiglipResource) -> None:
        siglip.spec()

    settings = Settings.load(model_name=str(MODEL_FOLDER), executor=executor)
    with process_environment(settings), dg.DagsterInstance.ephemeral() as instance:
        result = dg.materialize(
            [made],
            resources={"siglip": SiglipResource(**config)},
            raise_on_error=False,
            instance=instance,
        )
        failures = result.get_step_failure_events()
    assert result.success is not fails
    for event in failures:
        error = event.step_failure_data.error
        assert error is not None
        assert error.cause is not None
        assert "launched with the model owner/model (its files are not" in error.cause.message
        assert "its worker has model (" in error.cause.message


def test_what_uses_the_model_says_which_one_it_was_launched_with() -> None:
    for asset in (frame_embeddings, watch_hits, similarity_index, video_similarity):
        assert model_tags().items() <= asset.op.tags.items()
