#!/usr/bin/env python
"""An optimizer of ed-train in a plain torch loop: a small network learns to tell six textures apart.

    python examples/elsewhere/plain_torch.py --optimizer prodigy
    python examples/elsewhere/plain_torch.py --optimizer adamw --option lr=1e-3 --option weight_decay=0.01

The textures are photos that scikit-image ships. The network learns from patches of their left halves, and is judged by
patches of their right halves.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import skimage.data
import torch
from ed_train import EdTrainError, create_optimizer
from torch import nn
from torch.nn import functional as F

TEXTURES = ("brick", "coins", "grass", "gravel", "moon", "text")
PATCH = 16  # pixels
BATCH = 64


def main() -> None:
    """Train, and print the loss on the right halves before and after."""
    arguments = parse_arguments()
    torch.manual_seed(0)
    left, right = zip(*(halves(name) for name in TEXTURES), strict=True)
    held_out = draw(right, 512)
    network = make_network()

    # Biases are not decayed. Any option may stand in a group, under torch's name; the rest goes to create_optimizer.
    groups = [
        {"params": [p for p in network.parameters() if p.ndim > 1]},
        {"params": [p for p in network.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    try:
        optimizer = create_optimizer(arguments.optimizer, groups, **dict(arguments.option))
    except EdTrainError as error:  # not installed, no such option, out of range: the text says what to do
        sys.exit(f"error: {error}")

    judge("before", network, *held_out)
    for _ in range(arguments.steps):
        patches, labels = draw(left, BATCH)
        loss = F.cross_entropy(network(patches), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    judge("after", network, *held_out)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Tell textures apart with an optimizer of ed-train.")
    parser.add_argument("--optimizer", default="prodigy", help="see ed-train --list-optimizers")
    parser.add_argument(
        "--option", action="append", type=option, default=[], metavar="KEY=VALUE", help="e.g. lr=1e-3; several times"
    )
    parser.add_argument("--steps", type=int, default=150)
    return parser.parse_args()


def option(text: str) -> tuple[str, Any]:
    """``lr=1e-3`` as ``("lr", 0.001)``; a value is what it would be in optimizer.json."""
    key, _, value = text.partition("=")
    return key, json.loads(value)


def make_network() -> nn.Module:
    """A classifier of grey patches, [N, 1, 16, 16] to [N, textures]."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(32, len(TEXTURES)),
    )  # fmt: skip


def halves(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The left and the right half of a photo, both [height, width / 2]."""
    photo = torch.from_numpy(getattr(skimage.data, name)()).float() / 255
    middle = photo.shape[1] // 2
    return photo[:, :middle], photo[:, middle:]


def draw(photos: tuple[torch.Tensor, ...], count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random patches [count, 1, 16, 16] of random photos, and which photos they are from [count]."""
    labels = torch.randint(len(photos), (count,))
    patches = torch.stack([patch(photos[label]) for label in labels.tolist()])
    # Brightness and contrast would give the photo away.
    normal = (patches - patches.mean((1, 2), keepdim=True)) / (patches.std((1, 2), keepdim=True) + 0.01)
    return normal[:, None], labels


def patch(photo: torch.Tensor) -> torch.Tensor:
    top, left = (int(torch.randint(size - PATCH, ())) for size in photo.shape)
    return photo[top : top + PATCH, left : left + PATCH]


@torch.no_grad()
def judge(when: str, network: nn.Module, patches: torch.Tensor, labels: torch.Tensor) -> None:
    scores = network(patches)
    right = (scores.argmax(1) == labels).float().mean().item()
    print(f"{when}: loss {F.cross_entropy(scores, labels):.4f}, {right:.0%} of the patches recognized")


if __name__ == "__main__":
    main()
