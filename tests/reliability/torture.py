"""Kill training runs with signal 9 at random moments, go on with each from its newest checkpoint, compare the ends.

    make torture
    PYTHONPATH=tests:examples .venv/bin/python -m reliability.torture --kills 50 --seed 7

Every run is compared, bit by bit, with one that nothing happened to: the loss of every step, the weights, the state of
the optimizers, the moving average, the random generators.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import re
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ed_train.config.resume import STATE_FILES
from ed_train.models.atomic import check_files, read_manifest
from reliability.driver import Attempt, Runner
from reliability.sabotage import WRITES, kill_in_save, list_calls
from train.resuming import assert_equal_runs

OPTIMIZERS = (
    {
        "base": {"optimizer": "adamw", "lr": 1e-3, "lr_scheduler": "cosine", "lr_warmup_steps": 2},
        "text_encoder_overrides": {"optimizer": "lion", "lr": 1e-4},
        "text_encoder_freezing": {"unfreeze_last_n_layers": 2},
    },
    {"base": {"optimizer": "prodigy", "d0": 1e-4}, "text_encoder_freezing": {"unfreeze_last_n_layers": 1}},
    {"base": {"optimizer": "dadapt_adam", "d0": 1e-4}, "text_encoder_overrides": {"optimizer": "adamw", "lr": 1e-4}},
)
VARIANTS: tuple[dict[str, object], ...] = (
    {},
    {"ema_decay_rate": 0.9},
    {"grad_accum": 3, "keep_last_n_ckpts": 1},
    {"save_optimizer": True, "shuffle_tags": True},
)
LONGEST_SECONDS = 4.0
"""Until a kill; a run takes about one to begin its first step."""
MINUTES_BETWEEN_SAVES = 0.005


@dataclass
class Counts:
    """What happened."""

    kills: int = 0
    while_starting: int = 0
    while_saving: int = 0
    resumes: int = 0
    begun_from_the_model: int = 0
    passed_over: int = 0
    checkpoints_checked: int = 0
    steps_lost: int = 0
    runs_compared: int = 0
    steps_compared: int = 0

    def __str__(self) -> str:
        return ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in vars(self).items())


def base_settings(folder: Path, model: Path, photos: Path, optimizers: Mapping[str, object]) -> dict[str, object]:
    """Settings of a run in this folder; the cache is beside it, for all runs."""
    folder.mkdir(parents=True)
    (folder / "optimizer.json").write_text(json.dumps(optimizers))
    return {
        "resume_ckpt": model, "data_root": photos, "cache_dir": folder.parent / "cache", "logdir": folder / "logs",
        "optimizer_config": folder / "optimizer.json", "resolution": 64, "batch_size": 2, "sample_steps": 0,
        "log_step": 1, "disable_amp": True, "cond_dropout": 0.3, "flip_p": 0.5, "clip_grad_norm": 1.0,
    }  # fmt: skip


def kill_at_random(
    folder: Path, model: Path, photos: Path, *, kills: int, steps: int, seed: int, verbose: bool = False
) -> Counts:
    """Train runs of so many steps each, with another optimizer and seed each time, until there were enough kills.

    Raises:
        AssertionError: a checkpoint is not whole, a run does not go on, or its end is another one.
    """
    chance, counts = random.Random(seed), Counts()
    number = 0
    while counts.kills < kills:
        optimizers, variant = OPTIMIZERS[number % len(OPTIMIZERS)], VARIANTS[number % len(VARIANTS)]
        here = folder / f"run-{number}"
        settings = base_settings(here, model, photos, optimizers)
        settings |= {"max_epochs": 10**5, "max_steps": steps, "seed": chance.randrange(2**32), **variant}
        runner = Runner(here, settings)
        one_run(runner, kills - counts.kills, chance, counts)
        (here / "quiet").mkdir()
        quiet = Runner(here / "quiet", {**settings, "logdir": here / "quiet" / "logs"})
        quiet.run()
        assert_equal_runs(quiet.last, runner.last)
        shutil.rmtree(here)
        counts.runs_compared += 1
        counts.steps_compared += steps
        number += 1
        if verbose:
            print(f"run {number}: {counts}", flush=True)
    return counts


def one_run(runner: Runner, kills: int, chance: random.Random, counts: Counts) -> None:
    """Kill a run at random moments until it ends by itself, or as often as is wanted."""
    more = {"ckpt_every_n_minutes": MINUTES_BETWEEN_SAVES, "resume": "latest"}
    more |= {} if "keep_last_n_ckpts" in runner.settings else {"keep_last_n_ckpts": 2}
    reached = newest = 0
    while True:
        attempt = runner.start(**more)
        if kills > 0:
            attempt.process.join(chance.uniform(0.2, LONGEST_SECONDS))
        if kills <= 0 or not attempt.process.is_alive():
            assert attempt.status == 0, attempt.output
            count_start(attempt, newest, reached, counts)
            return
        attempt.process.kill()
        attempt.process.join()
        kills -= 1
        counts.kills += 1
        count_start(attempt, newest, reached, counts)
        reached = max([0, *map(int, re.findall(r"^step (\d+)/", attempt.output, re.MULTILINE))])
        newest = check_checkpoints(runner, newest, counts)


def count_start(attempt: Attempt, newest: int, reached: int, counts: Counts) -> None:
    """See that an attempt went on where the one before it had saved last, which has to be the newest checkpoint."""
    output = attempt.output
    assert "Traceback" not in output, output
    counts.passed_over += output.count("passed over")
    if went_on := re.search(r"goes on at step (\d+),", output):
        assert int(went_on[1]) == newest, output
        counts.resumes += 1
        counts.steps_lost += max(0, reached - newest)
    elif not re.search(r"^step \d+/", output, re.MULTILINE):
        counts.while_starting += 1
    else:
        assert newest == 0, output
        counts.begun_from_the_model += 1


def check_checkpoints(runner: Runner, before: int, counts: Counts) -> int:
    """See that all that has a checkpoint's name is whole, and that the newest can be gone on from.

    Returns:
        Its step; 0 if there is none yet.
    """
    steps = [0]
    for checkpoint in runner.checkpoints:
        manifest = read_manifest(checkpoint)
        check_files(checkpoint, manifest, optional=STATE_FILES)
        counts.checkpoints_checked += 1
        states = [name for name in STATE_FILES if name in manifest["files"]]
        if states and all((checkpoint / name).is_file() for name in states):
            steps.append(manifest["step"])
    assert max(steps) >= before, "a checkpoint was lost"
    partials = Path(str(runner.settings["logdir"])).glob("*/ckpts/.*.partial-*")
    counts.while_saving += any(True for _ in partials)
    return max(steps)


def kill_at_every_call(folder: Path, model: Path, photos: Path) -> int:
    """Kill a run before each call of a save that also removes older files, and in each file; returns how often."""
    settings = base_settings(folder / "quiet", model, photos, OPTIMIZERS[0])
    settings |= {"max_steps": 4, "keep_last_n_ckpts": 2}
    quiet = Runner(folder / "quiet", settings)
    quiet.run(partial(list_calls, 2, folder / "calls"), ckpt_every_n_minutes=1e-9)
    names = (folder / "calls").read_text().split()
    kills = [(call, "before") for call in range(len(names))] + [(len(names) - 1, "after")]
    kills += [(call, "half") for call, name in enumerate(names) if name in WRITES]
    for call, when in kills:
        parts = Runner(folder / f"{call}-{when}", {**settings, "logdir": folder / f"{call}-{when}" / "logs"})
        parts.folder.mkdir()
        parts.kill(partial(kill_in_save, 2, call, when), ckpt_every_n_minutes=1e-9)
        newest = check_checkpoints(parts, 2, Counts())
        assert f"goes on at step {newest}, " in parts.run(resume="latest")
        assert_equal_runs(quiet.last, parts.last)
        shutil.rmtree(parts.folder)
    return len(kills)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60, help="kills at random moments")
    parser.add_argument("--steps", type=int, default=80, help="optimizer steps of each run")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32), help="of the kills")
    chosen = parser.parse_args()
    from make_photos import make_photos
    from make_tiny_sd import make_tiny_sd

    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # each resume of a run shows in its metrics
    print(f"seed {chosen.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="torture-") as name:
        folder, began = Path(name), time.monotonic()
        make_tiny_sd("micro", folder / "model")
        make_photos(folder / "photos", count=8)
        inputs = (folder / "model", folder / "photos")
        counts = kill_at_random(
            folder / "random", *inputs, kills=chosen.kills, steps=chosen.steps, seed=chosen.seed, verbose=True
        )
        print(f"killed at random: {counts}; no checkpoint lost, all runs equal bit by bit", flush=True)
        (folder / "calls").mkdir()
        number = kill_at_every_call(folder / "calls", *inputs)
        print(f"killed at every call of a save: {number} kills and resumes, all runs equal bit by bit")
        print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
