"""Report to Dagster which partitions of a run succeeded and which failed."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import dagster as dg

from siglip_pipeline.defs.internals import (
    CheckTarget,
    check_target,
    input_tags,
    keep_connections,
    log_materialization,
    version_tags,
)
from siglip_pipeline.defs.partitions import no_upload_has, path_of_partition
from siglip_pipeline.errors import SiglipPipelineError, VideoError
from siglip_pipeline.stages.run_names import RANGE_END_TAG, RANGE_START_TAG
from siglip_pipeline.text.in_words import counted
from siglip_pipeline.uploads.names import shown

_MAX_RETRIES = 5
_FIRST_RETRY_SECONDS = 5.0
_NAMED_IN_SUMMARY = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckOutcome:
    """The result of one check on one partition."""

    name: str
    passed: bool
    metadata: Mapping[str, Any]
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR


class PartitionOutcomes:
    """Collects successes and failures of one step over many partitions.

    Dagster would give all partitions of a step the same result. Instead each partition that
    succeeds gets its own materialization event as soon as it is done, so a cancelled or killed run
    keeps what it finished. The step yields no output, and fails at the end if any partition failed.
    The asset needs ``output_required=False``. A partition that no upload can have, added by a
    person, fails alone.
    """

    def __init__(self, context: dg.AssetExecutionContext) -> None:
        keep_connections(context.instance)
        self._context = context
        self._failures: dict[str, VideoError] = {}
        self._succeeded: list[str] = []
        self._pending: dg.MaterializeResult[Any] | None = None
        self._pending_checks: list[CheckOutcome] = []
        # Read once: each access makes Dagster read every dynamic partition.
        self.keys = _partitions_of(context)
        """The partitions of the run."""
        self.key_of: dict[str, str] = {}
        """The partition of each video of the run, by its path."""
        for key in self.keys:
            if (reason := no_upload_has(key)) is not None:
                self.fail(key, VideoError(key, reason))
            else:
                self.key_of[path_of_partition(key)] = key
        self._is_single = len(self.keys) == 1
        # Read before the work begins: an input that changes during the work shows as newer.
        self._provenance: dict[str, dict[str, str]] = {}
        if not self._is_single:
            self._provenance = input_tags(context, self.keys)

    def succeed(
        self,
        key: str,
        *,
        data_version: str,
        metadata: Mapping[str, Any],
        checks: Iterable[CheckOutcome] = (),
    ) -> None:
        """Record a partition as materialized, with its checks."""
        self._succeeded.append(key)
        if self._is_single:
            # With one partition, the step's output can carry the data version, and a downstream
            # step in the same run can continue.
            self._pending = dg.MaterializeResult(
                metadata=metadata, data_version=dg.DataVersion(data_version)
            )
            self._pending_checks = [*checks]
        else:
            tags = version_tags(data_version) | self._provenance[key]
            materialization = dg.AssetMaterialization(
                self._context.asset_key, partition=key, metadata=metadata, tags=tags
            )
            target = log_materialization(self._context, materialization)
            self._log_checks(key, checks, target)

    def fail(self, key: str, error: VideoError) -> None:
        """Record a partition as failed, and log the reason."""
        self._failures[key] = error
        self._context.log.error(f"{shown(key)}: {error.reason}")

    def finish(self) -> Iterator[dg.MaterializeResult[Any] | dg.Output[None]]:
        """Yield the outputs of the step.

        Raises:
            dg.RetryRequested: a partition failed for a reason that is often temporary.
            dg.Failure: a partition failed. Names each with its reason; is not retried.
        """
        if self._failures:
            temporary = next((e for e in self._failures.values() if e.retryable), None)
            if temporary is not None and self._context.retry_number < _MAX_RETRIES:
                raise _retry_of(self._context, temporary) from temporary
            total = len(self._failures) + len(self._succeeded)
            named = [f"{shown(key)}: {error.reason}" for key, error in self._failures.items()]
            more = len(named) - _NAMED_IN_SUMMARY
            listing = "\n".join(named[:_NAMED_IN_SUMMARY])
            raise dg.Failure(
                description=f"{len(self._failures)} of {counted(total, 'video')} failed:\n{listing}"
                + (f"\n… and {more} more" if more > 0 else ""),
                metadata={"failed": len(self._failures), "succeeded": len(self._succeeded)},
                allow_retries=False,
            )
        if self._pending is not None:
            yield self._pending
            # Dagster stores the materialization before it resumes here: checks can now refer to it.
            key, instance = self.keys[0], self._context.instance
            target = check_target(instance, self._context.asset_key, key)
            self._log_checks(key, self._pending_checks, target)
        # The checks were reported by partition; Dagster still requires an output for each.
        for spec in self._context.assets_def.check_specs:
            yield dg.Output(None, output_name=spec.get_python_identifier())

    def _log_checks(
        self, key: str, checks: Iterable[CheckOutcome], target: CheckTarget | None
    ) -> None:
        """Report the checks of a partition's materialization."""
        for check in checks:
            self._context.log_event(
                dg.AssetCheckEvaluation(
                    asset_key=self._context.asset_key,
                    check_name=check.name,
                    passed=check.passed,
                    metadata=check.metadata,
                    target_materialization_data=target,
                    severity=check.severity,
                    partition=key,
                )
            )


def _partitions_of(context: dg.AssetExecutionContext) -> list[str]:
    """Return the partitions of the run.

    Raises:
        dg.Failure: there are none; says what to do. Dagster would call such a run a success.
    """
    keys = list(context.partition_keys)
    if not keys:
        start, end = (context.run.tags.get(tag) for tag in (RANGE_START_TAG, RANGE_END_TAG))
        raise dg.Failure(
            f"no partition lies between {start} and {end}, which comes first: exchange them",
            allow_retries=False,
        )
    return keys


@contextmanager
def retrying_temporary_errors(context: dg.AssetExecutionContext) -> Iterator[None]:
    """Ask Dagster to retry the step, with back-off, if the error may be temporary.

    Raises:
        dg.RetryRequested: a :class:`SiglipPipelineError` was raised that is ``retryable``.
    """
    try:
        yield
    except SiglipPipelineError as error:
        if not error.retryable:
            raise
        raise _retry_of(context, error) from error


def _retry_of(context: dg.AssetExecutionContext, error: SiglipPipelineError) -> dg.RetryRequested:
    wait_seconds = _FIRST_RETRY_SECONDS * 2**context.retry_number
    context.log.warning(f"{error}; retrying in {wait_seconds:.0f} s")
    return dg.RetryRequested(max_retries=_MAX_RETRIES, seconds_to_wait=wait_seconds)
