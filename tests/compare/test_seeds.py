"""Several seeds: a run for each, and what they have in common."""

from __future__ import annotations

import json

import pytest
from ed_train.compare.arguments import parse
from ed_train.compare.folder import places
from ed_train.compare.report import write_report
from ed_train.compare.seeds import group_lines, groups, groups_as_json, lead_of_seeds, parse_seeds, with_seeds
from ed_train.compare.summary import summarize
from ed_train.errors import ConfigError


def test_each_runs_once_with_each_seed_in_a_folder_of_its_own(setting) -> None:
    members = with_seeds(setting.members("adamw", "lion"), (1, 2))
    assert [m.label for m in members] == ["adamw seed 1", "adamw seed 2", "lion seed 1", "lion seed 2"]
    assert [m.run.train.seed for m in members] == [1, 2, 1, 2]
    assert {m.run.sources["seed"] for m in members} == {"--seeds"}
    found = places(setting.folder / "comparison", members)
    assert [json.loads(json.dumps(place.record))["train"]["seed"] for place in found] == [1, 2, 1, 2]
    later = places(setting.folder / "comparison", with_seeds(setting.members("adamw", "lion"), (1, 2, 3)))
    assert {place.folder for place in found} < {place.folder for place in later}
    assert len({place.folder for place in later}) == 6
    assert with_seeds(setting.members("lion"), ()) == setting.members("lion")


def test_the_mean_and_spread_of_those_that_finished(setting, made_up) -> None:
    members = with_seeds(setting.members("adamw", "lion"), (1, 2, 3))
    losses = [(2.0, 1.0), (2.0, 1.2), (2.0, 1.4), (2.0, 0.5), (2.0, 0.7), None]
    results = [
        made_up(m.label, *values) if values else made_up(m.label, 2.0, 0.1, status="failed", reason="no")
        for m, values in zip(members, losses, strict=True)
    ]
    summary = summarize(members, results)
    lion = groups(summary)[0]
    assert (lion.label, lion.best, lion.of) == ("lion", [0.5, 0.7], 3)
    heading, first, second, lead = (" ".join(line.split()) for line in [*group_lines(summary)][1:])
    assert heading == "over seeds runs best, mean ± std lowest highest final, mean ± std"
    assert first == "lion 2 of 3 0.6000 0.1414 0.5000 0.7000 0.6000 0.1414"
    assert second == "adamw 3 of 3 1.2000 0.2000 1.0000 1.4000 1.2000 0.2000"
    assert lead == "Lowest mean validation loss over seeds: 0.6000 ± 0.1414 with lion."
    assert groups_as_json(summary)[1]["seeds"] == [1, 2, 3]
    found = places(setting.folder / "comparison", members)
    (setting.folder / "comparison").mkdir()
    page = write_report(setting.folder / "comparison", summary, found, setting.run, []).read_text()
    assert "seeds 1, 2, 3" in page
    assert f'<p class="lead">{lead} Before training it was 2.0000.</p>' in page
    assert not (setting.folder / "comparison" / "lr_grid.png").exists()  # seeds are no grid of learning rates
    assert "<td>2 of 3</td><td>0.6000</td><td>0.1414</td>" in page
    assert "<code>seed</code>" not in page
    assert list(group_lines(summarize(setting.members("lion"), [made_up("lion", 1.0)]))) == []


def test_a_difference_that_may_be_luck_is_called_one(setting, made_up) -> None:
    members = with_seeds(setting.members("adamw", "lion", "prodigy"), (1, 2))
    losses = [(2.0, 1.0), (2.0, 1.2), (2.0, 1.05), (2.0, 1.35), (2.0, 1.7), (2.0, 1.72)]
    summary = summarize(members, [made_up(m.label, *v) for m, v in zip(members, losses, strict=True)])
    # standard errors of the differences: sqrt(0.01 + 0.0225) = 0.18 for 0.1, sqrt(0.01 + 0.0001) = 0.10 for 0.61
    assert lead_of_seeds(summary) == (
        "Lowest mean validation loss over seeds: 1.1000 ± 0.1414 with adamw."
        " Not clearly worse, by less than two standard errors: lion (1.2000 ± 0.2121)."
    )


@pytest.mark.parametrize("text", ["", "1,1", "a", "-1", "1.5", "4294967296", "1,,2", "²"])
def test_wrong_seeds_are_refused(text) -> None:
    seeds, (problem,) = parse_seeds(text)
    assert seeds == ()
    assert "expected different whole numbers from 0 to 4294967295, e.g. 1,2,3" in problem.message


def test_one_seed_for_all_contradicts_several() -> None:
    with pytest.raises(ConfigError, match="--seeds: contradicts --seed, which is one for all"):
        parse(["--seeds", "1,2", "--seed", "3"])
    assert parse(["--seeds", "1,2"]).seeds == (1, 2)
