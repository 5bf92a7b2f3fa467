from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import pytest
from ed_train.data.scan import ImageItem, scan_dataset
from ed_train.errors import ConfigError
from PIL import Image

NOBODY = 65534


def scan(root: Path, **changes: float):
    return scan_dataset(root, **{"flip_p": 0.0, "cond_dropout": 0.04, **changes})


def names(entries) -> list[str]:
    return [entry.path.name for entry in entries]


def problems_of(root: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        scan(root)
    assert all("\n" not in str(problem) for problem in caught.value.problems)
    return [str(problem) for problem in caught.value.problems]


def test_images_captions_and_sizes_are_found_recursively(tmp_path, photo):
    photo("chelsea.png", "b/chelsea.png")
    photo("rocket.jpg", "a/deep/er/rocket.JPG")
    (tmp_path / "b" / "chelsea.txt").write_text("a cat")
    dataset = scan(tmp_path, flip_p=0.5)
    rocket, chelsea = dataset.items
    assert chelsea == ImageItem(tmp_path / "b/chelsea.png", 451, 300, chelsea.caption, 1.0, 0.5, 0.04)
    assert chelsea.caption.main == "a cat"
    assert (rocket.width, rocket.height, rocket.caption.main) == (640, 427, "rocket")
    assert dataset.skipped == ()


def test_order_is_that_of_paths_below_the_root(tmp_path, photo):
    for name in ("b/1.png", "a.png", "a/2.png", "B.png", "a/1.png", "a-1.png"):
        photo("text.png", name)
    paths = [item.path.relative_to(tmp_path).as_posix() for item in scan(tmp_path).items]
    assert paths == ["B.png", "a-1.png", "a.png", "a/1.png", "a/2.png", "b/1.png"]


def test_exif_rotated_photo_has_its_upright_size(tmp_path, photo):
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("a.jpg", "a.png", "a.webp"):
        with Image.open(photo("chelsea.png")) as image:
            image.save(tmp_path / name, exif=exif)
    (tmp_path / "chelsea.png").unlink()
    assert [(item.width, item.height) for item in scan(tmp_path).items] == [(300, 451)] * 3


@pytest.mark.parametrize("data", [b"Exif\0\0garbage!", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01"])
def test_damaged_exif_data_is_no_reason_to_skip(tmp_path, photo, data, recwarn):
    with Image.open(photo("rocket.jpg")) as image:
        image.save(tmp_path / "a.jpg", exif=data)
        image.save(tmp_path / "a.png", exif=data)
    assert names(scan(tmp_path).items) == ["a.jpg", "a.png", "rocket.jpg"]
    assert not recwarn.list


def test_zero_byte_file_and_text_named_png_are_skipped_with_the_reason(tmp_path, photo):
    photo()
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.png").write_text("not a picture")
    dataset = scan(tmp_path)
    assert names(dataset.items) == ["chelsea.png"]
    assert [str(skipped) for skipped in dataset.skipped] == [
        f"{tmp_path / 'empty.jpg'}: the file is empty",
        f"{tmp_path / 'text.png'}: the content is no image of a known format (JPEG, PNG, BMP, WebP)",
    ]


def test_postscript_named_png_is_not_handed_to_ghostscript(tmp_path, photo):
    photo()
    (tmp_path / "bad.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    assert names(scan(tmp_path).skipped) == ["bad.png"]


@pytest.mark.parametrize("limit", [Image.MAX_IMAGE_PIXELS, None], ids=["Pillow's limit", "Pillow's limit lifted"])
def test_decompression_bomb_is_skipped(tmp_path, photo, bomb, limit, monkeypatch, recwarn):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    photo()
    bomb(tmp_path / "bomb.png", 60_000, 60_000)
    dataset = scan(tmp_path)
    assert names(dataset.items) == ["chelsea.png"]
    assert [skipped.reason for skipped in dataset.skipped] == ["more than 178 million pixels; scale it down"]
    assert not recwarn.list


def test_1x1_and_1x10000_are_not_skipped(tmp_path):
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    Image.new("RGB", (1, 10_000)).save(tmp_path / "line.png")
    assert [(item.width, item.height) for item in scan(tmp_path).items] == [(1, 1), (1, 10_000)]


def test_a_jpg_and_a_png_share_one_caption(tmp_path, photo):
    photo("rocket.jpg", "a.jpg")
    photo("chelsea.png", "a.png")
    (tmp_path / "a.txt").write_text("shared")
    dataset = scan(tmp_path)
    assert [item.caption.main for item in dataset.items] == ["shared", "shared"]
    assert dataset.notes == (f"caption file of several images ({tmp_path / 'a.txt'})",)


def test_symlink_loops_end(tmp_path, photo):
    photo("chelsea.png", "a/chelsea.png")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "self").symlink_to("self")
    (tmp_path / "a" / "self.jpg").symlink_to("self.jpg")
    dataset = scan(tmp_path)
    assert names(dataset.items) == ["chelsea.png"]
    assert names(dataset.skipped) == ["self", "self.jpg"]
    assert dataset.notes[0] == f"folder met again through a link, not read twice ({tmp_path / 'a/up'})"


def test_what_runs_have_drawn_does_not_train(tmp_path, photo):
    photo("chelsea.png")
    photo("rocket.jpg", "logs/one/samples/rocket.jpg")
    (tmp_path / "logs/one/run.json").write_text('{\n  "ed_train_run": 1}')
    photo("rocket.jpg", "other/rocket.jpg")
    (tmp_path / "other/run.json").write_text('{"of": "somebody else"}')
    dataset = scan(tmp_path)
    assert names(dataset.items) == ["chelsea.png", "rocket.jpg"]
    assert f"folder of a run, not read: what it drew does not train ({tmp_path / 'logs/one'})" in dataset.notes
    assert names(scan(tmp_path / "logs/one").items) == ["rocket.jpg"]  # unless somebody wants just that


def test_links_to_folders_and_files_elsewhere_are_followed(tmp_path, photo):
    photo("chelsea.png", "elsewhere/one.png")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "folder").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "two.png").symlink_to(tmp_path / "elsewhere" / "one.png")
    assert names(scan(tmp_path / "data").items) == ["one.png", "two.png"]


def test_broken_links_are_skipped(tmp_path, photo):
    photo()
    (tmp_path / "gone.jpg").symlink_to("nowhere.jpg")
    assert [str(skipped) for skipped in scan(tmp_path).skipped] == [f"{tmp_path / 'gone.jpg'}: the link leads nowhere"]


def test_a_pipe_named_jpg_does_not_hang(tmp_path, photo):
    photo()
    os.mkfifo(tmp_path / "pipe.jpg")
    os.mkfifo(tmp_path / "chelsea.txt")
    dataset = scan(tmp_path)
    assert [str(skipped) for skipped in dataset.skipped] == [f"{tmp_path / 'pipe.jpg'}: not a regular file"]
    assert dataset.items[0].caption.main == "chelsea"


@pytest.fixture
def without_root():
    """Gives up the right to read everything, if the tests run as root, and yields a folder for it."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    try:
        if os.geteuid() == 0:
            os.seteuid(NOBODY)
        yield folder
    finally:
        os.seteuid(os.getuid())
        subprocess.run(["chmod", "-R", "u+rwx", folder], check=True)
        shutil.rmtree(folder)


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="permissions of POSIX")
def test_permission_denied_is_skipped_or_a_problem(without_root):
    root = without_root
    owner = os.geteuid()
    os.seteuid(os.getuid())
    for name in ("good.png", "locked.png", "folder/in.png"):
        (root / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (9, 9)).save(root / name)
    (root / "good.txt").write_text("secret")
    for name in ("locked.png", "folder", "good.txt"):
        (root / name).chmod(0)
    os.seteuid(owner)
    dataset = scan(root)
    assert names(dataset.items) == ["good.png"]
    assert [(skipped.path.name, skipped.reason) for skipped in dataset.skipped] == [
        ("folder", "permission denied"),
        ("locked.png", "permission denied"),
    ]
    assert dataset.notes == (f"caption file not read (permission denied): the file name is used ({root / 'good.txt'})",)
    os.seteuid(os.getuid())
    (root / "multiply.txt").write_text("2")
    (root / "multiply.txt").chmod(0)
    os.seteuid(owner)
    assert problems_of(root) == [f"{root / 'multiply.txt'}: cannot be read: permission denied"]


@pytest.mark.parametrize(
    "name", ["🐱 cat.png", "two\nlines.png", "café.png", "cafe\u0301.png", "\udce9.png", "%s{x}.png"]
)
def test_odd_file_names(tmp_path, photo, name):
    photo("chelsea.png", name)
    (tmp_path / ("bad" + name)).touch()
    dataset = scan(tmp_path)
    assert [item.path for item in dataset.items] == [tmp_path / name]
    text = "\n".join([*map(str, dataset.skipped), *dataset.notes])
    assert len(text.splitlines()) == 2
    text.encode("utf-8")
    dataset.items[0].caption.main.encode("utf-8")


def test_no_images_names_folder_extensions_and_what_was_skipped(tmp_path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "notes.txt").touch()
    assert problems_of(tmp_path) == [
        f"data_root: no usable image in {tmp_path} or below; looked for .jpg .jpeg .png .bmp .webp .jfif; "
        f"skipped 1: {tmp_path / 'empty.jpg'}: the file is empty"
    ]


def test_a_data_root_that_is_missing_or_a_file(tmp_path, photo):
    expected = f"there is no such folder (the nearest one that exists is {tmp_path})"
    assert problems_of(tmp_path / "a" / "b") == [f"data_root: got {tmp_path / 'a/b'}; {expected}"]
    assert expected in problems_of(photo())[0]


def test_folder_settings_and_their_precedence(tmp_path, photo):
    for name in ("a.png", "sub/b.png", "sub/deep/c.png", "other/d.png", "sub/e.png"):
        photo("text.png", name)
    (tmp_path / "global.yaml").write_text("multiply: 2\nflip_p: 0.1\ncond_dropout: 0.2")
    (tmp_path / "multiply.txt").write_text(" 3\n")
    (tmp_path / "flip_p.txt").write_text("0.3")
    (tmp_path / "local.yaml").write_text("flip_p: 0.4")
    (tmp_path / "sub" / "global.yaml").write_text("multiply: 0.5\ncond_dropout: null")
    (tmp_path / "sub" / "cond_dropout.txt").write_text("0")
    (tmp_path / "sub" / "e.yaml").write_text("cond_dropout: 1")
    settings = {i.path.stem: (i.multiply, i.flip_p, i.cond_dropout) for i in scan(tmp_path).items}
    assert settings == {
        "a": (3.0, 0.4, 0.2),
        "b": (0.5, 0.1, 0.0),
        "c": (0.5, 0.1, 0.2),
        "d": (2.0, 0.1, 0.2),
        "e": (0.5, 0.1, 1.0),
    }


def test_further_settings_of_folders_and_pictures(tmp_path, photo):
    for name in ("a.png", "b.png", "sub/c.png"):
        photo(to=name)
    files = {"loss_scale": "0.5", "batch_id": " horses ", "shuffle_tags": ""}
    for key, text in files.items():
        (tmp_path / f"{key}.txt").write_text(text)
    (tmp_path / "b.yaml").write_text(
        "loss_scale: 0\nbatch_id: 7\nshuffle_tags: false\nmax_caption_length: 9\nrating: 2"
    )
    (tmp_path / "sub" / "local.yaml").write_text("shuffle_tags: true\nrating: 0.5")
    found = {
        i.path.stem: (i.loss_scale, i.batch_id, i.shuffle_tags, i.max_caption_length, i.rating)
        for i in scan(tmp_path).items
    }
    assert found == {
        "a": (0.5, "horses", True, None, 1.0),
        "b": (0.0, "7", False, 9, 2.0),
        "c": (1.0, "", True, None, 0.5),
    }


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("loss_scale.txt", "-1", "loss_scale: got -1.0; expected a number from 0 to 1000, e.g. 0.5"),
        ("shuffle_tags.txt", "on", "shuffle_tags: got 'on' (text); expected true or false"),
        ("batch_id.txt", " ", "batch_id: got '' (text); expected a name, e.g. horses"),
        ("local.yaml", "batch_id: [1]", "batch_id: got [1] (list); expected a name, e.g. horses"),
        ("local.yaml", "shuffle_tags: 1", "shuffle_tags: got 1; expected true or false"),
        ("cat.yaml", "max_caption_length: 0", "max_caption_length: got 0; expected an integer >= 1, e.g. 200"),
        ("cat.yaml", "max_caption_length: 9.5", "max_caption_length: got 9.5; expected an integer >= 1, e.g. 200"),
        ("cat.yaml", "rating: good", "rating: got 'good' (text); expected a number from 0 to 10000, e.g. 2"),
        ("multiply.txt", "nan", "multiply: got nan; expected a number from 0 to 10000, e.g. 2"),
        ("multiply.txt", "-1", "multiply: got -1.0; expected a number from 0 to 10000, e.g. 2"),
        ("multiply.txt", "inf", "multiply: got inf; expected a number from 0 to 10000, e.g. 2"),
        ("multiply.txt", "", "multiply: got '' (text); expected a number from 0 to 10000, e.g. 2"),
        ("flip_p.txt", "50%", "flip_p: got '50%' (text); expected a number from 0 to 1, e.g. 0.5"),
        ("cond_dropout.txt", "2", "cond_dropout: got 2.0; expected a number from 0 to 1, e.g. 0.5"),
        ("local.yaml", "multiply: -1", "multiply: got -1; expected a number from 0 to 10000, e.g. 2"),
        ("global.yaml", "flip_p: yes", "flip_p: got True (true or false); expected a number from 0 to 1, e.g. 0.5"),
        ("cat.yaml", "multiply: .inf", "multiply: got inf; expected a number from 0 to 10000, e.g. 2"),
    ],
)
def test_a_bad_setting_names_file_value_and_what_is_allowed(tmp_path, photo, name, content, message):
    photo(to="cat.png")
    (tmp_path / name).write_text(content)
    assert problems_of(tmp_path) == [f"{tmp_path / name}: {message}"]


@pytest.mark.parametrize("end", ["", " " * 5000], ids=["short", "long"])  # which are read by different loaders
def test_a_key_that_stands_twice_in_a_yaml(tmp_path, photo, end):
    photo(to="cat.png")
    (tmp_path / "cat.yaml").write_text(f"multiply: 1\nflip_p: 0\nmultiply: 2{end}")
    message = "not valid YAML: the key 'multiply' stands in line 1 and in line 3; keep one"
    assert problems_of(tmp_path) == [f"{tmp_path / 'cat.yaml'}:3: {message}"]


def test_a_value_is_quoted_up_to_a_readable_length(tmp_path, photo):
    photo(to="cat.png")
    levels = "\n".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in pairwise("abcdefg"))
    (tmp_path / "cat.yaml").write_text(f"a: &a [x]\n{levels}\nmultiply: *g")
    (line,) = problems_of(tmp_path)
    assert "... (list); expected a number from 0" in line
    assert len(line) < 300


def test_all_problems_of_all_files_are_reported_at_once(tmp_path, photo):
    photo(to="a/1.png")
    photo(to="b/2.png")
    (tmp_path / "a" / "multiply.txt").write_text("nan")
    (tmp_path / "a" / "local.yaml").write_text("flip_p: 3\ncond_dropout: x")
    (tmp_path / "b" / "2.yaml").write_text("multiply: -1")
    assert len(problems_of(tmp_path)) == 4


def test_multiply_0_everywhere_is_an_error(tmp_path, photo):
    photo()
    (tmp_path / "multiply.txt").write_text("0")
    assert problems_of(tmp_path) == [
        f"data_root: multiply is 0 for every image in {tmp_path}: nothing is left to train"
    ]


def test_notes_are_one_line_per_kind(tmp_path, photo):
    for i in range(3):
        photo("text.png", f"{i}.png")
        (tmp_path / f"{i}.txt").write_bytes(b"caf\xe9")
    photo("text.png", "3.png")
    (tmp_path / "README.txt").write_text("hello")
    (tmp_path / "local.yaml").write_text("main_prompt: x\nmultply: 2")
    photo("text.png", ".ipynb_checkpoints/4.png")
    assert scan(tmp_path).notes == (
        f"hidden, not used ({tmp_path / '.ipynb_checkpoints'})",
        f"main_prompt has no effect here ({tmp_path / 'local.yaml'})",
        f"no caption: the file name up to the first _ is used ({tmp_path / '3.png'})",
        f"not UTF-8, read as cp1252 (3 files, e.g. {tmp_path / '0.txt'})",
        f"text file that belongs to no image, not used ({tmp_path / 'README.txt'})",
        f"unknown key 'multply' has no effect; did you mean 'multiply'? ({tmp_path / 'local.yaml'})",
    )


def test_a_folder_file_is_no_caption(tmp_path, photo):
    photo("text.png", "multiply.png")
    (tmp_path / "multiply.txt").write_text("2")
    (item,) = scan(tmp_path).items
    assert (item.caption.main, item.multiply) == ("multiply", 2.0)


def test_scanning_captions_buckets_and_plans_need_no_torch(tmp_path, photo):
    photo()
    code = f"""
import sys
from pathlib import Path
from ed_train.data import buckets, captions, images, plan, scan
items = scan.scan_dataset(Path({str(tmp_path)!r}), flip_p=0.5, cond_dropout=0.1).items
assigned, notes = buckets.assign_buckets(items, 512)
options = dict(batch_size=4, crops=1, shuffle_tags=True, keep_tags=0, seed=0, epoch=0)
assert len(plan.plan_epoch(items, assigned, **options)) == 1
heavy = [name for name in ("torch", "numpy", "safetensors", "transformers", "diffusers") if name in sys.modules]
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_other_trainers_read_and_ours_does_not_is_said(tmp_path, photo):
    for folder in ("10_cat", "3_dog", "2023_trip", "cats"):
        photo("chelsea.png", f"{folder}/chelsea.png")
        (tmp_path / folder / "chelsea.txt").write_text("a cat")
    (tmp_path / "3_dog" / "multiply.txt").write_text("3")
    (tmp_path / "cats" / "metadata.jsonl").write_text('{"file_name": "chelsea.png", "text": "a tabby cat"}')
    assert scan(tmp_path).notes == (
        f"a number in a folder's name is no number of repeats; a multiply.txt in the folder is ({tmp_path / '10_cat'})",
        f"captions in it are not read; see docs/coming-from.md ({tmp_path / 'cats' / 'metadata.jsonl'})",
    )
