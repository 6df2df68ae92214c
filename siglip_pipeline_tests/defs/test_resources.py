"""What a run's config may say about the model, before anything is embedded."""

from typing import Any

import pytest

from siglip_pipeline.defs.resources import SiglipResource
from siglip_pipeline.errors import SettingsError
from siglip_pipeline.settings import Settings


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
