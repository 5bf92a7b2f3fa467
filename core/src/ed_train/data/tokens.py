"""Token ids of captions, computed once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from ed_train.data.store import PackWriter, TensorStore

_IN_MEMORY = 50_000
_PER_CALL = 1024


class TokenCache:
    """Token ids of captions: on disk for those that are known before training, in memory for those that come up later.

    Attributes:
        store: where they are kept.
    """

    def __init__(self, folder: Path, load_tokenizer: Callable[[], Any], *, fingerprint: str) -> None:
        """Open the cache.

        Args:
            folder: where it is kept; may be shared.
            load_tokenizer: returns a transformers tokenizer whose `model_max_length` is the text encoder's, and that
                nobody else uses: fast tokenizers fail when two threads use one, and the loader's thread is one of
                them. Called when the first caption is not known.
            fingerprint: of the tokenizer's vocabulary and settings.

        Raises:
            ConfigError: the folder cannot be used.
        """
        self.store = TensorStore(folder)
        self._load_tokenizer = load_tokenizer
        self._fingerprint = fingerprint
        self._memory: dict[str, Tensor] = {}

    def add(self, captions: Iterable[str]) -> None:
        """Tokenize those captions that are not on disk yet, and write them.

        Raises:
            ConfigError: the folder cannot be written to.
        """
        texts = {key: text for text in captions if (key := self._key(text)) not in self.store}
        keys = list(texts)
        writer = PackWriter(self.store)  # in several packs: the header of one has room for half a million captions
        for start in range(0, len(keys), _PER_CALL):
            part = keys[start : start + _PER_CALL]
            for key, row in zip(part, self._tokenize([texts[key] for key in part]), strict=True):
                writer.add(key, row)
        writer.write()

    def get(self, captions: Sequence[str]) -> list[Tensor]:
        """Return the token ids of each caption, int64 [model_max_length], padded or cut to that length; read only."""
        if len(self._memory) > _IN_MEMORY:  # shuffled tags give new captions for ever
            self._memory.clear()
        unknown = []
        for caption in captions:
            if caption not in self._memory:
                key = self._key(caption)
                if key in self.store:
                    self._memory[caption] = self.store.get(key)
                else:
                    unknown.append(caption)
        if unknown:  # in one call, because most of its time does not depend on how many they are
            self._memory.update(zip(unknown, self._tokenize(unknown), strict=True))
        return [self._memory[caption] for caption in captions]

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer, loaded when it is first needed: it takes as long as opening all caches together."""
        return self._load_tokenizer()

    def _tokenize(self, texts: list[str]) -> Tensor:
        length = self.tokenizer.model_max_length
        encoded = self.tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        ids: Tensor = encoded.input_ids
        return ids

    def _key(self, text: str) -> str:
        return hashlib.sha256(f"{self._fingerprint}\n{text}".encode("utf-8", errors="surrogatepass")).hexdigest()
