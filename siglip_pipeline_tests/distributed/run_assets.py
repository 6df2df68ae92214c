"""One run over a range of videos, as Dagster's run worker executes it: by the job's executor.

    python -m siglip_pipeline_tests.distributed.run_assets ASSET [FIRST LAST]

DAGSTER_HOME and SIGLIP_* come from the environment; exits 1 when the run failed.
"""

import sys

import dagster as dg
from dagster._core.definitions.reconstruct import ReconstructableRepository

from siglip_pipeline.stages.run_names import RANGE_END_TAG, RANGE_START_TAG


def main(asset: str, *ends: str) -> int:
    repository = ReconstructableRepository.for_module("siglip_pipeline.definitions", "defs")
    job = repository.get_reconstructable_job("__ASSET_JOB")
    tags = dict(zip((RANGE_START_TAG, RANGE_END_TAG), ends, strict=False))
    with dg.DagsterInstance.get() as instance:
        result = dg.execute_job(
            job, instance=instance, asset_selection=[dg.AssetKey(asset.split("/"))], tags=tags
        )
    return 0 if result.success else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
