"""Settings: the sole reader of the environment.

Every field is read from ``SIGLIP_<NAME>``; ``.env`` files are not read. ``docs/settings.md`` is
generated from the descriptions here and a test holds the two together.
"""

import locale
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Final, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from siglip_pipeline.errors import SettingsError
from siglip_pipeline.text.secret import Secret, SecretUrl
from siglip_pipeline.text.url_host import url_host

Device = str
DType = Literal["auto", "float32", "bfloat16", "float16"]
IndexKind = Literal["auto", "moments", "hnsw", "hnsw_binary", "ivfflat", "exact"]

_ORIGIN = re.compile(r"https?://[^\s@/?#,]+/?", re.IGNORECASE)
_BROKER: Final = re.compile(r"(rediss?|sentinel|amqps?|pyamqp)://\S+")
_BACKEND: Final = re.compile(r"(rediss?|sentinel|db\+[a-z0-9+]+)://\S+")
_PREFIX: Final = "SIGLIP_"
_KEY: Final = re.compile(r"[\x21-\x7e]{16,}")
_DEVICE: Final = re.compile(r"auto|cuda(:[0-9]{1,4})?|mps|cpu")


class Settings(BaseModel):
    """What a user can choose. Read once by :meth:`load`, then passed on; never changed."""

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        validate_default=True,
        validate_by_name=True,
        validate_by_alias=False,
        # Tracebacks show pydantic's messages, and a URL may hold a password.
        hide_input_in_errors=True,
    )

    # Where things are
    uploads: SecretUrl = Field(
        SecretUrl("./uploads"),
        description="Folder or fsspec URL (`s3://…`, `gs://…`) that videos arrive in.",
    )
    part: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*$",
        description="A folder below `SIGLIP_UPLOADS`: this code location or command takes up that "
        "part of the collection alone, under assets and partitions of its own. Unset: all uploads. "
        "For collections beyond Dagster's limits; see docs/operations.md.",
    )
    partition_limit: int = Field(
        100_000,
        ge=1,
        description="Partitions that one set should hold at most, as Dagster advises: from nine "
        "tenths of it on, `status` and the sensor warn.",
    )
    home: Path = Field(
        Path("./.siglip"),
        description="Folder for the embedded database, stored frames, caches and Dagster's logs.",
    )
    cache: Path = Field(
        Path("~/.cache/siglip-pipeline"),
        description="Folder for what all homes of a user share: vectors of the recall check's "
        "texts by model, batch sizes by model and GPU, compiled code. May be deleted at any time.",
    )
    frame_store: SecretUrl | None = Field(
        None,
        description="Folder or fsspec URL for stored frames. Unset: `frames` below `SIGLIP_HOME`.",
    )
    database_url: SecretUrl | None = Field(
        None,
        description="Postgres with pgvector >= 0.8.2, as `postgresql://…`. Unset: the embedded "
        "server below `SIGLIP_HOME`.",
    )
    embedded_port: int | None = Field(
        None,
        ge=1024,
        le=65535,
        description="Let the embedded server listen on this port of 127.0.0.1 too, with the "
        "password in `postgres.password` below `SIGLIP_HOME`. Unset: its Unix socket only.",
    )
    dagster_postgres_url: SecretUrl | None = Field(
        None,
        validation_alias="DAGSTER_POSTGRES_URL",
        description="Dagster's own storage, `postgresql+psycopg2://…` or `postgresql://…`. Unset: "
        "database `dagster` on the embedded server.",
    )

    # Model
    model_name: str = Field(
        "google/siglip2-base-patch16-256",
        description="Hub id or local folder of a SigLIP or SigLIP 2 checkpoint. Recommended for "
        "production: `google/siglip2-so400m-patch14-384`.",
    )
    model_revision: str | None = Field(
        None, description="Pinned hub revision (branch, tag, commit)."
    )
    device: Device = Field(
        "auto",
        description="`auto` (cuda, mps, cpu in that order), `cuda`, `cuda:N`, `mps` or `cpu`. A "
        "device named here that is absent is an error, never a silent run on the CPU. Of several "
        "cuda devices each process takes one, unless a number is given.",
    )
    dtype: DType = Field(
        "auto",
        description="`auto`: bfloat16 on cuda and on CPUs that are faster in it, else float32. "
        "Or `float32`, `bfloat16`, `float16`.",
    )
    batch_size: int | Literal["auto"] = Field(
        "auto", description="Frames per forward pass, or `auto`: probed on the device."
    )
    compile: Literal["auto", "on", "off"] = Field(
        "off",
        description="Compile the vision tower on a CPU, in the background: `auto` in runs that are "
        "expected to go on for half an hour, `on` in every run. Needs a C++ compiler; without one, "
        "or if it fails, runs say so and go on as with `off`.",
    )
    max_num_patches: int | None = Field(
        None,
        ge=16,
        description="NaFlex checkpoints only: patches per image. Unset: what the checkpoint says.",
    )

    # Sampling and decoding
    sampling: str = Field(
        "fps:1",
        description="`fps:N` (frames a second, fractions allowed), `every:N` (every Nth frame), "
        "`keyframes`, or `scenes` (shot boundaries).",
    )
    frame_longest_side: int = Field(
        768, ge=64, le=8192, description="Stored frames are shrunk to this longest side, in pixels."
    )
    jpeg_quality: int = Field(90, ge=30, le=100, description="JPEG quality of stored frames.")
    decode_workers: int = Field(
        0, ge=0, description="Videos decoded at once, one process each. 0: one per CPU core."
    )
    decode_stall_seconds: float = Field(
        60.0, gt=0, description="A decoder that makes no progress for so long is ended."
    )
    decode_total_seconds: float = Field(
        21_600.0,
        gt=0,
        description="Decoding one video, hashing included, may take so long; then it is given up.",
    )
    decode_memory_mib: int = Field(
        4096, ge=256, description="Memory that one decoding process may take, in MiB."
    )
    max_upload_gib: float = Field(
        256.0, gt=0, description="A larger upload is refused, unread; in GiB."
    )
    hash_seconds_per_gib: float = Field(
        60.0,
        gt=0,
        description="Hashing an upload, to find others of equal content, may take 10 s and so "
        "long for each GiB that it has; then the upload fails.",
    )
    min_decodable_share: float = Field(
        0.5, ge=0, le=1, description="A video with a smaller share of decodable frames fails."
    )
    deduplicate_frames: bool = Field(
        False, description="Store near-identical consecutive frames once and refer to them."
    )
    remove_deleted: bool = Field(
        True,
        description="Forget a video whose upload was deleted, with its frames and vectors, after "
        "`SIGLIP_REMOVE_GRACE_HOURS`.",
    )
    remove_grace_hours: float = Field(
        24.0,
        ge=0,
        description="An upload must have been missing for so long before its video is forgotten.",
    )
    uploads_settle_seconds: float = Field(
        10.0,
        ge=0,
        description="A local upload is taken up once its file has not changed for so long.",
    )

    # Index
    index_kind: IndexKind = Field(
        "moments",
        description="`moments`, `hnsw`, `hnsw_binary`, `ivfflat` or `exact`, or `auto`: `moments` "
        "where footage makes few of them, else `hnsw`; see docs/indexes.md.",
    )
    moment_threshold: float = Field(
        0.9,
        gt=0,
        lt=1,
        description="A frame starts a new moment when its cosine to the moment's running mean "
        "falls below this.",
    )
    index_min_recall: float = Field(
        0.95, ge=0, le=1, description="A new index is published only with at least this recall@10."
    )
    index_rebuild_share: float = Field(
        0.1, ge=0, le=1, description="Share of changed frames from which the index is built again."
    )

    frames_table_limit: int = Field(
        20_000_000,
        ge=0,
        description="Frames of a model from which `similarity_index` divides their table into 16 "
        "partitions by video, while loads and searches go on; 0: never, and an unfinished copy is "
        "dropped.",
    )

    recall_texts: Path | None = Field(
        None,
        description="Text file with a query a line, which people ask: the recall check uses them "
        "as its text queries. Unset: made-up ones.",
    )
    index_recall_queries: int = Field(
        200,
        ge=1,
        description="Picture queries, and text queries, that a recall check asks; a tenth of the "
        "frames, but at least 20, where that is fewer.",
    )
    promote_automatically: bool = Field(
        False,
        description="Switch search to the model in `SIGLIP_MODEL_NAME` as soon as it covers every "
        "video and its index is published.",
    )

    # Search
    search_min_probability: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Hits that are less probable are hidden, so that a query with no match finds "
        "nothing. 0: off. Depends on the model; try 0.1 for texts.",
    )

    ranking: str = Field(
        "",
        description="Techniques that rank hits by more than their best frame: `frames:4`, "
        "`smooth:1`, `hubness:0.5`, `prompts`, `centred`, or several joined by `+` "
        "(docs/search.md). Unset: none.",
    )

    # Quality
    judged_queries: Path | None = Field(
        None,
        description="File of judged queries (docs/quality.md): the check `retrieval_quality` asks "
        "them after each build of the index, and a model that answers them worse is not promoted. "
        "Unset: neither.",
    )
    quality_metric: str = Field(
        "nDCG@10",
        description="The metric that decides about quality, by its name in docs/quality.md.",
    )
    quality_margin: float = Field(
        0.02,
        ge=0,
        le=1,
        description="How much `SIGLIP_QUALITY_METRIC` may fall before the check fails and a "
        "promotion is refused.",
    )

    query_log: bool = Field(
        False,
        description="`on`: keep the texts that people search for, and nothing of who asked; a "
        "nightly check measures recall on them.",
    )
    query_log_days: int = Field(
        30, ge=1, description="Logged texts are deleted after so many days, by the nightly check."
    )

    # Services
    host: str = Field(
        "127.0.0.1", description="Address that `up` and `serve` bind the search service to."
    )
    dagster_host: str = Field(
        "127.0.0.1",
        description="Address that `up` binds the Dagster UI to, whatever `SIGLIP_HOST` is. Others "
        "than loopback addresses need `SIGLIP_API_KEY`.",
    )
    dagster_port: int = Field(3000, ge=1, le=65535, description="Port of the Dagster UI.")
    dagster_url: str | None = Field(
        None,
        description="Where people reach the Dagster UI, for links on the status page. Unset: the "
        "one that `up` runs in this home.",
    )
    page_url: str | None = Field(
        None,
        description="Address of the search page as people reach it, for links from Dagster. "
        "Unset: `http://SIGLIP_HOST:SIGLIP_PAGE_PORT`, or 127.0.0.1 where all addresses are bound.",
    )
    source_url: str | None = Field(
        None,
        description="Where the code that runs here can be read, for links from Dagster's assets: "
        "`https://github.com/OWNER/NAME/tree/BRANCH`, or the same at GitLab. Unset: the files of "
        "this machine.",
    )
    alert_webhook: Secret | None = Field(
        None,
        description="URL that a summary of every failed run is posted to, as JSON with a `text` "
        "that Slack and Mattermost show. Unset: the log of the sensor `run_failures` only.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "WARNING", description="Verbosity of the command line's log on stderr."
    )

    preload_runs: bool = Field(
        True,
        description="On Linux `up` forks runs from a process that has Dagster and torch imported, "
        "so that a run starts in a fraction of a second; it holds some 400 MB, which the runs "
        "share. Off: every run imports them itself.",
    )
    keep_logs_days: int = Field(
        30,
        ge=0,
        description="What steps and ticks of Dagster wrote is removed after so many days, by the "
        "job `remove_old_logs`. 0: kept forever.",
    )

    # Several machines
    executor: Literal["in_process", "celery"] = Field(
        "in_process",
        description="Where steps run: `in_process`, in the run's own process; `celery`, on workers "
        "that `siglip-pipeline worker` started; see docs/operations.md.",
    )
    celery_broker_url: SecretUrl | None = Field(
        None,
        description="Broker of the Celery executor, `redis://…` or `amqp://…`.",
    )
    celery_backend_url: SecretUrl | None = Field(
        None,
        description="Where results of steps are kept, `redis://…` or "
        "`db+postgresql+psycopg2://…`. Unset: a Redis broker itself; beside RabbitMQ, Dagster's "
        "own Postgres.",
    )
    celery_visibility_seconds: int = Field(
        180,
        ge=10,
        description="With a Redis broker, a step whose worker has not been heard of for so long is "
        "given to another one. Workers report while a step runs, however long it takes.",
    )
    celery_runs: int = Field(
        16,
        ge=1,
        description="Runs at once under the Celery executor, each a small process beside Dagster's "
        "code server; at least one per worker.",
    )

    # HTTP service and page
    page_port: int = Field(
        8000, ge=1, le=65535, description="Port of the HTTP service and the search page."
    )
    api_key: Secret | None = Field(
        None,
        description="Key that every HTTP request must bring, to the search service and to the "
        "Dagster UI, as `Authorization: Bearer …` or `X-API-Key`: at least 16 printable "
        "characters. Without one both bind to loopback addresses only.",
    )
    trusted_proxies: str | None = Field(
        None,
        description="Addresses and networks of reverse proxies, separated by commas "
        "(`127.0.0.1,10.0.0.0/8`): whom they name in `X-Forwarded-For` is the client, and "
        "`X-Forwarded-Proto` its scheme. Unset: both headers are ignored.",
    )
    load_model_at_start: bool = Field(
        False,
        description="Load the text tower as the HTTP service starts, not at the first text query.",
    )
    picture_seconds: float = Field(
        5.0, gt=0, description="Time for a picture to search by to be decoded."
    )
    http_max_body_mib: float = Field(
        16.0, gt=0, description="Largest body of an HTTP request, in MiB: the size of a picture."
    )
    http_max_picture_megapixels: float = Field(
        50.0,
        gt=0,
        description="Largest picture to search by, in million pixels; looked at before decoding.",
    )
    http_pictures_at_once: int = Field(
        2, ge=1, description="Pictures that are decoded and searched by at once over HTTP."
    )
    http_pictures_waiting: int = Field(
        8, ge=0, description="… that wait for their turn; more are answered with 503."
    )
    http_pictures_kept_mib: float = Field(
        64.0,
        ge=0,
        description="Pictures that people searched by are kept below `SIGLIP_HOME`, shrunk, so "
        "that such a search has an address; up to this size, in MiB. 0: none is kept.",
    )
    http_max_batch: int = Field(
        32, ge=1, description="Most searches, or texts to embed, in one HTTP request."
    )
    http_cors_origins: str | None = Field(
        None,
        description="Origins of front ends elsewhere that may use the API from a browser, "
        "separated by commas (`https://app.example,https://other.example`); they bring the key, "
        "and cookies are not sent. Unset: none.",
    )
    http_max_query_length: int = Field(
        500, ge=1, description="Longest text to search for, in characters."
    )
    http_max_k: int = Field(
        100, ge=1, le=1000, description="Most moments that one HTTP request may ask for."
    )
    clip_cache_gib: float = Field(
        2.0,
        gt=0,
        description="Clips of what a browser cannot play are kept below `SIGLIP_HOME` up to this "
        "size, in GiB; the least recently watched are removed first. No single clip is larger.",
    )
    clip_longest_side: int = Field(
        1280, ge=64, le=8192, description="Their pictures are shrunk to this, in pixels."
    )
    clips_at_once: int = Field(
        1,
        ge=1,
        description="Clips made at once, each in one process of low priority; beside them, one "
        "whole video.",
    )
    http_requests_per_second: float = Field(
        20.0,
        ge=0,
        description="Requests that a client address may make a second, on average; thumbnails and "
        "streams count a tenth. 0: no limit.",
    )
    http_request_burst: int = Field(
        60, ge=1, description="Requests that a client address may make at once."
    )
    http_max_connections: int = Field(
        400,
        ge=1,
        description="Connections at once. Where there are more, that which has waited longest for "
        "a request is closed; where none waits, the new one is answered with 503.",
    )
    http_max_connections_per_address: int = Field(
        64,
        ge=1,
        description="… and of one address, but for 127.0.0.1, ::1 and `SIGLIP_TRUSTED_PROXIES`.",
    )
    http_header_seconds: float = Field(
        10.0, gt=0, description="Time for all headers of a request to arrive."
    )
    http_body_seconds: float = Field(
        10.0,
        gt=0,
        description="Time for the body of a request to arrive, beside "
        "`SIGLIP_HTTP_BODY_BYTES_PER_SECOND`.",
    )
    http_body_bytes_per_second: int = Field(
        16_384,
        ge=1,
        description="A body that is still arriving gets a further second for each so many bytes.",
    )
    http_write_seconds: float = Field(
        60.0,
        gt=0,
        description="Time for a client to take what is sent, 512 KiB at the most. A player that is "
        "paused for longer asks for the rest again.",
    )
    http_idle_seconds: float = Field(
        30.0, gt=0, description="Time that a connection is kept for the next request."
    )

    @field_validator("home", "recall_texts", "judged_queries")
    @classmethod
    def _absolute_path(cls, path: Path | None) -> Path | None:
        return None if path is None else path.expanduser().resolve()

    @field_validator("uploads", "frame_store")
    @classmethod
    def _absolute_folder(cls, url: SecretUrl | None) -> SecretUrl | None:
        # Dagster starts its processes in other folders, so paths are made absolute.
        if url is None or url.folder is None:
            return url
        return SecretUrl(str(url.folder.expanduser().resolve()))

    @field_validator("model_name")
    @classmethod
    def _absolute_local_model(cls, name: str) -> str:
        if "://" in name:
            raise ValueError(
                "must be a hub id, such as google/siglip2-base-patch16-256, or a folder"
            )
        path = Path(name).expanduser()
        return str(path.resolve()) if path.is_dir() else name

    @field_validator("device")
    @classmethod
    def _name_of_a_device(cls, name: str) -> str:
        if not _DEVICE.fullmatch(name):
            raise ValueError("is not a device; allowed are auto, cuda, cuda:N, mps and cpu")
        return name

    @field_validator("batch_size")
    @classmethod
    def _some_frames(cls, frames: int | Literal["auto"]) -> int | Literal["auto"]:
        if frames != "auto" and frames < 1:
            raise ValueError("must be auto or at least 1")
        return frames

    @field_validator("source_url")
    @classmethod
    def _repository_and_branch(cls, url: str | None) -> str | None:
        if url is not None and not re.fullmatch(
            r"https://[^\s@?#/]*(github|gitlab)[^\s@?#]*/tree/[^\s@?#]+", url
        ):
            raise ValueError(
                "must be a folder page of GitHub or GitLab without a user, a password or "
                "parameters, such as https://github.com/OWNER/NAME/tree/main"
            )
        return url

    @field_validator("dagster_url", "page_url")
    @classmethod
    def _public_address(cls, url: str | None) -> str | None:
        if url is not None and not re.fullmatch(r"https?://[^\s@?#]+", url):
            raise ValueError(
                "must be http:// or https:// without a user, a password or parameters: everybody "
                "sees it in links"
            )
        return url

    @field_validator("database_url")
    @classmethod
    def _plain_database_url(cls, url: SecretUrl | None) -> SecretUrl | None:
        if url is not None and not url.startswith(("postgresql://", "postgres://")):
            raise ValueError("must start with postgresql:// (no driver suffix)")
        return url

    @field_validator("dagster_postgres_url")
    @classmethod
    def _dagsters_database_url(cls, url: SecretUrl | None) -> SecretUrl | None:
        if url is None or url.startswith("postgresql+psycopg2://"):
            return url
        if not url.startswith("postgresql://"):
            raise ValueError("must start with postgresql+psycopg2:// or postgresql://")
        # SQLAlchemy 2.1 takes another driver by itself, whose errors have other texts and types.
        return SecretUrl(url.reveal().replace("postgresql://", "postgresql+psycopg2://", 1))

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, text: str | None) -> str | None:
        for part in (text or "").split(","):
            if part.strip():
                ip_network(part.strip())
        return text

    @field_validator("http_cors_origins")
    @classmethod
    def _plain_origins(cls, text: str | None) -> str | None:
        for part in (text or "").split(","):
            if part.strip() and not _ORIGIN.fullmatch(part.strip()):
                raise ValueError(
                    f"{part.strip()!r} is no origin: give a scheme and a host, such as "
                    "https://app.example or http://localhost:5173, without a path"
                )
        return text

    @field_validator("celery_broker_url")
    @classmethod
    def _known_broker(cls, url: SecretUrl | None) -> SecretUrl | None:
        if url is not None and not _BROKER.fullmatch(url.reveal()):
            raise ValueError(
                "must start with redis://, rediss://, sentinel://, amqp:// or amqps://"
            )
        return url

    @field_validator("celery_backend_url")
    @classmethod
    def _known_backend(cls, url: SecretUrl | None) -> SecretUrl | None:
        # Celery takes the scheme of another for the name of a module to import.
        if url is not None and not _BACKEND.fullmatch(url.reveal()):
            raise ValueError(
                "must start with db+postgresql+psycopg2://, redis://, rediss:// or sentinel://"
            )
        return url

    @field_validator("api_key")
    @classmethod
    def _strong_key(cls, key: Secret | None) -> Secret | None:
        if key is not None and not _KEY.fullmatch(key.reveal()):
            raise ValueError("must be at least 16 printable ASCII characters, none of them a space")
        return key

    @property
    def frame_store_url(self) -> SecretUrl:
        """Return the folder or fsspec URL of the frame store, default applied."""
        return self.frame_store or SecretUrl(str(self.home / "frames"))

    def page_address(self, path: str = "") -> str:
        """Return the address of a page of the search service."""
        root = self.page_url or f"http://{url_host(self.host)}:{self.page_port}"
        return f"{root.rstrip('/')}/{path}"

    def recall_query_texts(self) -> list[str]:
        """Return the lines of ``recall_texts`` that hold a query.

        Raises:
            SettingsError: the file cannot be read.
        """
        if self.recall_texts is None:
            return []
        try:
            lines = self.recall_texts.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(
                f"SIGLIP_RECALL_TEXTS={self.recall_texts}: {error}; name a UTF-8 text file with a "
                "query a line"
            ) from error
        return [line.strip() for line in lines if line.strip()]

    @classmethod
    def load(cls, **overrides: Any) -> Self:
        """Read the environment; keyword arguments win over it. Empty variables are ignored.

        Args:
            overrides: values by the names of the fields, or of their variables.

        Raises:
            SettingsError: naming every variable whose value cannot be used.
        """
        # Without pydantic_settings: its import took a quarter of the time of a `search` that a
        # service answers.
        environment = {name.upper(): value for name, value in os.environ.items() if value}
        fields = {variable_of(field): field for field in cls.model_fields}
        given = {fields[name]: environment[name] for name in fields.keys() & environment.keys()}
        given |= {fields.get(name, name): value for name, value in overrides.items()}
        try:
            return cls(**given)
        except ValidationError as error:
            lines = [_problem(str(e["loc"][0]), e.get("input"), e["msg"]) for e in error.errors()]
            raise SettingsError("; ".join(lines) + " (docs/settings.md lists them all)") from error

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy with some values replaced, unchecked; wrap texts of secret settings."""
        changes = dict(update or {})
        for name, value in changes.items():
            if value is not None and (kind := secret_kind(name)) is not None:
                changes[name] = kind.of(value)
        return super().model_copy(update=changes, deep=deep)

    def environment(self) -> dict[str, str]:
        """Return these settings as environment variables for our own services, secrets included."""
        values: dict[str, str] = {}
        for name, value in self.model_dump().items():
            if value is not None:
                text = value.reveal() if isinstance(value, Secret) else str(value)
                values[variable_of(name)] = text
        return values

    def masked(self, text: str) -> str:
        """Return a text, such as a library's log message, without the secrets of these settings."""
        for name in type(self).model_fields:
            if isinstance(value := getattr(self, name), Secret):
                text = value.masked(text)
        return text


def misspelt_variables() -> list[str]:
    """Return a sentence for each variable of the environment whose name is nearly a setting's.

    Others that begin with ``SIGLIP_`` may be anybody's: Kubernetes makes some for a service.
    """
    variables = {variable_of(field) for field in Settings.model_fields}
    names = {name: name.upper() for name in os.environ if name.upper().startswith(_PREFIX)}
    others = sorted(name for name, upper in names.items() if upper not in variables)
    if not others:
        return []
    import difflib  # here: most environments have none

    known = {variable.removeprefix(_PREFIX): variable for variable in variables}
    sentences = []
    for name in others:
        tail = names[name].removeprefix(_PREFIX)
        if close := difflib.get_close_matches(tail, known, n=1, cutoff=0.8):
            sentences.append(
                f"{name} is no setting and has no effect; did you mean {known[close[0]]}?"
            )
    return sentences


def variable_of(field: str) -> str:
    """Return the environment variable that a field is read from."""
    info = Settings.model_fields.get(field)
    alias = info.validation_alias if info else None
    return alias if isinstance(alias, str) else f"{_PREFIX}{field.upper()}"


def secret_kind(field: str) -> type[Secret] | None:
    """Return the secret type of a field; None if its value may be shown."""
    info = Settings.model_fields.get(field)
    choices = get_args(info.annotation) or (info.annotation,) if info else ()
    return next((c for c in choices if isinstance(c, type) and issubclass(c, Secret)), None)


def _problem(field: str, value: object, message: str) -> str:
    """Return one line about one variable, masked: any value may be a URL with a password."""
    name = next((n for n in Settings.model_fields if field in (n, variable_of(n))), field)
    kind = secret_kind(name) or SecretUrl
    shown = repr(str(kind.of(value)) if isinstance(value, str | Secret) else value)
    return f"{variable_of(name)}={shown}: {message.removeprefix('Value error, ')}"


def child_environment(settings: Settings) -> dict[str, str]:
    """Return the environment of this process with ``settings`` written over it."""
    return {**os.environ, **settings.environment()}


def decoder_environment() -> dict[str, str]:
    """Return the environment of a decoding child: nothing that could be secret."""
    names = ("PATH", "LANG", "LANGUAGE", "TZ", "LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONUTF8")
    kept = {name: value for name, value in os.environ.items() if name in names}
    kept |= {name: value for name, value in os.environ.items() if name.startswith("LC_")}
    # Libraries must not start threads beside those of the decoder.
    return {**kept, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def compute_in_one_thread() -> None:
    """Have numpy compute in one thread, unless the environment says otherwise.

    Call it before numpy is imported. OpenBLAS's threads spin while they wait for each other: beside
    other work, the text tower took eight times the CPU time with two of them.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def bypass_proxies_on_this_machine() -> None:
    """Have no HTTP client of this process and its children ask a proxy for 127.0.0.1."""
    spared = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    names = [name for name in map(str.strip, spared.split(",")) if name]
    if "*" not in names:
        value = ",".join(dict.fromkeys([*names, "localhost", "127.0.0.1", "::1"]))
        os.environ |= {"no_proxy": value, "NO_PROXY": value}


def libpq_variables() -> list[str]:
    """Return the names of the variables that libpq reads, e.g. PGSERVICE."""
    return sorted(name for name in os.environ if re.fullmatch("PG[A-Z]+", name))


def drop_libpq_variables() -> None:
    """Drop libpq's variables from the environment of this process and its children.

    For use with the embedded database. They are meant for another one, and would apply to all that
    its URL leaves open.
    """
    for name in libpq_variables():
        del os.environ[name]


def restart_in_utf8_mode() -> None:
    """Start this program again in Python's UTF-8 mode, if the locale has another encoding.

    The names of uploads, our files and JSON are UTF-8 whatever the locale.
    """
    if not sys.flags.utf8_mode and locale.getencoding().upper() != "UTF-8":
        os.environ["PYTHONUTF8"] = "1"  # for children
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def set_shard(shard: str | None) -> None:
    """Set or unset ``SIGLIP_PART`` in this process's environment."""
    if shard is None:
        os.environ.pop("SIGLIP_PART", None)
    else:
        os.environ["SIGLIP_PART"] = shard


def keep_compiled_code(folder: Path) -> None:
    """Let torch keep what it compiles in a folder, for this process and its children."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)


@contextmanager
def process_environment(settings: Settings, **more: str) -> Iterator[None]:
    """Set the environment of this process to ``settings`` inside the block.

    Dagster builds its instance and its resources from the environment, and so do child processes.
    """
    before = dict(os.environ)
    os.environ.update(settings.environment(), **more)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
