"""Asks a running Dagster, over GraphQL, to materialize videos: the calls that its own UI makes."""

import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from http.client import HTTPException
from typing import Any, Final
from urllib.parse import quote

from siglip_pipeline.errors import DagsterAwayError, LaunchError, RunFailedError
from siglip_pipeline.records import Stage, Upload
from siglip_pipeline.services.ports import key_headers
from siglip_pipeline.stages.run_names import (
    JOB_OF,
    RANGE_END_TAG,
    RANGE_START_TAG,
    asset_path,
    op_name,
    partitions_name,
)
from siglip_pipeline.text.in_words import duration_in_words
from siglip_pipeline.text.secret import Secret, SecretUrl
from siglip_pipeline.uploads.names import partition_key

WILL_RETRY_TAG: Final = "dagster/will_retry"
AUTO_RETRY_RUN_ID_TAG: Final = "dagster/auto_retry_run_id"
FAILURE_REASON_TAG: Final = "dagster/failure_reason"
PARTITION_TAG: Final = "dagster/partition"
_OWN: Final = re.compile(r"^siglip_pipeline\.errors\.\w+: ")
"""What Dagster puts before the message of an error of this package."""
_SUBMITTED: Final = re.compile(r"^Submitting celery task .* to queue \"(?P<queue>.*)\"\.$")
"""The event of a step that was given to a queue of Celery, as dagster-celery words it."""
_LOST: Final = ("UNEXPECTED_TERMINATION", "START_TIMEOUT")

FINISHED: Final = frozenset(
    {"COMPLETED", "COMPLETED_SUCCESS", "COMPLETED_FAILED", "FAILED", "CANCELED"}
)
"""States of a backfill that has ended."""

_REPOSITORIES: Final = """
query { repositoriesOrError {
  ... on RepositoryConnection { nodes { name location { name } assetNodes { assetKey { path } } } }
  ... on PythonError { message } } }
"""

_ADD_PARTITION: Final = """
mutation($repository: RepositorySelector!, $set: String!, $key: String!) {
  addDynamicPartition(repositorySelector: $repository, partitionsDefName: $set, partitionKey: $key)
  { __typename ... on Error { message } } }
"""

_LAUNCH_BACKFILL: Final = """
mutation($params: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $params) {
  __typename ... on LaunchBackfillSuccess { backfillId }
  ... on Error { message } } }
"""

_BACKFILL: Final = """
query($id: String!) { partitionBackfillOrError(backfillId: $id) { __typename
  ... on PartitionBackfill { status error { message } }
  ... on Error { message } } }
"""

_PARTITIONS: Final = """
query($asset: AssetKeyInput!) { assetNodeOrError(assetKey: $asset) { __typename
  ... on AssetNode { partitionKeys } ... on Error { message } } }
"""

_LAUNCH_RUN: Final = """
mutation($params: ExecutionParams!) { launchRun(executionParams: $params) {
  __typename ... on LaunchRunSuccess { run { runId } }
  ... on RunConfigValidationInvalid { errors { message } }
  ... on Error { message } } }
"""

_RUN: Final = """
query($id: ID!) { runOrError(runId: $id) { __typename
  ... on Run { status tags { key value } }
  ... on Error { message } } }
"""

_SENSORS: Final = """
query($repository: RepositorySelector!) { sensorsOrError(repositorySelector: $repository) {
  ... on Sensors { results { name sensorState { status } } }
  ... on PythonError { message } } }
"""

_FAILED_RUNS: Final = """
query($since: Float!) { runsOrError(
  filter: {statuses: [FAILURE], updatedAfter: $since}, limit: 100) {
  ... on Runs { results { runId jobName tags { key value } assetSelection { path } } }
  ... on PythonError { message } } }
"""

_STARTED_RUNS: Final = """
query { runsOrError(filter: {statuses: [STARTED]}, limit: 100) {
  ... on Runs { results { runId jobName startTime assetSelection { path }
    stepStats { stepKey status endTime } } }
  ... on PythonError { message } } }
"""

_QUEUE: Final = """
query {
  queued: runsOrError(filter: {statuses: [QUEUED]}, limit: 100) {
    ... on Runs { results { runId jobName creationTime assetSelection { path } } } }
  begun: runsOrError(filter: {statuses: [STARTING, STARTED]}, limit: 1) {
    ... on Runs { results { runId } } } }
"""

_DAEMON: Final = """
query { instance { daemonHealth { allDaemonStatuses { lastHeartbeatTime } } } }
"""

_EVENTS: Final = """
query($id: ID!, $after: String) { runOrError(runId: $id) { __typename
  ... on Run { eventConnection(afterCursor: $after) { cursor hasMore events { __typename
    ... on EngineEvent { message error { message cause { message } } }
    ... on RunFailureEvent { message error { message cause { message } } }
    ... on ExecutionStepFailureEvent { error { message cause { message } } } } } }
  ... on Error { message } } }
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """A run as it stands."""

    run_id: str
    status: str
    """``QUEUED``, ``STARTED``, ``SUCCESS``, ``FAILURE``, …"""
    will_retry: bool
    """It failed, and Dagster is to start it again."""
    retried_as: str | None
    """The id of the run that took its place."""

    @property
    def has_ended(self) -> bool:
        """Whether it will not change any more."""
        return self.status in ("SUCCESS", "FAILURE", "CANCELED")


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedRun:
    """A run that failed, and that Dagster is not to start again."""

    run_id: str
    job: str
    assets: tuple[str, ...]
    """Their names, without that of the shard; empty if the run has assets of another one."""
    ends: tuple[str, str] | None
    """The first and the last of its partitions; None if it has none."""
    was_lost: bool
    """Its process ended or did not start: the sensor `lost_runs` may start it again."""

    @property
    def what(self) -> str:
        """What it was to make, in words."""
        return _what(self.assets, self.job)


def _what(assets: Sequence[str], job: str) -> str:
    """Return what a run is to make, in words."""
    return ", ".join(assets) or job


@dataclass(frozen=True, slots=True)
class _Repository:
    name: str
    location: str


class DagsterApi:
    """A running Dagster webserver.

    Args:
        url: where its UI is, such as ``http://127.0.0.1:3000``.
        shard: whose assets are meant, as in ``SIGLIP_PART``.
        api_key: what `up` asks for where it is set, as in ``SIGLIP_API_KEY``.
        timeout_seconds: how long an answer may take.

    Raises:
        LaunchError: no Dagster answers there, or the pipeline is not loaded there.
    """

    def __init__(
        self,
        url: str,
        *,
        shard: str | None = None,
        api_key: Secret | None = None,
        timeout_seconds: float = 60.0,
    ) -> None:
        self._timeout_seconds = timeout_seconds
        self._url = SecretUrl(url.rstrip("/"))
        self._headers = {"Content-Type": "application/json", **key_headers(api_key)}
        self._shard = shard
        self._repository = self._find_repository(self._path(Stage.FRAMES))

    def backfill_url(self, backfill_id: str) -> str:
        """Return the address of the page that shows a backfill."""
        return f"{self._url}/runs/b/{backfill_id}"

    def add_partitions(self, keys: Sequence[str]) -> None:
        """Add dynamic partitions, in this order; existing ones stay."""
        repository = self._repository_selector()
        name = partitions_name(self._shard)
        for key in keys:
            variables = {"repository": repository, "set": name, "key": key}
            answer = self._ask(_ADD_PARTITION, variables)["addDynamicPartition"]
            if answer["__typename"] not in (
                "AddDynamicPartitionSuccess",
                "DuplicateDynamicPartitionError",
            ):
                raise LaunchError(f"{self._url} refused the partition {key!r}: {_why(answer)}")

    def report(self, uploads: Sequence[Upload]) -> None:
        """Store an event of the asset `uploads` for each.

        By the webserver's REST call: the mutation `reportRunlessAssetEvents` takes no data version.
        """
        path = "/".join(quote(name, safe="") for name in self._path("uploads"))
        for upload in uploads:
            modified = datetime.fromtimestamp(upload.modified_at or time.time(), UTC)
            document = {
                "partition": partition_key(upload.path),
                "data_version": upload.fingerprint,
                "metadata": {
                    "path": upload.path,
                    "size_bytes": upload.size_bytes,
                    "modified": modified.isoformat(timespec="seconds"),
                },
            }
            self._post(f"/report_asset_materialization/{path}", document)

    def partition_keys(self, asset: str) -> list[str]:
        """Return every partition key of an asset, in insertion order."""
        answer = self._ask(_PARTITIONS, {"asset": {"path": self._path(asset)}})["assetNodeOrError"]
        if answer["__typename"] != "AssetNode":
            raise LaunchError(f"{self._url} does not know the asset {asset}: {_why(answer)}")
        return [str(key) for key in answer["partitionKeys"]]

    def launch_backfill(
        self, assets: Sequence[str], keys: Sequence[str], *, config: Mapping[str, Any] | None = None
    ) -> str:
        """Start a backfill of some assets over some partitions; gives its id."""
        params: dict[str, Any] = {
            "assetSelection": [{"path": self._path(asset)} for asset in assets],
            "partitionNames": list(keys),
            "title": "siglip-pipeline materialize",
        }
        if config:
            params["runConfigData"] = dict(config)
        answer = self._ask(_LAUNCH_BACKFILL, {"params": params})["launchPartitionBackfill"]
        if answer["__typename"] != "LaunchBackfillSuccess":
            raise LaunchError(f"{self._url} did not start the backfill: {_why(answer)}")
        return str(answer["backfillId"])

    def backfill_status(self, backfill_id: str) -> str:
        """Return ``REQUESTED``, ``COMPLETED_SUCCESS``, …; :data:`FINISHED` holds the final ones.

        Raises:
            RunFailedError: the backfill itself broke, which no video is to blame for.
        """
        answer = self._ask(_BACKFILL, {"id": backfill_id})["partitionBackfillOrError"]
        if answer["__typename"] != "PartitionBackfill":
            raise RunFailedError(f"backfill {backfill_id}: {_why(answer)}")
        if answer["status"] == "FAILED":
            error = answer["error"] or {"message": "no reason was given"}
            raise RunFailedError(
                f"backfill {backfill_id} broke: {error['message'].strip()} "
                f"({self.backfill_url(backfill_id)})"
            )
        return str(answer["status"])

    def launch_run(
        self,
        job: str,
        *,
        asset: str | None = None,
        tags: Mapping[str, str] | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> str:
        """Start a run of a job; gives its id.

        Args:
            job: its name.
            asset: the one asset of the job that is meant; None: all.
            tags: of the run; a range of partitions is given so.
            config: of the run.
        """
        selector: dict[str, Any] = {**self._repository_selector(), "jobName": job}
        if asset is not None:
            selector["assetSelection"] = [{"path": self._path(asset)}]
        params = {
            "selector": selector,
            "runConfigData": dict(config or {}),
            "executionMetadata": {
                "tags": [{"key": key, "value": value} for key, value in (tags or {}).items()]
            },
        }
        answer = self._ask(_LAUNCH_RUN, {"params": params})["launchRun"]
        if answer["__typename"] != "LaunchRunSuccess":
            raise LaunchError(f"{self._url} did not start {job}: {_why(answer)}")
        return str(answer["run"]["runId"])

    def config_of(self, asset: str, **values: Any) -> dict[str, Any]:
        """Return the config of a run of an asset."""
        return {"ops": {op_name(asset, self._shard): {"config": values}}}

    def run_state(self, run_id: str) -> RunState:
        """Return how a run stands."""
        answer = self._ask(_RUN, {"id": run_id})["runOrError"]
        if answer["__typename"] != "Run":
            raise RunFailedError(f"run {run_id}: {_why(answer)}")
        tags = {tag["key"]: tag["value"] for tag in answer["tags"]}
        return RunState(
            run_id=run_id,
            status=str(answer["status"]),
            will_retry=tags.get(WILL_RETRY_TAG) == "true",
            retried_as=tags.get(AUTO_RETRY_RUN_ID_TAG),
        )

    def stopped_sensors(self) -> list[str]:
        """Return the names of the sensors that are switched off."""
        variables = {"repository": self._repository_selector()}
        answer = self._ask(_SENSORS, variables)["sensorsOrError"]
        return [
            sensor["name"]
            for sensor in answer.get("results", [])
            if sensor["sensorState"]["status"] == "STOPPED"
        ]

    def failed_runs(self, *, since: float = 0.0) -> list[FailedRun]:
        """Return the runs that failed, newest first, without those that Dagster is to start again.

        Args:
            since: unix time. Earlier failures are left out.
        """
        answer = self._ask(_FAILED_RUNS, {"since": since})["runsOrError"]
        runs = []
        for run in answer.get("results", []):
            tags = {tag["key"]: tag["value"] for tag in run["tags"]}
            if tags.get(WILL_RETRY_TAG) == "true":
                continue
            key = tags.get(PARTITION_TAG)
            ends = tags.get(RANGE_START_TAG, key), tags.get(RANGE_END_TAG, key)
            runs.append(
                FailedRun(
                    run_id=run["runId"],
                    job=run["jobName"],
                    assets=tuple(self._assets_of(run)),
                    ends=(ends[0], ends[1]) if ends[0] and ends[1] else None,
                    was_lost=tags.get(FAILURE_REASON_TAG) in _LOST,
                )
            )
        return runs

    def silent_daemon(self, *, seconds: float) -> str | None:
        """Return that Dagster's daemon gives no sign of life, and since when; None if it does.

        Args:
            seconds: how old its last sign of life may be; a daemon gives one every 30 s.
        """
        health = self._ask(_DAEMON, {})["instance"]["daemonHealth"]
        last = max((d["lastHeartbeatTime"] or 0.0 for d in health["allDaemonStatuses"]), default=0)
        silent = time.time() - last
        if silent < seconds:
            return None
        since = f" for {duration_in_words(silent)}" if last else ""
        return (
            f"Dagster's daemon, which starts runs, has given no sign of life{since}: its log says "
            f"why, if it is running ({self._url}/deployment/daemons)"
        )

    def waits_for_worker(self, *, seconds: float) -> str | None:
        """Return which run has waited for a Celery worker for some time, and for which queue.

        Args:
            seconds: how long no step of it has been at work.
        """
        answer = self._ask(_STARTED_RUNS, {})["runsOrError"]
        for run in answer.get("results", []):
            steps = run["stepStats"]
            times = (run["startTime"], *(step["endTime"] for step in steps))
            waited = time.time() - max(at or 0.0 for at in times)
            if waited < seconds or any(step["status"] == "IN_PROGRESS" for step in steps):
                continue
            messages = [event.get("message") or "" for event in self._events(run["runId"])]
            submitted = [found for found in map(_SUBMITTED.search, messages) if found]
            if submitted:
                what = _what(self._assets_of(run), run["jobName"])
                return (
                    f"a run of {what} waits for a worker: none has taken its step so far. "
                    f"`siglip-pipeline worker --queue {submitted[-1]['queue']}` starts one "
                    f"({self._url}/runs/{run['runId']})"
                )
        return None

    def waits_in_queue(self, *, seconds: float) -> str | None:
        """Return which run has waited in Dagster's queue for some time although none is at work.

        Args:
            seconds: how long it has waited.
        """
        answer = self._ask(_QUEUE, {})
        queued = answer["queued"].get("results", [])
        if not queued or answer["begun"].get("results"):
            return None
        waited = time.time() - queued[-1]["creationTime"]
        if waited < seconds:
            return None
        what = _what(self._assets_of(queued[-1]), queued[-1]["jobName"])
        return (
            f"a run of {what} has waited in Dagster's queue for {duration_in_words(waited)}, and "
            "none is at work: a limit under Deployment, Concurrency, or a code location that does "
            f"not answer keeps it there ({self._url}/runs/{queued[-1]['runId']})"
        )

    def _assets_of(self, run: Mapping[str, Any]) -> list[str]:
        """Return the names of the assets of a run; none if they are of another shard."""
        paths = [asset["path"] for asset in run["assetSelection"] or []]
        if not paths:
            return [asset for asset, job in JOB_OF.items() if job == run["jobName"]]
        return [path[-1] for path in paths if path == self._path(path[-1])]

    def failed_run(self, *, since: float) -> str | None:
        """Return which run failed last, why, and where it is shown; None if none did.

        Args:
            since: unix time. Earlier failures do not count, nor what Dagster is to start again.
        """
        runs = self.failed_runs(since=since)
        return self.failure(runs[0].run_id, runs[0].what) if runs else None

    def failure(self, run_id: str, what: str) -> str:
        """Return which run failed, why, and where it is shown.

        Args:
            run_id: of the run.
            what: the assets that it was to make.
        """
        events = [*self._events(run_id)]
        own = [e for e in events if e["__typename"] != "EngineEvent"]
        # Without an error of its own, Dagster could not launch the run, lost it, or ended it.
        errors = [e["error"] for e in own if e.get("error")] or [
            e["error"] for e in events if e.get("error")
        ][-1:]
        reasons = [_OWN.sub("", (e["cause"] or e)["message"].strip()) for e in errors]
        reason = "; ".join(reasons or [e["message"] for e in own if e.get("message")][-1:])
        return f"a run of {what} failed: {reason} ({self._url}/runs/{run_id})"

    def _events(self, run_id: str) -> Iterator[dict[str, Any]]:
        """Yield what :data:`_EVENTS` reads of a run's events; Dagster gives 1,000 at a time."""
        after = None
        while True:
            answer = self._ask(_EVENTS, {"id": run_id, "after": after})["runOrError"]
            if answer["__typename"] != "Run":
                raise RunFailedError(f"run {run_id}: {_why(answer)}")
            page = answer["eventConnection"]
            yield from page["events"]
            if not page["hasMore"]:
                return
            after = page["cursor"]

    def _repository_selector(self) -> dict[str, str]:
        return {
            "repositoryName": self._repository.name,
            "repositoryLocationName": self._repository.location,
        }

    def _path(self, asset: str) -> list[str]:
        return asset_path(asset, self._shard)

    def _find_repository(self, asset: list[str]) -> _Repository:
        answer = self._ask(_REPOSITORIES, {})["repositoriesOrError"]
        for node in answer.get("nodes", []):
            if any(found["assetKey"]["path"] == asset for found in node["assetNodes"]):
                return _Repository(node["name"], node["location"]["name"])
        raise LaunchError(
            f"Dagster at {self._url} has not loaded {'/'.join(asset)} of siglip_pipeline: start it "
            f"with its workspace.yaml, or look at {self._url}/locations for the reason"
        )

    def _ask(self, query: str, variables: Mapping[str, Any]) -> dict[str, Any]:
        answer = self._post("/graphql", {"query": query, "variables": variables})
        if answer.get("errors"):
            raise LaunchError(f"{self._url}/graphql: {answer['errors'][0]['message']}")
        data: dict[str, Any] = answer["data"]
        return data

    def _post(self, path: str, document: Mapping[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(
            f"{self._url.reveal()}{path}", data=json.dumps(document).encode(), headers=self._headers
        )
        try:
            with urllib.request.urlopen(request, timeout=self._timeout_seconds) as response:
                answer: dict[str, Any] = json.load(response)
        except urllib.error.HTTPError as error:
            detail = error.read(500).decode(errors="replace")
            raise LaunchError(
                f"{self._url}{path} answered {error.code}: {detail}"
            ) from self._url.masked_error(error)
        except (OSError, HTTPException, ValueError) as error:
            raise DagsterAwayError(
                f"no Dagster answers at {self._url} ({self._url.masked(error)}); start one with "
                "`siglip-pipeline up`, or leave out --dagster-url to do the work in this process"
            ) from self._url.masked_error(error)
        return answer


def _why(answer: Mapping[str, Any]) -> str:
    errors = "; ".join(str(error["message"]) for error in answer.get("errors") or [])
    return (errors or str(answer.get("message") or answer["__typename"])).strip()
