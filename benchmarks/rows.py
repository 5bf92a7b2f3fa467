"""What is measured: a row for each kind of work, the same for the floor and the trainer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BATCH_SIZE, PICTURES, LR = 4, 64, 1e-6


@dataclass(frozen=True)
class Row:
    """One kind of work.

    Attributes:
        key: its name on the command line.
        title: its name in the table.
        size: of the model, as make_tiny_sd.py has them.
        photos: the kind of pictures, as make_photos.py has them.
        trains: ``both``; ``last2``: of the text encoder the last two layers; ``unet``: the floor has its text
            embeddings beforehand.
        grad_accum: batches of a step.
        clip: the largest gradient norm of each component; 0: no clipping.
        resolution: pixels of a square picture's side.
    """

    key: str
    title: str
    size: str = "tiny"
    photos: str = "square"
    trains: str = "both"
    grad_accum: int = 1
    clip: float = 0.0
    resolution: int = 256

    @property
    def most(self) -> float:
        """The most that the trainer may take against the floor, at the same precision."""
        return 1.01 if self.size == "small" else 1.03

    @property
    def most_by_default(self) -> float:
        """The most that it may take against the floor in float32, where autocast is bfloat16."""
        return 0.66 if self.size == "small" else 0.90


ROWS = (
    Row("both", "UNet + text encoder"),
    Row("last2", "text encoder frozen but its last 2 layers", trains="last2"),
    Row("unet", "UNet alone (text embeddings cached in the floor)", trains="unet"),
    Row("mixed", "mixed aspects, UNet + text encoder", photos="mixed"),
    Row("large", "3-megapixel photos, UNet + text encoder", photos="large"),
    Row("accum", "2 batches accumulated, UNet + text encoder", grad_accum=2),
    Row("clip", "gradients clipped, UNet + text encoder", clip=1.0),
    Row("small", "small model, UNet + text encoder", size="small"),
    Row("small-unet", "small model, UNet alone", size="small", trains="unet"),
)

GPU = Row("gpu", "SD 1.5's size, UNet + text encoder, 512 px", size="sd15", resolution=512)
"""The row of gpu.py."""


@dataclass(frozen=True)
class Assets:
    """The files of a row.

    Attributes:
        model: a diffusers folder.
        photos: a folder of pictures with captions.
        sizes: a JSON file: of each picture the width and height that the trainer's bucket gives it.
        optimizer: an optimizer.json.
    """

    model: Path
    photos: Path
    sizes: Path
    optimizer: Path


def make_assets(folder: Path, row: Row) -> Assets:
    """Make what is not there yet."""
    from ed_train.data.buckets import assign_buckets
    from ed_train.data.scan import scan_dataset
    from make_photos import make_photos
    from make_tiny_sd import make_tiny_sd

    photos, sizes = folder / row.photos, folder / f"{row.photos}-{row.resolution}.json"
    found = Assets(folder / row.size, photos, sizes, folder / f"adamw-{row.trains}.json")
    if not (found.model / "model_index.json").exists():
        make_tiny_sd(row.size, found.model)
    if not found.sizes.exists():
        make_photos(found.photos, row.photos, PICTURES)
        items = scan_dataset(found.photos, flip_p=0.0, cond_dropout=0.0).items
        buckets = dict(zip((item.path.name for item in items), assign_buckets(items, row.resolution)[0], strict=True))
        found.sizes.write_text(json.dumps(buckets))
    optimizer: dict[str, Any] = {"base": {"optimizer": "adamw", "lr": LR}}
    if row.trains == "last2":
        optimizer["text_encoder_freezing"] = {"unfreeze_last_n_layers": 2}
    found.optimizer.write_text(json.dumps(optimizer))
    return found


def trainer_flags(row: Row, assets: Assets, folder: Path, precision: str, steps: int) -> list[str]:
    """The trainer's arguments for a row.

    Args:
        row: the work.
        assets: its files.
        folder: of runs and caches.
        precision: ``fp32``; ``default`` leaves the choice to the trainer.
        steps: optimizer steps.
    """
    flags: dict[str, Any] = {
        "resume_ckpt": assets.model, "data_root": assets.photos, "resolution": row.resolution, "batch_size": BATCH_SIZE,
        "max_epochs": 1000, "max_steps": steps, "optimizer_config": assets.optimizer, "logdir": folder / "logs",
        "cache_dir": folder / "cache", "save_nothing": "true", "sample_steps": 0, "cond_dropout": 0,
        "grad_accum": row.grad_accum,
    }  # fmt: skip
    flags |= {"clip_grad_norm": row.clip} if row.clip else {}
    flags |= {"disable_textenc_training": "true"} if row.trains == "unet" else {}
    flags |= {"disable_amp": "true"} if precision == "fp32" else {}
    return [f"--{key}={value}" for key, value in flags.items()]
