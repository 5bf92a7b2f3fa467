"""VAE latents and token ids, computed once and kept on disk under a key over everything that they depend on."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ed_train.data.buckets import Size
from ed_train.data.files import reason
from ed_train.data.hashes import ImageHashes
from ed_train.data.images import crop_box, fit, load_image
from ed_train.data.scan import ImageItem, Skipped
from ed_train.data.store import PackWriter, TensorStore
from ed_train.errors import ConfigError, Problem
from ed_train.progress import progress_bar

if TYPE_CHECKING:
    from tqdm import tqdm

FORMAT = 1
"""Part of every key: raise it when the same file would give other pixels."""

Encode: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Pixels [n, 3, height, width] in -1 to 1 to mean and standard deviation of the VAE's posterior, each [n, c, h, w]."""

_PIXELS_PER_CALL = 4 * 512 * 512


class LatentCache:
    """The VAE's posterior of every crop and flip of every image that training needs.

    Use: if `missing()` is not empty, load the VAE and `build`; then keep what is in `usable()`, and `get`.
    """

    def __init__(
        self,
        folder: Path,
        items: Sequence[ImageItem],
        buckets: Sequence[Size],
        *,
        vae: str,
        crops: int = 1,
        jobs: int = 4,
        progress: bool = True,
    ) -> None:
        """Open the cache.

        Args:
            folder: where it is kept; several data sets, VAEs and runs may share it.
            items: the images.
            buckets: the size in pixels, width and height, that each is scaled to.
            vae: fingerprint of the VAE's weights and precision.
            crops: how many crops of each image there are; crop 0 is centred.
            jobs: threads that hash and decode.
            progress: show bars.

        Raises:
            ConfigError: the folder cannot be used.
        """
        self.store = TensorStore(folder)
        self._hashes = ImageHashes(folder / "images.json")
        self._items = items
        self._bucket = {item.path: bucket for item, bucket in zip(items, buckets, strict=True)}
        self._content: dict[Path, str] = {}
        self._failed: dict[Path, str] = {}
        self._vae, self._crops, self._jobs, self._progress = vae, crops, jobs, progress

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Images found to be unusable so far, with the reason."""
        return tuple(Skipped(path, why) for path, why in sorted(self._failed.items()))

    def get(self, path: Path, crop: int, flip: bool) -> Tensor:
        """Return mean and standard deviation of one entry, stacked: fp32 [2 * c, height / 8, width / 8]; read only.

        Raises:
            KeyError: it has not been built.
        """
        return self.store.get(self._key(path, crop, flip))

    def content(self, path: Path) -> str:
        """The hash of a picture's file."""
        return self._content[path]

    def missing(self) -> list[ImageItem]:
        """Return the images of which something has to be encoded. Unless files have changed, none of them is read."""
        self.store.refresh()
        self._hash_contents()
        return [item for item in self._items if item.path not in self._failed and any(self._missing_entries(item))]

    def usable(self) -> list[int]:
        """Return the indices of the items that are complete. Call it after `build`.

        With several processes call it after all have built and met, and all come to the same answer.

        Raises:
            ConfigError: not one image that training would use is complete; says why.
        """
        for item in self.missing():
            self._failed[item.path] = "another process could not encode it"
        usable = [index for index, item in enumerate(self._items) if item.path not in self._failed]
        if any(self._items[index].multiply > 0 for index in usable):
            return usable
        examples = "; ".join(map(str, self.skipped[:3]))
        raise ConfigError([Problem("", "data_root", f"none of {len(self._items)} images can be used: {examples}")])

    def build(self, encode: Encode, *, rank: int = 0, world: int = 1) -> tuple[Skipped, ...]:
        """Encode what is missing, decoding pictures in threads meanwhile. May be interrupted: what is done is kept.

        Args:
            encode: calls the VAE; never called if nothing is missing.
            rank: of this process; it takes every `world`-th image.
            world: number of processes.

        Returns:
            The images that cannot be used: unreadable, truncated, vanished, or not finite after encoding.

        Raises:
            ConfigError: the cache folder cannot be written to, or no image at all can be used.
        """
        mine = {item.path for item in self._items[rank::world]}
        work = sorted((item for item in self.missing() if item.path in mine), key=lambda i: self._bucket[i.path])
        pending = PackWriter(self.store)
        try:
            with (
                progress_bar("encoding images", len(work), "image", shown=self._progress) as bar,
                closing(self._decoded(work, bar)) as decoded,
                warnings.catch_warnings(),
            ):
                warnings.filterwarnings("ignore", module=r"PIL\.")  # about large pictures and damaged EXIF data
                for _, entries in groupby(decoded, key=lambda entry: entry.pixels.shape):
                    for batch in _in_batches(entries):
                        self._encode(encode, batch, pending)
        finally:
            pending.write()
            self._hashes.save()
        if world == 1:
            self.usable()
        return self.skipped

    def _encode(self, encode: Encode, batch: Sequence[_Entry], pending: PackWriter) -> None:
        pixels = torch.from_numpy(np.stack([entry.pixels for entry in batch])).permute(0, 3, 1, 2)
        # In the usual layout: torch's group norm on a CPU loses up to three digits with channels last.
        mean, std = encode(pixels.contiguous() / 127.5 - 1.0)
        latents = torch.cat([mean, std], dim=1).float().cpu()
        for entry, latent in zip(batch, latents, strict=True):
            if latent.isfinite().all():
                pending.add(entry.key, latent)
            else:
                self._failed[entry.path] = "the VAE gives values that are not finite (NaN)"

    def _decoded(self, work: Sequence[ImageItem], bar: tqdm[Any]) -> Generator[_Entry, None, None]:
        """The entries of each image in turn, decoded in threads a few images ahead."""
        pool = ThreadPoolExecutor(self._jobs)
        ahead = 2 * self._jobs
        try:
            waiting = deque((item, pool.submit(self._entries, item)) for item in work[:ahead])
            for following in [*work[ahead:], *[None] * len(waiting)]:
                yield from self._finished(*waiting.popleft())
                bar.update()
                if following:
                    waiting.append((following, pool.submit(self._entries, following)))
        finally:
            pool.shutdown(cancel_futures=True)

    def _finished(self, item: ImageItem, decoding: Future[list[_Entry]]) -> list[_Entry]:
        try:
            return decoding.result()
        except Exception as error:  # decoders raise all sorts of things, and one bad image must not end a run
            self._failed[item.path] = reason(error)
            if getattr(error, "errno", None) is None and not isinstance(error, MemoryError):
                self._hashes.mark_undecodable(self._content[item.path], reason(error))
            return []

    def _entries(self, item: ImageItem) -> list[_Entry]:
        bucket = self._bucket[item.path]
        image = load_image(item.path, cover=bucket)
        entries, crops = [], {}
        for crop, flip in self._missing_entries(item):
            if crop not in crops:
                box = crop_box(image.size, bucket, crop, seed=self._content[item.path])
                crops[crop] = fit(image, bucket, box)
            pixels = np.ascontiguousarray(crops[crop][:, ::-1]) if flip else crops[crop]
            entries.append(_Entry(item.path, self._key(item.path, crop, flip), pixels))
        return entries

    def _missing_entries(self, item: ImageItem) -> Iterator[tuple[int, bool]]:
        if item.multiply > 0:
            for crop in range(self._crops):
                for flip in (False, True) if item.flip_p > 0 else (False,):
                    if self._key(item.path, crop, flip) not in self.store:
                        yield crop, flip

    def _key(self, path: Path, crop: int, flip: bool) -> str:
        parts = [FORMAT, self._vae, self._content[path], *self._bucket[path], crop, flip]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def _hash_contents(self) -> None:
        paths = [item.path for item in self._items if item.path not in self._content]

        def content(path: Path) -> str | Exception:
            try:
                return self._hashes.content(path)
            except OSError as error:
                return error

        with ThreadPoolExecutor(self._jobs) as pool:
            found = pool.map(content, paths)
            bar = progress_bar(
                "checking images", len(paths), "image", shown=self._progress, iterable=found, leave=False, delay=2
            )
            for path, result in zip(paths, bar, strict=True):
                if isinstance(result, Exception):
                    self._failed[path] = reason(result)
                    continue
                self._content[path] = result
                if why := self._hashes.why_undecodable(result):
                    self._failed[path] = why
        self._hashes.save()


def vae_encoder(vae: Any, device: torch.device) -> Encode:
    """What `LatentCache.build` calls: a VAE that is on the device.

    How many pictures are encoded at once decides about the last bits. A CPU encodes each alone, so that a cache is the
    same in whatever portions it was filled; that takes it less time, too, since more of a picture stays in its caches.
    """

    @torch.inference_mode()
    def encode(pixels: Tensor) -> tuple[Tensor, Tensor]:
        at_once = 1 if device.type == "cpu" else len(pixels)
        posteriors = [vae.encode(part).latent_dist for part in torch.split(pixels.to(device), at_once)]
        return torch.cat([p.mean for p in posteriors]), torch.cat([p.std for p in posteriors])

    return encode


@dataclass(frozen=True)
class _Entry:
    path: Path
    key: str
    pixels: NDArray[np.uint8]  # [height, width, 3]


def _in_batches(entries: Iterable[_Entry]) -> Iterator[list[_Entry]]:
    """Entries of one size, as many at a time as make about a million pixels."""
    batch: list[_Entry] = []
    for entry in entries:
        batch.append(entry)
        if (len(batch) + 1) * entry.pixels.size > 3 * _PIXELS_PER_CALL:
            yield batch
            batch = []
    if batch:
        yield batch
