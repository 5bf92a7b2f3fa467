"""Batches for training, prepared by a thread while the step before them runs."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ed_train.data.buckets import Size
from ed_train.data.embeddings import EmbeddingCache
from ed_train.data.encode import LatentCache
from ed_train.data.epochs import Epochs, Fading
from ed_train.data.files import shown
from ed_train.data.plan import BatchPlan, SamplePlan, plan_epoch
from ed_train.data.scan import ImageItem
from ed_train.data.tokens import TokenCache
from ed_train.errors import EdTrainError

_AHEAD = 2


def shuffles(items: Sequence[ImageItem], shuffle_tags: bool) -> bool:
    """Whether the caption of any image is shuffled: by its own files, or by the run's `shuffle_tags`."""
    return any(shuffle_tags if item.shuffle_tags is None else item.shuffle_tags for item in items)


@dataclass(frozen=True)
class Batch:
    """What one process trains on in one step.

    Attributes:
        latents_mean: mean of the VAE's posterior, not scaled: fp32 [b, c, h, w].
        latents_std: its standard deviation, likewise.
        token_ids: int64 [b, tokens].
        text: what `EmbeddingCache` has for them, [b, tokens, width]; None if it has not all of them.
        loss_scale: 1, or (real / size) ** 1.5 of a global batch that was filled up with repeats.
        images: the file of each sample.
        all_images: the files of the whole global batch, of which this is one process's part.
        captions: the prompt of each; empty where conditional dropout took it.
        weights: factor of each sample's loss, fp32 [b]; None where all are 1.
    """

    latents_mean: Tensor
    latents_std: Tensor
    token_ids: Tensor
    text: Tensor | None
    loss_scale: float
    images: tuple[Path, ...]
    all_images: tuple[Path, ...]
    captions: tuple[str, ...]
    weights: Tensor | None = None


class BatchLoader:
    """Batches in the order of `plan_epoch`.

    Attributes:
        epochs: which pictures each epoch has.
        text: the cache that batches take embeddings from, if there is one.
    """

    def __init__(
        self,
        items: Sequence[ImageItem],
        buckets: Sequence[Size],
        latents: LatentCache,
        tokens: TokenCache,
        *,
        batch_size: int,
        crops: int = 1,
        shuffle_tags: bool = False,
        keep_tags: int = 0,
        seed: int = 0,
        fading: Fading | None = None,
        pin_memory: bool = False,
    ) -> None:
        """Set up a loader.

        Args:
            items: the usable images.
            buckets: the bucket of each.
            latents: holds every crop and flip of them.
            tokens: token ids.
            batch_size: of all processes together.
            crops: how many crops of each image `latents` holds.
            shuffle_tags: see `Caption.render`.
            keep_tags: see `Caption.render`.
            seed: of the run; with the number of the epoch decides everything.
            fading: how later epochs leave pictures out, if they do.
            pin_memory: put batches into page-locked memory, for an asynchronous copy to a GPU.
        """
        self._items, self._buckets, self._latents, self._tokens = items, buckets, latents, tokens
        self._batch_size, self._crops, self._seed = batch_size, crops, seed
        self.epochs = Epochs(items, buckets, batch_size, seed=seed, fading=fading)
        self.text: EmbeddingCache | None = None
        self._shuffle_tags, self._keep_tags, self._pin_memory = shuffle_tags, keep_tags, pin_memory

    @property
    def sizes(self) -> set[Size]:
        """The buckets of all images that are used."""
        return {bucket for item, bucket in zip(self._items, self._buckets, strict=True) if item.multiply > 0}

    def described(self, epoch: int) -> Iterator[dict[str, Any]]:
        """The plan of an epoch with the names of the pictures, a JSON object for each batch."""
        for number, batch in enumerate(self.plan(epoch)):
            samples = [{"image": shown(self._items[s.item].path), **asdict(s)} for s in batch.samples]
            yield {"epoch": epoch, "batch": number, "size": batch.bucket, "own": batch.real, "samples": samples}

    def fingerprint(self, epoch: int) -> str:
        """A hash of everything that an epoch's batches hold: order, pictures by their content, crops, captions."""
        digest = hashlib.sha256(f"{self._batch_size}".encode())
        for batch in self.plan(epoch):
            for s in batch.samples:
                item = self._items[s.item]
                sample = [batch.bucket, batch.real, self._latents.content(item.path), s.crop, s.flip, s.caption]
                sample += [item.loss_scale] if item.loss_scale != 1 else []
                digest.update(json.dumps(sample).encode())
        return digest.hexdigest()

    @property
    def token_ids(self) -> list[Tensor]:
        """The token ids of every caption that is known before training: those of `captions`, and of the empty one."""
        return self._tokens.get(["", *self.captions])

    @property
    def captions(self) -> list[str]:
        """The captions of all images, unshuffled."""
        return [item.whole_caption for item in self._items]

    @property
    def shuffles(self) -> bool:
        """Whether any caption is shuffled, so that new ones come up all the time."""
        return shuffles(self._items, self._shuffle_tags)

    def iterate(self, epoch: int, start: int = 0, rank: int = 0, world: int = 1) -> Generator[Batch]:
        """Yield this process's part of each batch of an epoch. Close the iterator to end its thread at once.

        Args:
            epoch: from 0.
            start: the first batch to yield, from 0; those before it cost nothing.
            rank: of this process, from 0.
            world: number of processes; it divides the batch size.

        Raises:
            EdTrainError: the epoch does not have the batches that were counted, or none after `start`; whoever counts
                batches to know when it ends would wait for ever.
        """
        share = self._batch_size // world
        part = slice(rank * share, (rank + 1) * share)
        pool = ThreadPoolExecutor(1, thread_name_prefix="batches")
        try:
            plans, counted = pool.submit(self.plan, epoch).result(), self.epochs.batches(epoch)
            if not start < len(plans) == counted:
                numbers = f"{len(plans)} batches are planned, {counted} were counted and {start} are done"
                advice = "go on from another checkpoint, or begin a new run"
                raise EdTrainError(f"epoch {epoch + 1} does not add up: {numbers}; {advice}")
            plans = plans[start:]
            waiting = deque(pool.submit(self._prepare, plan, part) for plan in plans[:_AHEAD])
            for following in [*plans[_AHEAD:], *[None] * len(waiting)]:
                batch = waiting.popleft().result()
                if following:
                    waiting.append(pool.submit(self._prepare, following, part))
                yield batch
        finally:
            pool.shutdown(cancel_futures=True)

    def one_of_each_size(self, epoch: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """This process's part of one batch of each size that an epoch has, in the order of the sizes."""
        share = self._batch_size // world
        plans = {plan.bucket: plan for plan in self.plan(epoch)}
        for _, plan in sorted(plans.items()):
            yield self._prepare(plan, slice(rank * share, (rank + 1) * share))

    def plan(self, epoch: int) -> list[BatchPlan]:
        """What each global batch of an epoch consists of."""
        return plan_epoch(
            self._items,
            self._buckets,
            batch_size=self._batch_size,
            crops=self._crops,
            shuffle_tags=self._shuffle_tags,
            keep_tags=self._keep_tags,
            seed=self._seed,
            epoch=epoch,
            used=self.epochs.used(epoch),
        )

    def _prepare(self, plan: BatchPlan, part: slice) -> Batch:
        samples = plan.samples[part]
        images = tuple(self._items[sample.item].path for sample in samples)
        latents = [
            self._latents.get(path, sample.crop, sample.flip).numpy()
            for path, sample in zip(images, samples, strict=True)
        ]
        channels = latents[0].shape[0] // 2
        captions = tuple(sample.caption for sample in samples)
        token_ids = self._tokens.get(captions)
        text = self.text.get(token_ids) if self.text else None
        return Batch(
            latents_mean=self._stacked([latent[:channels] for latent in latents]),
            latents_std=self._stacked([latent[channels:] for latent in latents]),
            token_ids=self._stacked([ids.numpy() for ids in token_ids]),
            # as bytes, because numpy has no bfloat16
            text=self._stacked([t.view(torch.uint8).numpy() for t in text]).view(text[0].dtype) if text else None,
            loss_scale=(plan.real / len(plan.samples)) ** 1.5,
            images=images,
            all_images=tuple(self._items[sample.item].path for sample in plan.samples),
            captions=captions,
            weights=self._weights(samples),
        )

    def _weights(self, samples: Sequence[SamplePlan]) -> Tensor | None:
        scales = [self._items[sample.item].loss_scale for sample in samples]
        if all(scale == 1 for scale in scales):
            return None
        return self._stacked([np.asarray(scale, dtype=np.float32) for scale in scales])

    def _stacked(self, arrays: Sequence[NDArray[np.generic]]) -> Tensor:
        # numpy's stack, because torch's would start a team of OpenMP threads that compete with the training thread's.
        stacked = torch.from_numpy(np.stack(arrays))
        return stacked.pin_memory() if self._pin_memory else stacked
