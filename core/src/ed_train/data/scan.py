"""Find the images below a folder, with their sizes, captions and settings, before anything heavy is loaded."""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from ed_train.config.record import RECORD_KEY
from ed_train.config.resume import RECORD_FILE
from ed_train.data.captions import TEXT_SUFFIXES, YAML_SUFFIX, Caption, read_caption
from ed_train.data.files import Findings, FolderFiles, reason, shown
from ed_train.data.images import EXTENSIONS, image_size
from ed_train.data.settings import folder_settings
from ed_train.errors import ConfigError, Problem


@dataclass(frozen=True)
class ImageItem:
    """One picture of the data set.

    Attributes:
        path: the file.
        width: in pixels, after EXIF rotation.
        height: in pixels, after EXIF rotation.
        caption: what it shows.
        multiply: how many times an epoch uses it; 0.5 is every other epoch on average, 0 never.
        flip_p: probability that it is mirrored.
        cond_dropout: probability that its caption is replaced by an empty one.
        rating: how likely later epochs are to keep it, with rated_dataset; another one's of 2 is twice that of 1.
        loss_scale: factor of its loss.
        batch_id: it is in batches with pictures of the same one alone; empty as well.
        shuffle_tags: see `Caption.render`; None where the run decides.
        max_caption_length: see `Caption.render`.
    """

    path: Path
    width: int
    height: int
    caption: Caption
    multiply: float
    flip_p: float
    cond_dropout: float
    rating: float = 1.0
    loss_scale: float = 1.0
    batch_id: str = ""
    shuffle_tags: bool | None = None
    max_caption_length: int | None = None

    @property
    def whole_caption(self) -> str:
        """The caption in its own order."""
        fixed = Random(0)  # without shuffling a caption is what it is, whatever the generator
        return self.caption.render(fixed, shuffle_tags=False, keep_tags=0, max_length=self.max_caption_length)


@dataclass(frozen=True)
class Skipped:
    """A file that is not used, and why, in a few words."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{shown(self.path)}: {self.reason}"


@dataclass(frozen=True)
class Dataset:
    """What a folder holds.

    Attributes:
        items: the usable images, sorted by path below the folder, so that the order is the same everywhere.
        skipped: what is not used, sorted by path.
        notes: one line for each kind of oddity, for the user.
    """

    items: tuple[ImageItem, ...]
    skipped: tuple[Skipped, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Folder:
    images: Sequence[Path]
    files: FolderFiles
    settings: Mapping[str, Any]


def scan_dataset(root: Path, *, flip_p: float, cond_dropout: float, jobs: int = 8) -> Dataset:
    """Find every image below a folder. Pictures are not decoded: only headers and captions are read.

    Args:
        root: the folder; links to other folders are followed, each folder is read once.
        flip_p: default for images whose folder or .yaml says nothing else.
        cond_dropout: likewise.
        jobs: threads that read headers and captions.

    Raises:
        ConfigError: there is no such folder, no usable image in it, or a settings file has a value that is out of
            range; lists every problem.
    """
    if not root.is_dir():
        nearest = next(folder for folder in (*root.absolute().parents, Path()) if folder.is_dir())
        message = f"got {shown(root)}; there is no such folder (the nearest one that exists is {shown(nearest)})"
        raise ConfigError([Problem("", "data_root", message)])
    findings, skipped = Findings(), list[Skipped]()
    folders = list(_walk(root, findings, skipped))
    defaults = {"multiply": 1.0, "flip_p": flip_p, "cond_dropout": cond_dropout}
    images = [(path, folder) for folder in folders for path in folder.images]
    items = []
    with warnings.catch_warnings(), ThreadPoolExecutor(jobs) as pool:
        warnings.filterwarnings("ignore", module=r"PIL\.")  # about large pictures and damaged EXIF data
        for result, found in pool.map(partial(_read, defaults), images):
            findings.add(found)
            items += [result] if isinstance(result, ImageItem) else []
            skipped += [result] if isinstance(result, Skipped) else []
    skipped.sort(key=lambda entry: _place(root, entry.path))
    items.sort(key=lambda item: _place(root, item.path))
    if not findings.problems:
        findings.problems += _nothing_to_train(root, items, skipped)
    if findings.problems:
        raise ConfigError(findings.problems)
    return Dataset(tuple(items), tuple(skipped), tuple(_notes(findings, folders)))


def _place(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


def _walk(root: Path, findings: Findings, skipped: list[Skipped]) -> Iterator[_Folder]:
    """Every folder below root, in the order of names; a loop of links ends where it comes back."""
    seen: set[tuple[int, int]] = set()
    pending: list[tuple[Path, dict[str, Any]]] = [(root, {})]
    while pending:
        path, inherited = pending.pop()
        try:
            identity = path.stat()
            entries = sorted(os.scandir(path), key=lambda entry: entry.name)
        except OSError as error:
            skipped.append(Skipped(path, reason(error)))
            continue
        if (identity.st_dev, identity.st_ino) in seen:
            findings.notes.append(("folder met again through a link, not read twice", path))
            continue
        seen.add((identity.st_dev, identity.st_ino))
        if path != root and _is_run(path):  # its samples would train the next run, and change its own data on a resume
            findings.notes.append(("folder of a run, not read: what it drew does not train", path))
            continue
        subfolders, names = _sorted_out(path, entries, findings, skipped)
        files = FolderFiles(path, names)
        here, below = folder_settings(files, inherited, findings)
        yield _Folder([file for file in files if file.suffix.lower() in EXTENSIONS], files, here)
        pending += [(path / name, below) for name in reversed(subfolders)]


def _is_run(folder: Path) -> bool:
    """Whether ed-train made this folder for a run."""
    try:
        with (folder / RECORD_FILE).open("rb") as file:
            return RECORD_KEY.encode() in file.read(200)
    except OSError:
        return False


def _sorted_out(
    folder: Path, entries: Iterable[os.DirEntry[str]], findings: Findings, skipped: list[Skipped]
) -> tuple[list[str], list[str]]:
    """The names of subfolders and of regular files; what is neither is skipped."""
    subfolders, files = [], []
    for entry in entries:
        path = folder / entry.name
        try:
            if entry.name.startswith("."):  # what editors, notebooks and macOS leave behind
                findings.notes.append(("hidden, not used", path))
            elif entry.is_dir():
                subfolders.append(entry.name)
            elif entry.is_file():
                files.append(entry.name)
            elif entry.is_symlink():
                skipped.append(Skipped(path, "the link leads nowhere"))
            elif path.suffix.lower() in EXTENSIONS:
                skipped.append(Skipped(path, "not a regular file"))
        except OSError as error:
            skipped.append(Skipped(path, reason(error)))
    return subfolders, files


def _read(defaults: Mapping[str, Any], image: tuple[Path, _Folder]) -> tuple[ImageItem | Skipped, Findings]:
    path, folder = image
    findings = Findings()
    caption, overrides = read_caption(path, folder.files, findings)
    try:
        width, height = image_size(path)
    except Exception as error:  # decoders raise all sorts of things, and no file may end the scan
        return Skipped(path, reason(error)), Findings(findings.problems, used=findings.used)
    return ImageItem(path, width, height, caption, **{**defaults, **folder.settings, **overrides}), findings


def _nothing_to_train(root: Path, items: Sequence[ImageItem], skipped: Sequence[Skipped]) -> list[Problem]:
    if not items:
        message = f"no usable image in {shown(root)} or below; looked for {' '.join(EXTENSIONS)}"
        if skipped:
            message += f"; skipped {len(skipped)}: {'; '.join(map(str, skipped[:3]))}"
        return [Problem("", "data_root", message)]
    if not any(item.multiply for item in items):
        return [Problem("", "data_root", f"multiply is 0 for every image in {shown(root)}: nothing is left to train")]
    return []


def _notes(findings: Findings, folders: Sequence[_Folder]) -> list[str]:
    kinds = defaultdict(list)
    for kind, path in findings.notes:
        kinds[kind].append(path)
    uses = Counter(findings.used)
    kinds["caption file of several images"] = [path for path, count in uses.items() if count > 1]
    suffixes = {*TEXT_SUFFIXES, YAML_SUFFIX, ".yml"}
    texts = (path for folder in folders for path in folder.files if path.suffix.lower() in suffixes)
    kinds["text file that belongs to no image, not used"] = [path for path in texts if path not in uses]
    kinds |= _other_trainers_notes(folders)
    return [f"{kind} ({_example(paths)})" for kind, paths in sorted(kinds.items()) if paths]


def _other_trainers_notes(folders: Sequence[_Folder]) -> dict[str, list[Path]]:
    """What a folder has from other trainers, and means nothing here; docs/coming-from.md says what does."""
    lists = [path for folder in folders for path in folder.files if path.name == "metadata.jsonl"]
    named = [folder.images[0].parent for folder in folders if folder.images and "multiply" not in folder.settings]
    return {
        "captions in it are not read; see docs/coming-from.md": lists,
        "a number in a folder's name is no number of repeats; a multiply.txt in the folder is": [
            path for path in named if re.match(r"\d{1,3}_", path.name)
        ],
    }


def _example(paths: Sequence[Path]) -> str:
    first = shown(min(paths))
    return f"{len(paths)} files, e.g. {first}" if len(paths) > 1 else first
