"""Validation: what is held back, that the loss is the same for the same weights, and that training does not notice."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from ed_train.cli import main
from ed_train.config.ema import ema_folder
from ed_train.config.resume import STATE_FILE
from ed_train.models.atomic import check_files, read_manifest
from ed_train.train.validation import Validator
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from train.resuming import WEIGHTS, assert_equal_runs, assert_equal_weights, losses
from train.test_processes import launch

ADAMW = {"base": {"optimizer": "adamw", "lr": 1e-3}, "text_encoder_overrides": {"optimizer": "prodigy", "d0": 1e-3}}

SCHEDULE_FREE = {"base": {"optimizer": "schedulefree:AdamWScheduleFree", "lr": 1e-3}}
NAMES = ("val", "all of them", "train")


@pytest.fixture(autouse=True)
def two_optimizers(write_optimizer) -> None:
    write_optimizer(ADAMW)


@pytest.fixture
def validate(tmp_path: Path, flags: dict[str, str]) -> Callable[..., None]:
    """``validate(stabilize_training_loss=True)``: write a validation file and point the run's flags to it."""

    def write(**settings: Any) -> None:
        (tmp_path / "validation.json").write_text(json.dumps(settings, indent=1))
        flags["validation_config"] = str(tmp_path / "validation.json")

    return write


def checkpoint(tmp_path: Path, project: str = "myproj") -> Path:
    (folder,) = (tmp_path / "logs").glob(f"{project}_*")
    (found,) = (folder / "ckpts").glob("last-*")
    return found


def scalars(tmp_path: Path, project: str = "myproj") -> dict[str, dict[int, float]]:
    (folder,) = (tmp_path / "logs").glob(f"{project}_*")
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def test_the_losses_are_in_tensorboard_and_in_a_line(run_cli, validate, tmp_path, photos, capsys) -> None:
    validate(
        val_split_proportion=0.25, stabilize_training_loss=True, stabilize_split_proportion=0.5, use_relative_loss=True,
        extra_manual_datasets={"all of them": str(photos)},
    )  # fmt: skip
    assert run_cli(max_epochs=2, ema_decay_rate=0.5, save_nothing=True) == 0
    found = scalars(tmp_path)
    assert {tag for tag in found if tag.startswith("validation/")} == {
        f"validation/{kind}/{name}" for kind in ("loss", "loss_ema", "relative_loss") for name in NAMES
    }
    for name in NAMES:
        loss, relative = found[f"validation/loss/{name}"], found[f"validation/relative_loss/{name}"]
        assert list(loss) == [0, 3, 6], "before the first step and after each epoch, whose end is the run's once"
        assert relative == pytest.approx({step: value - loss[0] for step, value in loss.items()}, abs=1e-6)
        averaged = found[f"validation/loss_ema/{name}"]
        assert averaged[0] == loss[0]
        assert loss[6] < averaged[6] < loss[0], "the average is behind the weights, and both have learned"
    out = capsys.readouterr().out
    val = found["validation/loss/val"]
    assert f"validation: val {val[0]:.4f}, all of them" in out
    assert f"validation: val {val[6]:.4f} (best so far), all of them" in out
    assert f"; of the average: val {found['validation/loss_ema/val'][6]:.4f}, " in out
    for line in (
        "64 pixels, 3 batches an epoch\nvalidation: before the first step, every epoch and at the end\n",
        "    val: 2 of the 8 pictures of data_root (0.25 of them, seed 555), which do not train\n",
        f"    all of them: 8 pictures of {photos}\n",
        "    train: 3 of the pictures that train (0.5 of them, seed 555)\n",
        "note: validation all of them: 6 of its 8 pictures are among those that train as well, e.g. ",
        "note: validation: val (2 pictures), all of them (8 pictures), train (3 pictures): few evaluations",
    ):
        assert line in out


@pytest.mark.parametrize("optimizer", [ADAMW, SCHEDULE_FREE], ids=["adamw, prodigy", "schedule-free"])
def test_training_does_not_notice(optimizer, write_optimizer, run_cli, validate, tmp_path, photos) -> None:
    write_optimizer(optimizer)
    settings = {"max_epochs": 1, "cond_dropout": 0.3, "flip_p": 0.5, "shuffle_tags": True, "save_optimizer": True}
    assert run_cli(project_name="without", **settings) == 0
    validate(
        validate_training=False, stabilize_training_loss=True, every_n_epochs=0.3, batch_size=3,
        extra_manual_datasets={"all": str(photos)},
    )  # fmt: skip
    assert run_cli(project_name="with", **settings) == 0
    assert len(scalars(tmp_path, "with")["validation/loss/all"]) == 4
    without, with_ = (checkpoint(tmp_path, name) for name in ("without", "with"))
    assert losses(without) == losses(with_) != {}
    for name in WEIGHTS:
        assert_equal_weights(without / name, with_ / name)


def bests(tmp_path: Path) -> list[Path]:
    return sorted(path for path in (tmp_path / "logs").glob("*/ckpts/best-*") if not path.name.endswith("-ema"))


def test_the_best_weights_are_kept_whatever_becomes_of_the_checkpoints(
    run_cli, validate, tmp_path, monkeypatch, capsys
) -> None:
    validate(val_split_proportion=0.25, keep_best_ckpt=True)
    real = Validator._losses
    made_up = iter([0.1, 0.9, 0.7, 0.8, 0.75])

    def losses_of_a_run(self: Validator, session: Any) -> list[float]:
        assert len(real(self, session)) == 1
        return [next(made_up)]

    monkeypatch.setattr(Validator, "_losses", losses_of_a_run)
    assert run_cli(max_epochs=4, save_every_n_epochs=1, keep_last_n_ckpts=1) == 0
    out = capsys.readouterr().out
    (best,) = bests(tmp_path)
    assert best.name == "best-myproj-ep02-gs00006", "the model before the first step is no result, whatever its loss"
    assert [path.name for path in best.parent.iterdir() if path != best] == ["last-myproj-ep04-gs00012"]
    manifest = read_manifest(best)
    check_files(best, manifest)
    assert manifest["best_of"]["loss"] == 0.7
    assert "run_id" not in manifest
    assert not (best / STATE_FILE).exists()
    assert f"best checkpoint: {best} (validation loss of val 0.7000, step 6)" in out
    assert "validation: val 0.8000 (best 0.7000 at step 6)" in out
    assert not torch.equal(*(load_file(c / WEIGHTS[0])["conv_in.weight"] for c in (best, checkpoint(tmp_path))))
    StableDiffusionPipeline.from_pretrained(best)


@pytest.mark.slow
def test_the_best_weights_survive_a_resume_and_are_replaced_by_better_ones(
    train_and_stop, validate, tmp_path, capsys
) -> None:
    validate(val_split_proportion=0.25, keep_best_ckpt=True)
    parts = train_and_stop("parts", at=(4,), max_epochs=3, keep_last_n_ckpts=1, ema_decay_rate=0.5)
    (best,) = bests(tmp_path)
    found = scalars(tmp_path, "parts")["validation/loss/val"]
    lowest = min(step for step in found if step and found[step] == min(found[s] for s in found if s))
    assert best.name.endswith(f"gs{lowest:05d}")
    assert ema_folder(best).is_dir()
    assert sorted(path.name for path in best.parent.iterdir() if path.name.startswith("best")) == [
        best.name, f"{best.name}-ema"
    ]  # fmt: skip
    if lowest == 9:
        assert_equal_weights(best / WEIGHTS[0], parts / WEIGHTS[0])


def test_an_interrupted_run_validates_as_one_in_one_go(train_and_stop, validate, tmp_path, photos) -> None:
    validate(val_split_proportion=0.25, every_n_epochs=0.5, use_relative_loss=True, stabilize_training_loss=True)
    whole = train_and_stop("whole", max_epochs=2)
    parts = train_and_stop("parts", at=(2, 3), max_epochs=2)
    assert_equal_runs(whole, parts)
    of_whole, of_parts = (scalars(tmp_path, name) for name in ("whole", "parts"))
    tags = [tag for tag in of_whole if tag.startswith("validation/")]
    assert len(tags) == 4
    assert {tag: of_whole[tag] for tag in tags} == {tag: of_parts[tag] for tag in tags}


def test_a_signal_ends_a_validation_at_once_and_a_resume_repeats_it(
    run_cli, validate, tmp_path, monkeypatch, capsys
) -> None:
    validate(val_split_proportion=0.5, batch_size=1)
    real = Validator._loss
    calls = []

    def loss(self: Validator, *args: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 6:  # in the second one, after the first epoch of two steps
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *args)

    monkeypatch.setattr(Validator, "_loss", loss)
    assert run_cli(max_epochs=2) == 143
    assert len(calls) == 6
    assert list(scalars(tmp_path)["validation/loss/val"]) == [0]
    assert "validation: " not in capsys.readouterr().out.partition("step 2/4")[2]
    assert run_cli(max_epochs=2, resume="latest") == 0
    assert list(scalars(tmp_path)["validation/loss/val"]) == [0, 2, 4]


# What is computed


def test_a_picture_has_the_same_loss_in_any_batch_and_any_company(make_session, validate, photos) -> None:
    def losses_with(**settings: Any) -> list[float]:
        validate(val_split_mode="manual", val_data_root=str(photos), **settings)
        session = make_session(min_snr_gamma=5, zero_frequency_noise_ratio=0.1)
        with session.evaluation():
            return session.validator._losses(session)

    one_by_one, together = losses_with(batch_size=1), losses_with(batch_size=8)
    assert one_by_one == pytest.approx(together, rel=1e-5)
    assert losses_with(batch_size=1, seed=1) != one_by_one
    assert losses_with(batch_size=8) == together, "again the same, to the last bit"


def test_places_are_spread_over_the_timesteps_of_a_set_and_of_each_picture(make_session, validate, photos) -> None:
    validate(val_split_mode="manual", val_data_root=str(photos), timesteps_per_image=4)
    session = make_session(timestep_start=200, timestep_end=600)
    evaluations = [e for _, batch in session.validator._batches for e in batch]
    assert sorted(int(32 * e.place) for e in evaluations) == list(range(32))
    for index in range(8):
        assert sorted(int(4 * e.place) for e in evaluations if e.index == index) == [0, 1, 2, 3]
    assert len({e.seed for e in evaluations}) == 32
    mean = torch.zeros(32, 4, 8, 8)
    places, seeds = [e.place for e in evaluations], [e.seed for e in evaluations]
    noisy = session.diffusion.add_fixed_noise(mean, mean, places, seeds)
    assert sorted(noisy.timesteps.tolist())[0] in range(200, 213)
    assert sorted(noisy.timesteps.tolist())[-1] in range(587, 600)
    assert abs(float(noisy.target.mean())) < 0.05
    assert abs(float(noisy.target.std()) - 1) < 0.05


def test_held_back_pictures_do_not_train_whatever_their_settings(make_session, validate, tmp_path, photos) -> None:
    data = tmp_path / "data"
    shutil.copytree(photos, data)
    (data / "multiply.txt").write_text("3")
    (data / "flip_p.txt").write_text("0.5")
    validate(val_split_proportion=0.5)
    session = make_session(data_root=data)
    (val,) = session.validator.sets
    held_back = {item.path for item in val.scanned.items}
    trained = {path for batch in session.loader.iterate(0) for path in batch.images}
    assert len(held_back) == len(trained) == 4
    assert held_back & trained == set()
    assert held_back | trained == {path for path in data.iterdir() if path.suffix == ".jpg"}
    assert session.loader.epochs.batches(0) == 6


def test_a_set_without_pictures_is_wrong_input(run_cli, validate, tmp_path, photos, capsys) -> None:
    one = tmp_path / "one"
    one.mkdir()
    shutil.copy(next(photos.glob("*.jpg")), one)
    validate()
    assert run_cli(data_root=one) == 2
    assert "leaves nothing to train; lower it, or add pictures" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.jpg").write_bytes(next(photos.glob("*.jpg")).read_bytes()[:3000])
    validate(validate_training=False, extra_manual_datasets={"dog": str(tmp_path / "empty")})
    assert run_cli() == 2
    assert "error: validation.json:4: extra_manual_datasets.dog: no usable image in" in capsys.readouterr().err
    validate(validate_training=False, extra_manual_datasets={"dog": str(tmp_path / "broken")})
    assert run_cli() == 2
    assert "extra_manual_datasets.dog: none of the 1 pictures of dog can be used: " in capsys.readouterr().err


def test_check_shows_the_sets_that_the_run_has(run_cli, make_session, validate, flags, photos, capsys) -> None:
    validate(stabilize_training_loss=True, val_split_proportion=0.4, every_n_epochs=0.5, keep_best_ckpt=True)
    session = make_session()
    capsys.readouterr()
    assert main([*(f"--{key}={value}" for key, value in flags.items()), "--check"]) == 0
    out = capsys.readouterr().out
    assert "\nvalidation: before the first step, every 0.5 epochs and at the end\n    val: 3 of the 8 pictures" in out
    assert "    the weights with the lowest loss of val are kept as best-...\n" in out
    assert re.search(r"\n    every_n_epochs +0\.5 +\(validation.json:4\)\n", out)
    assert main([*(f"--{key}={value}" for key, value in flags.items()), "--check", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    sets = {one.scanned.name: len(one.scanned.items) for one in session.validator.sets}
    assert sets == {"val": 3, "train": 1}
    assert {name: one["pictures"] for name, one in shown["validation"]["sets"].items()} == sets
    assert shown["data"]["pictures"] == 5
    assert shown["validation"]["settings"]["keep_best_ckpt"] == {"value": True, "source": "validation.json:5"}


@pytest.mark.slow
def test_other_pictures_begin_anew_after_a_resume(train_and_stop, run_cli, validate, tmp_path, photos, capsys) -> None:
    extra = tmp_path / "extra"
    shutil.copytree(photos, extra)
    validate(
        validate_training=False, extra_manual_datasets={"dog": str(extra), "cat": str(photos)}, keep_best_ckpt=True
    )
    assert run_cli(max_epochs=1) == 0
    next(extra.glob("*.jpg")).unlink()
    capsys.readouterr()
    assert run_cli(max_epochs=2, resume="latest") == 0
    out = capsys.readouterr().out
    assert "note: validation dog: its pictures, or settings that its loss depends on, have changed" in out
    assert "validation cat: its pictures" not in out
    assert len(bests(tmp_path)) == 2, "what cannot be compared is not replaced"


@pytest.mark.slow
def test_two_processes_share_the_pictures(flags, validate, tmp_path, photos) -> None:
    validate(
        stabilize_training_loss=True, batch_size=1, extra_manual_datasets={"all": str(photos)}, keep_best_ckpt=True
    )
    found = {}
    for processes in (1, 2):
        run = {**flags, "project_name": f"of-{processes}", "batch_size": 4 // processes, "ema_decay_rate": 0.5}
        result = launch(processes, run)
        assert result.returncode == 0, result.stderr[-3000:]
        found[processes] = scalars(tmp_path, f"of-{processes}")
    tags = [tag for tag in found[1] if tag.startswith("validation/")]
    assert len(tags) == 6
    for tag in tags:
        assert found[2][tag] == pytest.approx(found[1][tag], rel=1e-3)
        assert found[2][tag][0] == pytest.approx(found[1][tag][0], rel=1e-6), "before any step"
