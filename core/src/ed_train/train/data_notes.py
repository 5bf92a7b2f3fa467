"""Lines about settings of pictures, and keys of train.json, that do nothing with the pictures as they are."""

from __future__ import annotations

from collections.abc import Sequence

from ed_train.config.describe import show
from ed_train.config.run import RunConfig
from ed_train.data.loader import shuffles
from ed_train.data.scan import ImageItem


def idle_settings(run: RunConfig, items: Sequence[ImageItem]) -> list[str]:
    """A line for each of them.

    Args:
        run: the run's configuration.
        items: the pictures that train.
    """
    train, notes = run.train, []
    rated = sum(item.rating != 1 for item in items)
    if rated and not train.rated_dataset:
        notes.append(f"rating has no effect without rated_dataset; {rated} of the {len(items)} pictures have one")
    if train.rated_dataset and not rated:
        notes.append("rated_dataset: no picture has a rating: all are equally likely to be left out of later epochs")
    if train.keep_tags and not shuffles(items, train.shuffle_tags):
        where = f"keep_tags={show(train.keep_tags)} ({run.sources['keep_tags']})"
        notes.append(f"{where} has no effect without shuffle_tags, in train.json or of a picture")
    return notes
