from __future__ import annotations

import random
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from ed_train.data.captions import Caption, Tag, read_caption
from ed_train.data.files import Findings, FolderFiles


def read(folder: Path, image: str = "cat_01.jpg"):
    findings = Findings()
    files = FolderFiles(folder, [path.name for path in folder.iterdir()])
    caption, overrides = read_caption(folder / image, files, findings)
    return caption, overrides, findings


def rendered(caption: Caption, *, shuffle_tags: bool = False, keep_tags: int = 0, seed: int = 0) -> str:
    return caption.render(random.Random(seed), shuffle_tags=shuffle_tags, keep_tags=keep_tags)


@pytest.mark.parametrize("suffix", [".txt", ".caption"])
def test_text_file_of_the_same_stem(tmp_path, suffix):
    (tmp_path / f"cat_01{suffix}").write_text(" a cat,asleep ,  on a mat\n", encoding="utf-8")
    caption, overrides, findings = read(tmp_path)
    assert rendered(caption) == "a cat,asleep ,  on a mat"
    assert overrides == {}
    assert findings.notes == []


def test_text_file_wins_over_yaml_whose_settings_still_hold(tmp_path):
    (tmp_path / "cat_01.txt").write_text("from text")
    (tmp_path / "cat_01.yaml").write_text("main_prompt: from yaml\nmultiply: 3\n")
    caption, overrides, findings = read(tmp_path)
    assert rendered(caption) == "from text"
    assert overrides == {"multiply": 3.0}
    assert findings.notes == [("main_prompt has no effect here", tmp_path / "cat_01.yaml")]


def test_yaml_caption_with_weights_and_settings(tmp_path):
    (tmp_path / "cat_01.yaml").write_text(
        "main_prompt: a cat, asleep\ntags:\n  - tag: red\n    weight: 0.5\n  - blue\nflip_p: 0.25\ncond_dropout: 0\n"
    )
    caption, overrides, findings = read(tmp_path)
    assert caption == Caption("a cat, asleep", (Tag("red", 0.5), Tag("blue", 1.0)), is_tag_list=False)
    assert overrides == {"flip_p": 0.25, "cond_dropout": 0.0}
    assert findings.problems == findings.notes == []


def test_missing_caption_is_the_file_name_up_to_the_first_underscore(tmp_path):
    caption, _, findings = read(tmp_path, "a tabby cat_01_b.jpg")
    assert caption.main == "a tabby cat"
    assert findings.notes == [
        ("no caption: the file name up to the first _ is used", tmp_path / "a tabby cat_01_b.jpg")
    ]


def test_yaml_with_settings_only_leaves_the_caption_to_the_file_name(tmp_path):
    (tmp_path / "cat_01.yaml").write_text("multiply: 2")
    caption, overrides, _ = read(tmp_path)
    assert (caption.main, overrides) == ("cat", {"multiply": 2.0})


@pytest.mark.parametrize("text", ["", " \n", ", , ,,"])
def test_empty_caption_and_only_commas_train_as_an_empty_prompt(tmp_path, text):
    (tmp_path / "cat_01.txt").write_text(text)
    caption, _, findings = read(tmp_path)
    assert rendered(caption) == rendered(caption, shuffle_tags=True) == ""
    assert findings.notes == [("empty caption: trains as an empty prompt", tmp_path / "cat_01.txt")]


@pytest.mark.parametrize(
    ("data", "text", "note"),
    [
        (b"\xef\xbb\xbfa caf\xc3\xa9", "a café", None),
        (b"a caf\xe9 \x8134", "a café \ufffd34", "not UTF-8, read as cp1252"),
        ("a café".encode("utf-16"), "a café", "not UTF-8, read as UTF-16"),
        (b"a\0 cat\0", "a cat", "NUL characters removed"),
    ],
    ids=["BOM", "cp1252", "utf-16", "NUL"],
)
def test_caption_in_an_odd_encoding(tmp_path, data, text, note):
    (tmp_path / "cat_01.txt").write_bytes(data)
    caption, _, findings = read(tmp_path)
    assert caption.main == text
    assert [kind for kind, _ in findings.notes] == ([note] if note else [])


def test_caption_of_1_mb_is_refused_and_the_file_name_used(tmp_path):
    (tmp_path / "cat_01.txt").write_bytes(b"x" * (1 << 20))
    assert len(read(tmp_path)[0].main) == 1 << 20
    (tmp_path / "cat_01.txt").write_bytes(b"x" * ((1 << 20) + 1))
    caption, _, findings = read(tmp_path)
    assert caption.main == "cat"
    assert findings.notes[0][0] == "caption file not read (larger than 1 MB): the file name is used"


def test_caption_is_found_in_the_other_unicode_form_and_case(tmp_path):
    (tmp_path / unicodedata.normalize("NFD", "café_1.TXT")).write_text("a café")
    assert read(tmp_path, unicodedata.normalize("NFC", "café_1.jpg"))[0].main == "a café"


def test_exact_name_wins_over_one_in_another_case(tmp_path):
    (tmp_path / "A.txt").write_text("upper")
    (tmp_path / "a.txt").write_text("lower")
    assert read(tmp_path, "A.jpg")[0].main == "upper"
    assert read(tmp_path, "a.jpg")[0].main == "lower"


def test_file_name_that_is_not_text_gives_a_caption_that_is(tmp_path):
    caption, _, _ = read(tmp_path, "caf\udce9 noir\n2_1.jpg")
    assert caption.main == "caf\ufffd noir 2"


@pytest.mark.parametrize(
    ("content", "key", "part"),
    [
        ("multiply: .nan", "multiply", "got nan; expected a number from 0 to 10000, e.g. 2"),
        ("multiply: -1", "multiply", "got -1;"),
        ("multiply: true", "multiply", "got True (true or false);"),
        ("flip_p: '0.5'", "flip_p", "got '0.5' (text); expected a number from 0 to 1, e.g. 0.5"),
        ("cond_dropout: 1.5", "cond_dropout", "got 1.5;"),
        ("main_prompt: 2001", "main_prompt", "got 2001; expected text"),
        ("tags: red", "tags", "got 'red' (text); expected a list"),
        ("tags: [red, {tag: blue, weight: -1}]", "tags[2]", "expected text, or {tag: text, weight:"),
        ("tags: [{tag: blue, wieght: 1}]", "tags[1]", "'wieght': 1"),
        ("- a list", "", "got ['a list'] (list); expected keys and values, e.g. multiply: 2"),
        ("a: [1,", "", "not valid YAML"),
        ("[" * 100_000, "", "not valid YAML"),
        ("multiply: " + "9" * 5000, "", "not valid YAML"),
        ("&a [*a]", "", "expected keys and values"),
        ("a: !!python/object/apply:os.getcwd []", "", "not valid YAML"),
    ],
)
def test_bad_yaml_is_one_problem_that_names_file_key_and_value(tmp_path, content, key, part):
    (tmp_path / "cat_01.yaml").write_text(content)
    (problem,) = read(tmp_path)[2].problems
    assert problem.where.startswith(str(tmp_path / "cat_01.yaml"))
    assert problem.key == key
    assert part in problem.message
    assert "\n" not in str(problem)
    assert len(problem.message) < 250


def test_every_problem_of_a_yaml_is_reported(tmp_path):
    (tmp_path / "cat_01.yaml").write_text("multiply: -1\nflip_p: 2\ntags: 3\n")
    assert [problem.key for problem in read(tmp_path)[2].problems] == ["multiply", "flip_p", "tags"]


def test_yaml_keys_without_effect_are_noted(tmp_path):
    (tmp_path / "cat_01.yaml").write_text("main_prompt: x\nmultipy: 2\nfoo: 1\n")
    assert [kind for kind, _ in read(tmp_path)[2].notes] == [
        "unknown key 'multipy' has no effect; did you mean 'multiply'?",
        "unknown key 'foo' has no effect",
    ]


def test_shuffled_text_keeps_its_first_tags_and_all_parts():
    caption = Caption("a, b,c , d,, e")
    seen = {rendered(caption, shuffle_tags=True, keep_tags=2, seed=seed) for seed in range(60)}
    assert all(text.startswith("a, b, ") for text in seen)
    assert {tuple(sorted(text.split(", "))) for text in seen} == {("a", "b", "c", "d", "e")}
    assert len(seen) == 6  # every order of c, d, e


def test_main_prompt_stays_first_and_whole_when_tags_are_shuffled():
    caption = Caption("a cat, asleep", (Tag("x"), Tag("y"), Tag("z")), is_tag_list=False)
    seen = {rendered(caption, shuffle_tags=True, keep_tags=1, seed=seed) for seed in range(40)}
    assert seen == {"a cat, asleep, x, y, z", "a cat, asleep, x, z, y"}
    assert rendered(caption) == "a cat, asleep, x, y, z"


def test_tags_are_shuffled_by_weight():
    caption = Caption("", (Tag("light", 1.0), Tag("heavy", 3.0), Tag("none", 0.0)), is_tag_list=False)
    rng = random.Random(0)
    first = Counter(caption.render(rng, shuffle_tags=True, keep_tags=0).split(", ")[0] for _ in range(4000))
    assert first["none"] == 0
    assert first["heavy"] / 4000 == pytest.approx(0.75, abs=0.03)


LONG = Caption("a cat, asleep,  on a sofa")
YAML = Caption("a cat, asleep", (Tag("red"), Tag("on a sofa"), Tag("blue")), is_tag_list=False)


@pytest.mark.parametrize(
    ("caption", "limit", "expected"),
    [
        (LONG, 25, "a cat, asleep,  on a sofa"),  # as it is
        (LONG, 24, "a cat, asleep, on a sofa"),
        (LONG, 23, "a cat, asleep"),
        (LONG, 12, "a cat"),
        (LONG, 1, "a cat"),
        (YAML, 35, "a cat, asleep, red, on a sofa, blue"),
        (YAML, 34, "a cat, asleep, red, on a sofa"),
        (YAML, 28, "a cat, asleep, red"),  # blue would fit, and would stand where it never does
        (YAML, 1, "a cat, asleep"),
        (Caption(""), 5, ""),
    ],
)
def test_a_limit_leaves_whole_parts_out(caption, limit, expected):
    assert caption.render(random.Random(0), shuffle_tags=False, keep_tags=0, max_length=limit) == expected


def test_a_limit_holds_for_shuffled_captions(tmp_path):
    for caption in (LONG, YAML):
        for seed in range(20):
            options = {"shuffle_tags": True, "keep_tags": 1}
            whole = caption.render(random.Random(seed), **options)
            short = caption.render(random.Random(seed), **options, max_length=18)
            assert len(short) <= 18
            assert whole.startswith(f"{short}, ")
