"""The recall check: compare an index with an exact search, and measure its latency."""

from siglip_pipeline.store.index.recall.check import check_recall
from siglip_pipeline.store.index.recall.history import PastCheck, recall_history, record_check
from siglip_pipeline.store.index.recall.recall_report import RecallCase, RecallReport
from siglip_pipeline.store.index.recall.truth_ahead import truth_ahead

__all__ = [
    "PastCheck",
    "RecallCase",
    "RecallReport",
    "check_recall",
    "recall_history",
    "record_check",
    "truth_ahead",
]
