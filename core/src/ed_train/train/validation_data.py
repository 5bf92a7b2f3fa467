"""The pictures that a run is validated on: chosen and found without decoding them, then encoded as those that train."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from ed_train.config.run import RunConfig
from ed_train.config.validation import TRAIN, VAL, Validation, ValidationConfig
from ed_train.data.buckets import Size, assign_buckets
from ed_train.data.encode import Encode, LatentCache
from ed_train.data.files import shown
from ed_train.data.scan import ImageItem, Skipped, scan_dataset
from ed_train.data.split import chosen
from ed_train.data.tokens import TokenCache
from ed_train.errors import ConfigError, Problem

FEW_EVALUATIONS = 16
"""Of a set, below which a line says so: with fewer, one picture's timestep is a large part of the loss."""


@dataclass(frozen=True)
class ScannedSet:
    """A set of pictures to validate on, before any of them is decoded.

    Attributes:
        name: of its curve.
        items: the pictures, each once.
        buckets: the size of each.
        origin: where they come from, for the user.
        where: the place of the setting that chose them, and its key.
    """

    name: str
    items: tuple[ImageItem, ...]
    buckets: tuple[Size, ...]
    origin: str
    where: tuple[str, str]

    def __str__(self) -> str:
        return f"{self.name}: {len(self.items)} {self.origin}"


@dataclass(frozen=True)
class ValidationSet:
    """A set of pictures that is ready to validate on.

    Attributes:
        scanned: its pictures, without those that cannot be used.
        contents: the hash of each picture's file.
        token_ids: int64 [pictures, tokens].
    """

    scanned: ScannedSet
    contents: tuple[str, ...]
    token_ids: Tensor


_Scanned: TypeAlias = tuple[ScannedSet, tuple[Skipped, ...], list[str]]


@dataclass(frozen=True)
class ScannedValidation:
    """What scanning finds to validate on.

    Attributes:
        held_back: indices of the pictures of data_root that do not train.
        sets: the sets.
        skipped: files of the sets' own folders that are not used.
        notes: lines for the user.
    """

    held_back: frozenset[int] = frozenset()
    sets: tuple[ScannedSet, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()


def scan_validation(run: RunConfig, items: Sequence[ImageItem], buckets: Sequence[Size]) -> ScannedValidation:
    """Choose the pictures to validate on, and find those of the sets that have folders of their own.

    Args:
        run: its configuration.
        items: the pictures of data_root.
        buckets: the size of each.

    Raises:
        ConfigError: nothing would be left to train, or a folder has no usable picture.
    """
    if run.validation is None:
        return ScannedValidation()
    config, root = run.validation.config, Path(run.train.data_root)
    sets: list[ScannedSet] = []
    held_back: list[int] = []

    def of_data_root(name: str, indices: Iterable[int], origin: str, key: str) -> ScannedSet:
        mine = list(indices)
        where = (run.validation.sources.get(key, "") if run.validation else "", key)
        return ScannedSet(name, tuple(items[i] for i in mine), tuple(buckets[i] for i in mine), origin, where)

    if config.held_back:
        share = config.val_split_proportion
        held_back = chosen(items, root, proportion=share, seed=config.seed, purpose=VAL)
        used = sum(item.multiply > 0 for item in items)
        origin = f"of the {used} pictures of data_root ({share:.3g} of them, seed {config.seed}), which do not train"
        sets.append(of_data_root(VAL, held_back, origin, "val_split_proportion"))
        if len(held_back) >= used:
            message = f"{share:g} of {used} pictures leaves nothing to train; lower it, or add pictures"
            raise ConfigError([Problem(sets[0].where[0], sets[0].where[1], message)])
    skipped, notes = list[Skipped](), list[str]()
    for found, more_skipped, more_notes in _scan_folders(run, run.validation):
        sets.append(found)
        skipped += more_skipped
        notes += more_notes
    if config.stabilize_training_loss:
        trained = [i for i in range(len(items)) if i not in set(held_back)]
        share = config.stabilize_split_proportion
        left = [items[i] for i in trained]
        indices = [trained[i] for i in chosen(left, root, proportion=share, seed=config.seed, purpose=TRAIN)]
        origin = f"of the pictures that train ({share:.3g} of them, seed {config.seed})"
        sets.append(of_data_root(TRAIN, indices, origin, "stabilize_split_proportion"))
    return ScannedValidation(frozenset(held_back), tuple(sets), tuple(skipped), tuple(notes))


def problems_of_folders(run: RunConfig) -> tuple[Problem, ...]:
    """What is wrong with the folders of the sets, to be said together with what is wrong with data_root."""
    try:
        _scan_folders(run, run.validation)
    except ConfigError as error:
        return error.problems
    return ()


def _scan_folders(run: RunConfig, validation: Validation | None) -> list[_Scanned]:
    """Scan the folder of each set. Raises ConfigError with the problems of all."""
    found: list[_Scanned] = []
    problems: list[Problem] = []
    if validation is None:
        return found
    for name, folder in validation.config.folders.items():
        try:
            found.append(_scan_folder(run, validation, name, Path(folder)))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return found


def _scan_folder(run: RunConfig, validation: Validation, name: str, folder: Path) -> _Scanned:
    where = validation.source_of_folder(name)
    try:
        dataset = scan_dataset(folder, flip_p=0.0, cond_dropout=0.0)
    except ConfigError as error:
        raise ConfigError(p if p.where else Problem(*where, p.message) for p in error.problems) from error
    items = tuple(item for item in dataset.items if item.multiply > 0)
    buckets, notes = assign_buckets(items, run.train.resolution)
    found = ScannedSet(name, items, tuple(buckets), f"pictures of {folder}", where)
    return found, dataset.skipped, [f"validation {name}: {note}" for note in (*dataset.notes, *notes)]


class ValidationPictures:
    """The latents and token ids of the sets, in the caches that those which train are in, too."""

    def __init__(self, folder: Path, sets: Sequence[ScannedSet], *, vae: str, progress: bool) -> None:
        """Open the cache of latents; see `LatentCache`."""
        self._sets = sets
        entries = (entry for one in sets for entry in zip(one.items, one.buckets, strict=True))
        once = {item.path: (replace(item, flip_p=0.0), bucket) for item, bucket in entries}
        items, buckets = [item for item, _ in once.values()], [bucket for _, bucket in once.values()]
        self.latents = LatentCache(folder / "latents", items, buckets, vae=vae, progress=progress)
        self._paths = list(once)

    def build(self, encode: Encode, *, rank: int, world: int) -> None:
        """Encode what is missing; see `LatentCache.build`."""
        try:
            self.latents.build(encode, rank=rank, world=world)
        except ConfigError as error:
            if any(problem.key != "data_root" for problem in error.problems):
                raise  # if not one picture can be used, `ready` says so, by the name of the set

    def ready(self, tokens: TokenCache) -> list[ValidationSet]:
        """The sets without the pictures that turned out to be unusable; call it after `latents.build`.

        Raises:
            ConfigError: nothing is left of a set.
        """
        try:
            usable = {self._paths[index] for index in self.latents.usable()}
        except ConfigError:  # which says it of data_root
            usable = set()
        return [self._ready(scanned, usable, tokens) for scanned in self._sets]

    def _ready(self, scanned: ScannedSet, usable: set[Path], tokens: TokenCache) -> ValidationSet:
        kept = [index for index, item in enumerate(scanned.items) if item.path in usable]
        if not kept:
            failed = [skipped for skipped in self.latents.skipped if skipped.path in {i.path for i in scanned.items}]
            message = f"none of the {len(scanned.items)} pictures of {scanned.name} can be used: "
            raise ConfigError([Problem(*scanned.where, message + "; ".join(map(str, failed[:3])))])
        items = tuple(scanned.items[index] for index in kept)
        buckets = tuple(scanned.buckets[index] for index in kept)
        captions = [item.whole_caption for item in items]
        tokens.add(captions)
        return ValidationSet(
            replace(scanned, items=items, buckets=buckets),
            contents=tuple(self.latents.content(item.path) for item in items),
            token_ids=torch.stack(tokens.get(captions)),
        )


def notes_on_leaks(sets: Sequence[ValidationSet], trained: set[str]) -> list[str]:
    """A line for each set that has pictures which also train: its loss then says little about others.

    Args:
        sets: the sets.
        trained: the content hashes of the pictures that train.
    """
    notes = []
    for one in sets:
        items = one.scanned.items
        shared = [item.path for item, content in zip(items, one.contents, strict=True) if content in trained]
        notes += _leak(one.scanned, shared)
    return notes


def notes_on_same_files(sets: Sequence[ScannedSet], trained: Sequence[ImageItem]) -> list[str]:
    """As `notes_on_leaks`, before any picture is read: copies under other names are not found.

    Args:
        sets: the sets.
        trained: the pictures that train.
    """
    files = {os.path.realpath(item.path) for item in trained}
    notes = []
    for one in sets:
        notes += _leak(one, [item.path for item in one.items if os.path.realpath(item.path) in files])
    return notes


def _leak(one: ScannedSet, shared: Sequence[Path]) -> list[str]:
    """The line about a set and those of its pictures that train as well; of the training's own set none."""
    if not shared or one.name == TRAIN:
        return []
    number = f"{len(shared)} of its {len(one.items)} pictures are"
    return [f"validation {one.name}: {number} among those that train as well, e.g. {shown(shared[0])}"]


def validation_lines(config: ValidationConfig, sets: Sequence[ScannedSet]) -> Iterator[str]:
    """What is validated on, and when."""
    every = "every epoch" if config.every_n_epochs == 1 else f"every {config.every_n_epochs:g} epochs"
    yield f"validation: before the first step, {every} and at the end"
    yield from (f"    {one}" for one in sets)
    if config.keep_best_ckpt and config.watched:
        yield f"    the weights with the lowest loss of {config.watched} are kept as best-..."


def notes_on_size(config: ValidationConfig, sets: Sequence[ScannedSet]) -> list[str]:
    """A line about sets that are so small that their losses depend on a few draws of noise."""
    repeats = config.timesteps_per_image
    small = [one for one in sets if len(one.items) * repeats < FEW_EVALUATIONS]
    if not small:
        return []
    names = ", ".join(f"{one.name} ({len(one.items)} pictures)" for one in small)
    enough = max(-(-FEW_EVALUATIONS // len(one.items)) for one in small)
    few = f"few evaluations with timesteps_per_image {repeats}: {enough} would make the curve steadier"
    return [f"validation: {names}: {few}"]
