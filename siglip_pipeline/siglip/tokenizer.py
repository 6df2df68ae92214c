"""Make token ids of texts with a checkpoint's own tokenizer. N texts, T tokens.

Where tokenizer.json holds all there is to know, as in the SigLIP 2 checkpoints, the library
`tokenizers` reads it in a tenth of the time that importing transformers takes. Other tokenizers,
such as the SentencePiece models of the first generation, are read by transformers.
"""

import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from siglip_pipeline.errors import UnsupportedModelError
from siglip_pipeline.records import IntArray
from siglip_pipeline.siglip.checkpoint import Checkpoint, read_json
from siglip_pipeline.siglip.quiet import quiet_transformers
from siglip_pipeline.siglip.recipe import Recipe

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_AS_WRITTEN = ("TokenizersBackend", "PreTrainedTokenizerFast")
"""Classes that use tokenizer.json as it is."""
_REBUILT = ("GemmaTokenizer", "GemmaTokenizerFast", "Siglip2Tokenizer")
"""Classes that take the vocabulary of tokenizer.json, and whose other parts are always these:"""
_GEMMA_NORMALIZERS = (
    {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    {
        "type": "Sequence",
        "normalizers": [
            {"type": "Lowercase"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ],
    },
)
_GEMMA_PRE_TOKENIZER = {
    "type": "Split",
    "pattern": {"String": " "},
    "behavior": "MergedWithPrevious",
    "invert": False,
}
_GEMMA_NAMED = {
    "unk_token": "<unk>",
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
}
_LEGACY = ("special_tokens_map.json", "added_tokens.json")
"""Files that transformers reads where tokenizer_config.json has no ``added_tokens_decoder``."""
_NAMES = (*_GEMMA_NAMED, "sep_token", "cls_token")


class Tokens(NamedTuple):
    """Texts as input of the text tower."""

    ids_NT: IntArray
    """With T = ``recipe.text_length``."""
    cut_N: list[int]
    """The number of truncated tokens of each text."""


class _Backend(Protocol):
    def encode(self, texts: Sequence[str], length: int) -> tuple[list[list[int]], list[int]]:
        """Return ids of exactly ``length`` tokens per text, and how many were truncated of each."""
        ...


class TextTokenizer:
    """Prepares texts as in SigLIP's training. Thread-safe; loads the tokenizer on first use."""

    def __init__(self, checkpoint: Checkpoint, recipe: Recipe) -> None:
        self._checkpoint = checkpoint
        self._length = recipe.text_length
        self._backend: _Backend | None = None
        # A tokenizer keeps its padding and truncation in shared state.
        self._lock = threading.Lock()

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Return texts as token ids.

        Lowercased here, as the tokenizers of ``siglip`` checkpoints with a Gemma vocabulary do not
        do it; padded to the full length, as the tower pools the last position.

        Raises:
            UnsupportedModelError: the tokenizer cannot be loaded, or is of another model.
        """
        with self._lock:
            if self._backend is None:
                self._backend = _load(self._checkpoint)
            ids, cut_N = self._backend.encode([text.lower() for text in texts], self._length)
        ids_NT = np.array(ids, np.int64).reshape(-1, self._length)
        vocabulary = int(self._checkpoint.text_config.get("vocab_size", 32_000))
        if ids_NT.size and int(ids_NT.max()) >= vocabulary:
            raise UnsupportedModelError(
                f"{self._checkpoint.name!r}: its tokenizer gives token {int(ids_NT.max())}, the "
                f"model knows {vocabulary}; tokenizer.json does not belong to config.json"
            )
        return Tokens(ids_NT, cut_N)


def _load(checkpoint: Checkpoint) -> _Backend:
    try:
        return _FileBackend.open(checkpoint) or _TransformersBackend(checkpoint.folder)
    except Exception as error:  # the Rust library raises plain Exception for a damaged file
        raise UnsupportedModelError(
            f"{checkpoint.name!r}: its tokenizer cannot be loaded ({error}). Needed are "
            "tokenizer.json or spiece.model beside config.json"
        ) from error


class _TransformersBackend:
    """Any tokenizer that transformers knows."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        with quiet_transformers():
            self._tokenizer: Any = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )

    def encode(self, texts: Sequence[str], length: int) -> tuple[list[list[int]], list[int]]:
        whole = self._tokenizer(texts, padding=False, truncation=False, verbose=False)["input_ids"]
        ids = self._tokenizer(texts, padding="max_length", max_length=length, truncation=True)
        return ids["input_ids"], [max(0, len(tokens) - length) for tokens in whole]


class _FileBackend:
    """A tokenizer.json."""

    def __init__(
        self, tokenizer: "Tokenizer", config: Mapping[str, Any], *, pad_id: int, pad_side: str
    ) -> None:
        self._tokenizer = tokenizer
        self._pad_id = pad_id
        padding, truncation = tokenizer.padding or {}, tokenizer.truncation or {}
        self._pad_side = config.get("padding_side") or padding.get("direction") or pad_side
        self._cut_side = config.get("truncation_side") or truncation.get("direction") or "right"
        tokenizer.no_padding()

    @classmethod
    def open(cls, checkpoint: Checkpoint) -> "_FileBackend | None":
        """Return the tokenizer of a checkpoint; None where transformers might read it otherwise."""
        files = {file.name: file for file in checkpoint.tokenizer_files}
        if not {"tokenizer.json", "tokenizer_config.json"} <= files.keys():
            return None
        config = read_json(files["tokenizer_config.json"], checkpoint.name)
        if "added_tokens_decoder" not in config and not files.keys().isdisjoint(_LEGACY):
            return None
        kind = config.get("tokenizer_class")
        # transformers rebuilds the tokenizers of NaFlex checkpoints, whatever their class.
        is_rebuilt = kind in _REBUILT or checkpoint.family == "siglip2"
        if not (is_rebuilt or kind in _AS_WRITTEN):
            return None
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(files["tokenizer.json"]))
        if is_rebuilt and not _is_gemma(tokenizer):
            return None
        named = _named_tokens(tokenizer, config, defaults=_GEMMA_NAMED if is_rebuilt else {})
        pad_id = None if named is None else tokenizer.token_to_id(named.get("pad_token", ""))
        if named is None or pad_id is None:
            return None
        pad_side = "left" if is_rebuilt else "right"  # where neither file names one
        return cls(tokenizer, config, pad_id=pad_id, pad_side=pad_side)

    def encode(self, texts: Sequence[str], length: int) -> tuple[list[list[int]], list[int]]:
        self._tokenizer.no_truncation()
        found = self._tokenizer.encode_batch(texts)
        cut = [max(0, len(encoding.ids) - length) for encoding in found]
        if any(cut):
            self._tokenizer.enable_truncation(length, direction=self._cut_side)
            found = self._tokenizer.encode_batch(texts)
        for encoding in found:
            encoding.pad(length, direction=self._pad_side, pad_id=self._pad_id)
        return [encoding.ids for encoding in found], cut


def _is_gemma(tokenizer: "Tokenizer") -> bool:
    """Return whether the parts of a tokenizer are those of transformers' Gemma class."""
    model: Any = tokenizer.model
    return (
        type(model).__name__ == "BPE"
        and bool(model.byte_fallback and model.fuse_unk and model.dropout is None)
        and _json_of(tokenizer.normalizer) in _GEMMA_NORMALIZERS
        and _json_of(tokenizer.pre_tokenizer) == _GEMMA_PRE_TOKENIZER
    )


def _json_of(component: Any) -> Any:
    return None if component is None else json.loads(component.__getstate__())


def _named_tokens(
    tokenizer: "Tokenizer", config: Mapping[str, Any], *, defaults: Mapping[str, str]
) -> dict[str, str] | None:
    """Return the special tokens by name; None if the file lacks one, so that it would be added."""
    added = {number: str(token.content) for number, token in _added(tokenizer).items()}
    declared = config.get("added_tokens_decoder")
    if declared is not None and {int(n): t["content"] for n, t in declared.items()} != added:
        return None
    named = dict(defaults)
    for name in _NAMES:
        token = config.get(name)
        if token is not None:
            named[name] = token["content"] if isinstance(token, Mapping) else str(token)
    extra = [*(config.get("additional_special_tokens") or ())]
    extra += [*(config.get("extra_special_tokens") or ())]
    texts = [token["content"] if isinstance(token, Mapping) else token for token in extra]
    return named if {*named.values(), *texts} <= set(added.values()) else None


def _added(tokenizer: "Tokenizer") -> Mapping[int, Any]:
    found: Mapping[int, Any] = tokenizer.get_added_tokens_decoder()
    return found
