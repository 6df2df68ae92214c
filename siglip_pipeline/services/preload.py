"""Import what runs need: every run is forked from a process that has imported this module.

Importing it connects to nothing and reads no model. What needs a module that cannot be imported
says so in its own run: without a process to fork from, no run would start, nor say why.
"""

import gc
import traceback
from importlib import import_module

gc.disable()  # what is imported below stays

from siglip_pipeline.definitions import defs  # noqa: E402
from siglip_pipeline.defs.internals import MODULES_OF_RUNS  # noqa: E402
from siglip_pipeline.settings import Settings  # noqa: E402

# With Celery the steps run on other machines; these modules would only take memory here.
EMBEDDING_MODULES = (
    *("siglip_pipeline.siglip.engine", "siglip_pipeline.siglip.model"),
    *("transformers.models.auto.tokenization_auto", "transformers.models.siglip.modeling_siglip"),
    "transformers.models.siglip2.modeling_siglip2",
)

for module in MODULES_OF_RUNS:
    import_module(module)
if Settings.load().executor == "in_process":
    try:
        for module in EMBEDDING_MODULES:
            import_module(module)
    except Exception:
        traceback.print_exc()

defs.get_repository_def()
# Freeze, so that runs share these pages: garbage collection would write to every object.
gc.freeze()
gc.enable()
