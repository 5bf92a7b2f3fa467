from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ed_train.models.prompts import SamplePrompt, SampleSettings, read_sample_prompts


def read(
    tmp_path: Path, content: str | bytes | dict[str, Any], name: str = ""
) -> tuple[SampleSettings | None, list[str]]:
    path = tmp_path / (name or ("prompts.json" if isinstance(content, dict) else "prompts.txt"))
    if isinstance(content, dict):
        content = json.dumps(content, indent=1)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    settings, problems = read_sample_prompts(path)
    assert (settings is None) == bool(problems)
    return settings, [str(problem) for problem in problems]


def test_a_text_file_has_one_prompt_per_line(tmp_path: Path) -> None:
    settings, _ = read(tmp_path, "\ufeffa cat\n\n# not this\n   a dog, on a sofa  \r\nête ☃ #1\n")
    assert settings == SampleSettings(
        samples=tuple(SamplePrompt(prompt=p) for p in ("a cat", "a dog, on a sofa", "ête ☃ #1"))
    )


def test_a_json_file_with_everything(tmp_path: Path) -> None:
    settings, _ = read(
        tmp_path,
        {
            "doc": "notes", "batch_size": 3, "seed": 7, "cfgs": [7, 4, 1.01], "scheduler": "dpm++_2m",
            "resolution": 640, "num_inference_steps": 15, "show_progress_bars": True,
            "generate_samples_every_n_steps": 200, "generate_pretrain_samples": True,
            "samples": [
                {"prompt": "a cat", "negative_prompt": "a dog", "seed": -1, "size": [640, 384]},
                {"random_caption": True, "size": None, "aspect_ratio": 1.5},
            ],
        },
    )  # fmt: skip
    assert settings is not None
    assert vars(settings) == {
        "batch_size": 3, "seed": 7, "cfgs": (7, 4, 1.01), "scheduler": "dpm++_2m", "resolution": 640,
        "num_inference_steps": 15,
        "show_progress_bars": True, "generate_samples_every_n_steps": 200, "generate_pretrain_samples": True,
        "samples": (
            SamplePrompt(prompt="a cat", negative_prompt="a dog", seed=-1, size=(640, 384)),
            SamplePrompt(random_caption=True, aspect_ratio=1.5),
        ),
    }  # fmt: skip


def test_options_in_a_line_of_text_are_refused_and_not_drawn(tmp_path: Path) -> None:
    settings, problems = read(tmp_path, "a cat -- asleep --\n# a dog --w 512\na dog --n lowres --w 512 --d 1\n")
    assert settings is None
    (problem,) = problems
    assert problem.startswith("prompts.txt:3: --n is no option here; a .json file has negative_prompt, size and seed")


def test_what_a_json_file_leaves_out_is_as_in_a_text_file(tmp_path: Path) -> None:
    assert read(tmp_path, {"samples": [{"prompt": "a cat"}]})[0] == read(tmp_path, "a cat")[0]


def test_explicit_zeros_are_kept(tmp_path: Path) -> None:
    settings, _ = read(
        tmp_path,
        {"seed": 0, "cfgs": [0], "generate_samples_every_n_steps": 0, "samples": [{"prompt": "x", "seed": 0}]},
    )
    assert settings is not None
    assert (settings.seed, settings.cfgs, settings.generate_samples_every_n_steps) == (0, (0,), 0)
    assert settings.samples[0].seed == 0


def test_every_problem_is_reported_with_its_line(tmp_path: Path) -> None:
    _, problems = read(
        tmp_path,
        {
            "batch_size": 0,
            "cfgs": 7,
            "schedular": "ddim",
            "samples": [
                {"prompt": "a cat", "size": [640, 100]},
                {"prompt": 3},
                "a dog",
                {},
                {"promt": "x", "prompt": "y"},
            ],
        },
    )  # fmt: skip
    assert problems == [
        "prompts.json:2: batch_size: got 0 (number); expected an integer >= 1 and <= 256",
        "prompts.json:3: cfgs: got 7 (number); expected a list of numbers >= 0",
        "prompts.json:4: schedular: unknown key; did you mean 'scheduler'?",
        "prompts.json:7: samples[0]: size: got [640, 100]; expected multiples of 8 (better: of 64)",
        "prompts.json:14: samples[1].prompt: got 3 (number); expected a text",
        'prompts.json:16: samples[2]: got "a dog" (string); expected an object',
        "prompts.json:17: samples[3]: has neither a prompt nor random_caption: true",
        "prompts.json:19: samples[4].promt: unknown key; did you mean 'prompt'?",
    ]


@pytest.mark.parametrize(
    "content",
    [
        {"cfgs": []},
        {"scheduler": "kdpm2"},
        {"resolution": 500},
        {"samples": [{"prompt": "x", "size": [64, 64], "aspect_ratio": 1}]},
        {"samples": [{"prompt": "x", "aspect_ratio": 5}]},
        {"num_inference_steps": 1.5},
        {"seed": 2**32},
        {"samples": "a cat"},
        {"samples": [{"prompt": "x", "size": [64]}]},
        {"samples": [{"prompt": "x", "size": [8, 8]}]},
        {"cfgs": [True]},
    ],
)
def test_bad_values(content: dict[str, Any], tmp_path: Path) -> None:
    _, problems = read(tmp_path, {"samples": [{"prompt": "a cat"}], **content})
    assert len(problems) == 1
    assert next(iter(content)) in problems[0]


@pytest.mark.parametrize("content", [b"", b"\n# only a comment\n"])
def test_a_file_without_prompts(content: bytes, tmp_path: Path) -> None:
    assert read(tmp_path, content)[1] == ["prompts.txt: there are no prompts in it; add some, or remove sample_prompts"]


@pytest.mark.parametrize("name", ["prompts.txt", "prompts.json"])
def test_files_that_cannot_be_read(name: str, tmp_path: Path) -> None:
    assert len(read(tmp_path, b"\xff\xfea\x00", name)[1]) == 1
    assert read_sample_prompts(tmp_path / f"no-{name}")[1]
    (tmp_path / f"folder-{name}").mkdir()
    assert read_sample_prompts(tmp_path / f"folder-{name}")[1]
    assert len(read_sample_prompts(tmp_path / f"{'x' * 300}{name}")[1]) == 1
