"""What the frozen front of a text encoder makes of each caption, computed once and kept on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from ed_train.data.store import PackWriter, TensorStore
from ed_train.progress import progress_bar

EncodeText: TypeAlias = Callable[[Tensor], Tensor]
"""Token ids [n, tokens] to embeddings or hidden states [n, tokens, width]."""


class EmbeddingCache:
    """Embeddings, or hidden states, by the token ids of their caption.

    Use: `build` once before training with everything that it needs; then `get`.
    """

    def __init__(self, folder: Path, *, key: str, rows: int, progress: bool = True) -> None:
        """Open the cache.

        Args:
            folder: where it is kept; several runs, models and precisions may share it.
            key: everything beside the token ids that the entries depend on.
            rows: captions that are encoded at once, always as many.
            progress: show a bar.

        Raises:
            ConfigError: the folder cannot be used.
        """
        self.store = TensorStore(folder)
        self._key, self._rows, self._progress = key.encode(), rows, progress

    def missing(self, token_ids: Iterable[Tensor]) -> list[Tensor]:
        """Return those of the captions that have no entry, each once; takes in what other processes have added."""
        self.store.refresh()
        return list({key: ids for ids in token_ids if (key := self._name(ids)) not in self.store}.values())

    def build(self, token_ids: Iterable[Tensor], encode: EncodeText, *, rank: int = 0, world: int = 1) -> None:
        """Encode what is missing. May be interrupted: what is done is kept.

        Rows are filled up to the same number in each call: on a GPU the number of rows decides about rounding.

        Args:
            token_ids: of each caption, int64 [tokens].
            encode: calls the text encoder; never called if nothing is missing.
            rank: of this process; it takes every `world`-th caption.
            world: number of processes.

        Raises:
            ConfigError: the cache folder cannot be written to.
        """
        work = self.missing(token_ids)[rank::world]
        writer = PackWriter(self.store)
        try:
            with progress_bar("encoding captions", len(work), "caption", shown=self._progress) as bar:
                for start in range(0, len(work), self._rows):
                    part = work[start : start + self._rows]
                    filled = [*part, *[part[-1]] * (self._rows - len(part))]
                    for ids, row in zip(part, encode(torch.stack(filled)).cpu(), strict=False):
                        writer.add(self._name(ids), row)
                    bar.update(len(part))
        finally:
            writer.write()

    def get(self, token_ids: Sequence[Tensor]) -> list[Tensor] | None:
        """Return the entry of each caption, [tokens, width], read only; None if any is missing."""
        names = [self._name(ids) for ids in token_ids]
        return [self.store.get(name) for name in names] if all(name in self.store for name in names) else None

    def _name(self, token_ids: Tensor) -> str:
        return hashlib.sha256(self._key + token_ids.numpy().tobytes()).hexdigest()
