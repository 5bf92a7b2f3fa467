#!/usr/bin/env python
"""An optimizer of ed-train in transformers' Trainer: a tiny GPT-2 learns to write Python, byte by byte.

    python examples/elsewhere/transformers_trainer.py --optimizer prodigy
    python examples/elsewhere/transformers_trainer.py --optimizer adamw --option lr=1e-3 --option weight_decay=0.01

The text is the source of a module of Python's standard library. The model learns from its first nine tenths and is
judged by the rest.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from ed_train import EdTrainError, create_optimizer
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, get_scheduler

LENGTH = 64  # bytes of each example


def main() -> None:
    """Train, and print the loss on the last tenth of the text before and after."""
    arguments = parse_arguments()
    torch.manual_seed(0)
    text = examples(Path(argparse.__file__))
    split = len(text) * 9 // 10
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=256, n_positions=LENGTH, n_embd=64, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
    )

    # As the Trainer groups them itself: biases and norms are not decayed.
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1]},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    try:
        optimizer = create_optimizer(arguments.optimizer, groups, **dict(arguments.option))
    except EdTrainError as error:  # not installed, no such option, out of range: the text says what to do
        sys.exit(f"error: {error}")
    scheduler = get_scheduler("cosine", optimizer, num_warmup_steps=0, num_training_steps=arguments.steps)

    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=model,
            args=training_arguments(folder, arguments.steps),
            train_dataset=text[:split],
            eval_dataset=text[split:],
            optimizers=(optimizer, scheduler),  # TrainingArguments' own learning_rate, optim, ... have no effect then
        )
        print(f"before: loss {trainer.evaluate()['eval_loss']:.4f}")
        trainer.train()
        print(f"after: loss {trainer.evaluate()['eval_loss']:.4f}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a tiny GPT-2 with an optimizer of ed-train.")
    parser.add_argument("--optimizer", default="prodigy", help="see ed-train --list-optimizers")
    parser.add_argument(
        "--option", action="append", type=option, default=[], metavar="KEY=VALUE", help="e.g. lr=1e-3; several times"
    )
    parser.add_argument("--steps", type=int, default=200)
    return parser.parse_args()


def option(text: str) -> tuple[str, Any]:
    """``lr=1e-3`` as ``("lr", 0.001)``; a value is what it would be in optimizer.json."""
    key, _, value = text.partition("=")
    return key, json.loads(value)


def examples(file: Path) -> list[dict[str, torch.Tensor]]:
    """The bytes of a file in pieces of 64, each as the Trainer wants a training example of a language model."""
    text = torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8).long()
    pieces = text[: len(text) // LENGTH * LENGTH].view(-1, LENGTH)
    return [{"input_ids": piece, "labels": piece} for piece in pieces]


def training_arguments(folder: str, steps: int) -> TrainingArguments:
    return TrainingArguments(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=64,
        max_grad_norm=1.0,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
    )


if __name__ == "__main__":
    main()
