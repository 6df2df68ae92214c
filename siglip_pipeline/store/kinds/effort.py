"""How far a search goes into an index, as the parameters of a generation hold it."""

from dataclasses import dataclass
from typing import Any

from siglip_pipeline.records import FloatArray
from siglip_pipeline.store.kinds.modality import Modality, dividing_plane, modality_of

# One value for all queries: of earlier versions, and where no texts are known.
_EF_SEARCH = "effort"
_EF_SEARCHES, _ROWS, _IN_SCOPE, _PLANE = "efforts", "rows", "in_scope", "plane"

IN_SCOPE = (0.7, 1, 2, 4)
"""What the recall check tries as :attr:`Effort.in_scope`; the last where no check has chosen. With
0.5, texts lost a hit of a hundred at five million frames (decision 0127)."""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Effort:
    """How much of an index a search reads."""

    ef_search: int
    """Of HNSW: how many rows of the graph it holds while it walks; ``probes`` of IVFFlat."""
    rows: int
    """The nearest of these whose frames are compared with the query."""
    in_scope: float = IN_SCOPE[-1]
    """How many times as far a walk in a filter goes for the share of the moments that the filter
    keeps: its best may be far from the best of all."""


def efforts(*ef_searches: int) -> tuple[Effort, ...]:
    """Return efforts that compare all rows."""
    return tuple(Effort(ef_search=ef_search, rows=ef_search) for ef_search in ef_searches)


def chosen_efforts(
    chosen: dict[Modality, Effort], pictures_QD: FloatArray, texts_QD: FloatArray
) -> dict[str, Any]:
    """Return the parameters of a generation that :func:`effort_for` reads.

    Args:
        chosen: of each modality.
        pictures_QD: picture queries.
        texts_QD: text queries.
    """
    return effort_for_all(chosen) | {
        _EF_SEARCHES: {modality: effort.ef_search for modality, effort in chosen.items()},
        _ROWS: {modality: effort.rows for modality, effort in chosen.items()},
        _IN_SCOPE: {modality: effort.in_scope for modality, effort in chosen.items()},
        _PLANE: dividing_plane(pictures_QD, texts_QD),
    }


def effort_for_all(chosen: dict[Modality, Effort]) -> dict[str, Any]:
    """Return the parameters of a generation whose queries all have the largest effort."""
    return {_EF_SEARCH: max(effort.ef_search for effort in chosen.values())}


def effort_for(parameters: dict[str, Any], query_QD: FloatArray) -> Effort | None:
    """Return the effort for the modality of a query, or for all; None if no check chose one."""
    if _PLANE not in parameters:
        ef_search = parameters.get(_EF_SEARCH)
        return None if ef_search is None else Effort(ef_search=ef_search, rows=ef_search)
    modality = modality_of(parameters[_PLANE], query_QD)
    ef_search = parameters[_EF_SEARCHES][modality]
    return Effort(
        ef_search=ef_search,
        rows=parameters.get(_ROWS, {}).get(modality, ef_search),
        in_scope=parameters.get(_IN_SCOPE, {}).get(modality, IN_SCOPE[-1]),
    )
