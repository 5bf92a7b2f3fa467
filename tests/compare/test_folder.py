"""What is finished is found again, and only if nothing that matters has changed."""

from __future__ import annotations

import json
import os

import pytest
from ed_train.compare.folder import DONE, INTERRUPTED, RUNNING, State, places, prepare, stray
from ed_train.compare.runner import judged
from ed_train.config.load import load_config
from ed_train.errors import ConfigError


def test_the_configuration_of_a_member_is_one_that_ed_train_reads(setting) -> None:
    (place,) = setting.places("lion@1e-5")
    prepare(place)
    run = load_config({}, setting.registry, place.config)
    assert {c.optimizer.spec.name for c in run.components.values()} == {"lion"}
    assert run.components["unet"].options.lr == 1e-5
    assert (run.train.logdir, run.train.run_name) == (str(place.folder), "lion-lr-1e-5")
    assert run.train.cache_dir == setting.run.train.cache_dir, "all members share the cache"
    assert run.train.seed == setting.run.train.seed


def test_a_state_is_kept_and_a_run_whose_process_is_gone_counts_as_interrupted(setting) -> None:
    done, running = setting.places("lion", "adamw")
    for place, status in ((done, DONE), (running, RUNNING)):
        prepare(place)
        place.state = State(status, seconds=3.5, attempts=1)
        place.keep()
    done, running = setting.places("lion", "adamw")
    assert done.state == State(DONE, seconds=3.5, attempts=1)
    assert running.state.status == INTERRUPTED
    (done.folder / "state.json").write_text('{"status": 3}')
    assert setting.places("lion")[0].state == State()


@pytest.mark.parametrize("change", ["lr", "steps", "picture", "caption", "model"])
def test_whatever_changes_what_is_learnt_makes_it_another_run(setting, change) -> None:
    (before,) = setting.places("lion")
    prepare(before)
    if change == "picture":
        os.utime(setting.folder / "data" / "a red picture.png", (1, 1))
    elif change == "caption":
        (setting.folder / "data" / "a red picture.txt").write_text("another one")
    elif change == "model":
        setting.flags["resume_ckpt"] = "owner/other"
    else:
        setting.flags |= {"lr": {"lr": "1e-5"}, "steps": {"max_steps": "7"}}[change]
    (after,) = setting.places("lion")
    assert after.folder != before.folder
    assert stray(setting.folder / "comparison", [after]) == [before.folder.name]


def test_another_version_of_a_library_makes_it_another_run(setting, monkeypatch) -> None:
    (before,) = setting.places("lion")
    monkeypatch.setattr("ed_train.compare.folder._version", lambda name: f"{name} 99")
    assert setting.places("lion")[0].folder != before.folder


def test_where_things_are_written_changes_nothing(setting) -> None:
    (before,) = setting.places("lion")
    setting.flags |= {"logdir": str(setting.folder / "elsewhere"), "save_ckpt_dir": str(setting.folder / "ckpts")}
    (after,) = setting.places("lion")
    assert after.folder == before.folder
    assert after.record["train"]["save_ckpt_dir"] == str(setting.folder / "ckpts" / after.folder.name)


def test_data_without_a_picture_is_a_problem_before_anything_trains(setting) -> None:
    members = setting.members("lion")
    (setting.folder / "data" / "a red picture.png").unlink()
    with pytest.raises(ConfigError, match="data_root"):
        places(setting.folder / "comparison", members)


def test_only_the_folder_of_its_own_run_counts(setting) -> None:
    (place,) = setting.places("lion")
    for name in ("lion", "lion-2"):  # the second one by somebody who repeated it from its configuration
        (place.folder / name).mkdir(parents=True)
    assert place.run_folder is None
    place.state.run = "lion"
    place.keep()
    (place,) = setting.places("lion")
    assert place.run_folder == place.folder / "lion"


@pytest.mark.parametrize(
    ("status", "lines", "expected"),
    [
        (0, ["trained 3 steps"], ("done", "")),
        (130, ["ed-train: interrupted by SIGINT"], ("interrupted", "")),
        (143, [], ("interrupted", "")),
        (1, ["error: training stopped at step 12: the loss is not finite, 10 steps in a row"], "diverged"),
        (1, ["step 3", "error: lion 1.0: a step of lion failed: RuntimeError: boom"], "failed"),
        (2, ["error: data_root: is not finite"], "failed"),
        (-9, ["step 3/4"], "failed"),
        (1, [], ("failed", "exit status 1")),
    ],
)
def test_how_an_end_is_judged(status, lines, expected) -> None:
    found, reason = judged(status, lines)
    if isinstance(expected, tuple):
        assert (found, reason) == expected
    else:
        assert found == expected
        assert reason
        assert not reason.startswith("error: ")


def test_the_record_is_json(setting) -> None:
    (place,) = setting.places("prodigy")
    prepare(place)
    assert json.loads(place.config.read_text())["optimizer"]["base"]["optimizer"].endswith("prodigy")
