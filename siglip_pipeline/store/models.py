"""Store models side by side: each has its own tables, and search uses the active one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import sql
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from siglip_pipeline.errors import ModelNotFoundError, StoreError
from siglip_pipeline.records import ModelSpec, Stage
from siglip_pipeline.store import tables
from siglip_pipeline.store.database import LOCK_MIGRATE, LOCK_MODEL, Connection, Database
from siglip_pipeline.store.frames_table import VACUUM, create_frames, with_options
from siglip_pipeline.text.in_words import counted

DEFAULT_MOMENT_THRESHOLD = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRow:
    """A registered model."""

    model_id: int
    key: str
    name: str
    revision: str | None
    dim: int
    logit_scale: float
    """Natural logarithm of the scale, as stored in the checkpoint."""
    logit_bias: float
    preprocess: dict[str, Any]
    moment_threshold: float
    is_active: bool
    active_generation: int | None
    """The published index generation; None before the first one."""

    @property
    def spec(self) -> ModelSpec:
        """Return the record that the model was registered with."""
        return ModelSpec(
            name=self.name,
            revision=self.revision,
            key=self.key,
            dim=self.dim,
            logit_scale=self.logit_scale,
            logit_bias=self.logit_bias,
            preprocess=self.preprocess,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """How many of the decoded videos a model has embedded."""

    embedded: int
    """Current: the stored vectors are of the decoded source and sampling."""
    missing: int
    """Decoded, not embedded, and without a failure."""
    failed: int
    """Decoded, not embedded, and the last try failed."""
    frames: int
    """Vectors stored under the model."""
    lost: int
    """Searchable under the active model, but not under this one."""

    @property
    def total(self) -> int:
        """Return the number of decoded videos."""
        return self.embedded + self.missing + self.failed

    @property
    def complete(self) -> bool:
        """Return whether the model misses no video, and a switch to it loses none from search."""
        return self.missing == 0 and self.lost == 0


_COLUMNS = sql.SQL(
    "model_id, model_key AS key, name, revision, dim, logit_scale, logit_bias, preprocess,"
    " moment_threshold, is_active, active_generation"
)

_CREATE_MOMENTS = """
CREATE TABLE {} (
    video_id integer NOT NULL, moment integer NOT NULL,
    first_frame integer NOT NULL, last_frame integer NOT NULL,
    start_seconds double precision NOT NULL, end_seconds double precision NOT NULL,
    PRIMARY KEY (video_id, moment)
){}
"""


class ModelStore:
    """The table of models."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def register(
        self,
        spec: ModelSpec,
        *,
        moment_threshold: float = DEFAULT_MOMENT_THRESHOLD,
        table_limit: int = 0,
    ) -> int:
        """Create a model's tables unless they exist; return its id.

        Args:
            spec: the model.
            moment_threshold: of the moments that are cut before the first index is built.
            table_limit: decoded frames from which the table of frames is partitioned; 0 for never.

        Raises:
            StoreError: a model of another dimension has this key.
        """
        with self._database.connection() as connection:
            known = _find(connection, spec.key)
            if known is None:
                connection.execute("SELECT pg_advisory_xact_lock(%s, 1)", [LOCK_MIGRATE])
                known = _find(connection, spec.key) or _insert(
                    connection, spec, moment_threshold, table_limit
                )
        if known.dim != spec.dim:
            raise StoreError(
                f"model key {spec.key} has {known.dim} dimensions in the database, {spec.dim} here"
            )
        return known.model_id

    def active(self) -> ModelRow | None:
        """Return the model that search uses; None before the first index is published."""
        return self._one(sql.SQL("is_active"), [])

    def get(self, model: int | str) -> ModelRow:
        """Return a model by id or key.

        Raises:
            ModelNotFoundError: no such model; names those that exist.
        """
        column = "model_id" if isinstance(model, int) else "model_key"
        row = self._one(sql.SQL("{} = %s").format(sql.Identifier(column)), [model])
        if row is None:
            keys = ", ".join(r.key for r in self.list()) or "none"
            raise ModelNotFoundError(f"no model {model!r} in the database; there are: {keys}")
        return row

    def list(self) -> list[ModelRow]:
        """Return all models, oldest first."""
        with (
            self._database.connection() as connection,
            connection.cursor(row_factory=class_row(ModelRow)) as cursor,
        ):
            query = sql.SQL("SELECT {} FROM models ORDER BY model_id").format(_COLUMNS)
            return cursor.execute(query).fetchall()

    def _one(self, condition: sql.Composable, values: Sequence[Any]) -> ModelRow | None:
        with self._database.connection() as connection:
            return _select(connection, condition, values)

    def coverage(self, model_id: int) -> Coverage:
        """Return how many of the decoded videos the model has embedded."""
        with self._database.connection() as connection:
            return read_coverage(connection, model_id)

    def promote(self, key: str, *, force: bool = False, objections: Sequence[str] = ()) -> ModelRow:
        """Make this model the active one, in one transaction. Promote the old one to go back.

        Args:
            key: the key of a model with a published index.
            force: promote it whatever speaks against it; the table of promotions keeps what.
            objections: what speaks against it, besides that it may cover fewer videos.

        Raises:
            ModelNotFoundError: no such key.
            StoreError: no published index, or something speaks against it; gives the numbers.
        """
        model = self.get(key)
        with self._database.connection() as connection:
            # Nothing may be loaded or published between the count and the switch.
            connection.execute("SELECT pg_advisory_xact_lock(%s, %s)", [LOCK_MODEL, model.model_id])
            connection.execute("SELECT 1 FROM models ORDER BY model_id FOR UPDATE")
            fresh = _select(connection, sql.SQL("model_id = %s"), [model.model_id])
            assert fresh is not None
            if fresh.active_generation is None:
                raise StoreError(
                    f"model {key} has no published index; materialize similarity_index with "
                    f"SIGLIP_MODEL_NAME={model.name} first"
                )
            covered = read_coverage(connection, model.model_id)
            against = list(objections)
            if not covered.complete:
                against.append(
                    f"model {key} covers {covered.embedded} of {counted(covered.total, 'video')} "
                    f"({covered.missing} missing, {covered.failed} failed, {covered.lost} of them "
                    "searchable now and lost by the switch); embed them first, or use --force"
                )
            if against and not force:
                raise StoreError("\n".join(against))
            activate(connection, model.model_id, overridden="\n".join(against) or None)
        return self.get(key)

    def drop(self, key: str) -> None:
        """Delete a model with all its vectors and indexes.

        Raises:
            ModelNotFoundError: no such key.
            StoreError: it is the active one.
        """
        model = self.get(key)
        with self._database.connection() as connection:
            connection.execute("SELECT pg_advisory_xact_lock(%s, %s)", [LOCK_MODEL, model.model_id])
            row = _select(connection, sql.SQL("model_id = %s FOR UPDATE"), [model.model_id])
            if row is None:
                return
            if row.is_active:
                raise StoreError(f"model {key} is active; promote another one first")
            generations = connection.execute(
                "SELECT generation FROM generations WHERE model_id = %s", [model.model_id]
            ).fetchall()
            unused = [tables.frames(model.model_id), tables.moments(model.model_id)]
            unused += [tables.frames_copy(model.model_id), tables.frames_copied(model.model_id)]
            for (g,) in generations:
                unused += [
                    named(model.model_id, int(g)) for named in (tables.index, tables.clusters)
                ]
            for table in unused:
                connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(table))
            connection.execute("DELETE FROM models WHERE model_id = %s", [model.model_id])


def activate(connection: Connection, model_id: int, *, overridden: str | None = None) -> None:
    """Make a model the active one and record it, within the caller's transaction.

    Args:
        connection: in the transaction.
        model_id: the model.
        overridden: what spoke against it.
    """
    connection.execute(
        """
        INSERT INTO promotions (model_key, replaced_key, overridden)
        SELECT model_key, (SELECT model_key FROM models WHERE is_active), %s
        FROM models WHERE model_id = %s
        """,
        [overridden, model_id],
    )
    connection.execute("UPDATE models SET is_active = false WHERE is_active")
    connection.execute("UPDATE models SET is_active = true WHERE model_id = %s", [model_id])


def read_coverage(connection: Connection, model_id: int) -> Coverage:
    """Return :meth:`ModelStore.coverage`, within the caller's transaction."""
    [row] = connection.execute(
        """
        WITH decoded AS (
            SELECT v.video_id,
                   i.video_id IS NOT NULL AND i.source_sha256 = v.source_sha256
                       AND i.sampling = v.sampling AS current,
                   i.video_id IS NOT NULL AS searchable,
                   EXISTS (SELECT FROM failures f WHERE f.video_id = v.video_id
                           AND f.stage = %(vectors)s) AS failed,
                   EXISTS (SELECT FROM ingests a JOIN models m USING (model_id)
                           WHERE a.video_id = v.video_id AND m.is_active) AS in_active
            FROM videos v LEFT JOIN ingests i ON i.video_id = v.video_id AND i.model_id = %(model)s
            WHERE v.source_sha256 IS NOT NULL
        )
        SELECT count(*) FILTER (WHERE current),
               count(*) FILTER (WHERE NOT current AND NOT failed),
               count(*) FILTER (WHERE NOT current AND failed),
               (SELECT coalesce(sum(frames), 0) FROM ingests WHERE model_id = %(model)s),
               count(*) FILTER (WHERE in_active AND NOT searchable)
        FROM decoded
        """,
        {"model": model_id, "vectors": Stage.VECTORS},
    )
    embedded, missing, failed, frames, lost = map(int, row)
    return Coverage(embedded=embedded, missing=missing, failed=failed, frames=frames, lost=lost)


def _select(
    connection: Connection, condition: sql.Composable, values: Sequence[Any]
) -> ModelRow | None:
    with connection.cursor(row_factory=class_row(ModelRow)) as cursor:
        query = sql.SQL("SELECT {} FROM models WHERE {}").format(_COLUMNS, condition)
        return cursor.execute(query, values).fetchone()


def _find(connection: Connection, key: str) -> ModelRow | None:
    return _select(connection, sql.SQL("model_key = %s"), [key])


def _insert(
    connection: Connection, spec: ModelSpec, moment_threshold: float, table_limit: int
) -> ModelRow:
    connection.execute(
        """
        INSERT INTO models (model_key, name, revision, dim, preprocess, logit_scale, logit_bias,
        moment_threshold) VALUES (%s, %s, %s, %s, %s, %s, %s, %s)
        """,
        [
            spec.key,
            spec.name,
            spec.revision,
            spec.dim,
            Jsonb(spec.preprocess),
            spec.logit_scale,
            spec.logit_bias,
            moment_threshold,
        ],
    )
    row = _find(connection, spec.key)
    assert row is not None
    create_frames(connection, row.model_id, spec.dim, table_limit=table_limit)
    connection.execute(
        sql.SQL(_CREATE_MOMENTS).format(tables.moments(row.model_id), with_options(VACUUM))
    )
    return row
