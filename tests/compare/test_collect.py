"""What is read from the files of a run: each step once, values that are not finite left out, time without pauses."""

from __future__ import annotations

import math

import pytest
from ed_train.compare.collect import collect
from ed_train.compare.folder import State
from ed_train.train.events import EventLog


@pytest.fixture
def place(setting):
    (place,) = setting.places("lion")
    place.state = State("done", seconds=9.0, attempts=2, run="lion")
    (place.folder / "lion").mkdir(parents=True)
    return place


def log(place, values: dict[int, dict[str, float]], first_step: int = 0) -> None:
    events = EventLog(place.folder / "lion", first_step, print)
    for step, scalars in values.items():
        events.write(scalars, step)
    events.close()


def test_curves_with_the_time_of_their_steps(place) -> None:
    log(place, {0: {"validation/loss/val": 0.5}})
    log(place, {10: {"loss": 1.0, "step_seconds": 3.0}, 20: {"loss": math.nan, "step_seconds": 1.0}})
    log(place, {25: {"validation/loss/val": 0.4}, 30: {"loss": 0.5, "step_seconds": 0.5}})
    result = collect(place)
    assert result.loss.steps == (10, 30)
    assert result.loss.seconds == (30.0, 45.0)
    assert result.validation["val"].seconds == (0.0, 42.5)
    assert result.validation["val"].best == (pytest.approx(0.4), 25)
    assert result.train_seconds == 45.0
    assert result.step_seconds == 0.75, "the median without the first log point"


def test_what_a_resumed_run_took_again_counts_once(place) -> None:
    log(place, {step: {"loss": 1.0, "step_seconds": 1.0} for step in (1, 2, 3, 4)})
    log(place, {step: {"loss": 2.0, "step_seconds": 1.0} for step in (3, 4, 5)}, first_step=2)
    result = collect(place)
    assert result.loss.steps == (1, 2, 3, 4, 5)
    assert result.loss.values == (1.0, 1.0, 2.0, 2.0, 2.0)
    assert result.train_seconds == 5.0


def test_state_of_all_components_together(place) -> None:
    log(place, {1: {"optimizer_state_mb/unet": 2.0, "optimizer_state_mb/text_encoder": 0.5, "memory_gb": 3.0}})
    result = collect(place)
    assert (result.state_mb, result.memory_gb) == (2.5, 3.0)


def test_an_empty_or_damaged_folder_gives_what_is_there(place) -> None:
    (place.folder / "lion" / "run.json").write_text("{")
    (place.folder / "lion" / "events.out.tfevents.1.x").write_bytes(b"\x01\x02damaged")
    result = collect(place)
    assert (result.status, result.seconds, result.loss.steps, result.record) == ("done", 9.0, (), {})


def test_samples_of_the_average_where_only_it_is_drawn(place) -> None:
    samples = place.folder / "lion" / "samples"
    samples.mkdir()
    names = [
        "after-ema-00-a-cat-cfg7.jpg",
        "after-ema-01-a-dog-cfg7.jpg",
        "after-ema-grid.jpg",
        "before-00-a-cat-cfg7.jpg",
    ]
    for name in names:
        (samples / name).touch()
    result = collect(place)
    assert [path.name for path in result.samples] == names[:2]
    assert [path.name for path in result.before] == names[3:]
