"""The report: whole without anything else, escaped, and whole where values are missing or not finite."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from ed_train.compare.canvas import DARK, LIGHT
from ed_train.compare.collect import Curve, Result
from ed_train.compare.plots import Series, below, draw_png, line_plot, spread, styles
from ed_train.compare.report import write_report
from ed_train.compare.scales import axis_over, tick_texts
from ed_train.compare.summary import as_json, summarize, table_lines
from ed_train.models.grid import Sample, sample_grid
from ed_train.models.samples import save_samples
from PIL import Image

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NASTY = "<script>alert(\"x\")</script> & 'quotes'"


class Strict(HTMLParser):
    """Notes addresses, and whether every element that is opened is closed in order."""

    VOID = {"meta", "img", "br", "polyline", "polygon", "text"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag, attributes) -> None:
        self.tags.add(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def write(setting):
    """Write the report of made-up results."""

    def write(results, *names):
        places = setting.places(*(names or [result.label for result in results]))
        summary = summarize([place.member for place in places], results)
        folder = setting.folder / "comparison"
        folder.mkdir(exist_ok=True)
        return write_report(folder, summary, places, setting.run, ["old-12345678"]), summary

    return write


def parsed(page: str) -> Strict:
    parser = Strict()
    parser.feed(page)
    assert parser.open == []
    return parser


def test_a_report_needs_nothing_but_itself(write, made_up, setting) -> None:
    path, _ = write([made_up("adamw", 0.5, 0.4, 0.3), made_up("lion", 0.5, 0.45, 0.41)])
    page = path.read_text("utf-8")
    parser = parsed(page)
    assert parser.addresses == []
    assert "script" not in parser.tags
    assert not re.search(r"url\(|@import|https?://", page)
    assert "Lowest validation loss: 0.3000 with adamw at step 20; before training it was 0.5000." in page
    assert "40.0% better than the start" in page
    assert "old-12345678" in page
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(svg)
    pictures = {path.stem for path in path.parent.glob("*.png")}
    assert pictures == {
        "validation_loss_steps", "validation_loss_time", "training_loss", "effective_lr", "step_time",
        "optimizer_state",
    }  # fmt: skip
    for name in pictures:
        with Image.open(path.parent / f"{name}.png") as image:
            assert image.width == 1280
            assert len(image.getcolors(100_000)) > 20
    results = json.loads((path.parent / "results.json").read_text())
    assert [run["best"] for run in results["runs"]] == [0.3, 0.41]


def test_what_users_write_is_escaped(write, made_up, setting) -> None:
    pictures = []
    for moment in ("before", "after"):
        file = setting.folder / f"{moment}-00-script-alert-x-cfg7.png"
        Image.new("RGB", (64, 64), "blue").save(file)
        pictures.append((file,))
    record = {"sample_prompts": {"samples": [{"prompt": NASTY}], "cfgs": [7]}, "device": NASTY}
    result = made_up("lion", 0.5, math.pi, before=pictures[0], samples=pictures[1], record=record, reason=NASTY)
    path, _ = write([result])
    page = path.read_text("utf-8")
    assert "script" not in parsed(page).tags
    assert "&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt; &amp; &#x27;quotes&#x27;" in page
    assert page.count("data:image/jpeg;base64,") == 2
    assert (path.parent / "samples.png").exists()


def test_a_sample_of_a_caption_is_labelled_with_the_whole_caption(write, made_up, setting) -> None:
    caption = "a rocket, on its launch pad | at dusk, " + "detailed, " * 10 + "cfg"
    sample = Sample("00-a-rocket", 0, caption, "", 555, 7.0, Image.new("RGB", (64, 64), "blue"))
    paths = save_samples([sample], sample_grid([sample], "title"), setting.folder / "samples", "after")
    record = {"sample_prompts": {"samples": [{"random_caption": True}], "cfgs": [7]}}
    path, _ = write([made_up("lion", 0.5, samples=tuple(paths[:1]), record=record)])
    assert f'<th scope="row">{caption}</th>' in path.read_text("utf-8")


def test_missing_values_and_runs_without_any_are_dashes(write, made_up) -> None:
    results = [
        made_up("adamw", 0.5, 0.4),
        Result("lion", "failed", "boom"),
        Result("prodigy", "waiting"),
        made_up("dadapt_lion", 0.5, 0.6, status="diverged", step_seconds=None, state_mb=None),
    ]
    path, summary = write(results)
    parsed(path.read_text("utf-8"))
    lines = table_lines(summary)
    assert [line.split()[0] for line in lines[1:5]] == ["adamw", "dadapt_lion", "lion", "prodigy"]
    assert "failed: boom" in lines[3]
    assert "diverged" in lines[2]
    assert lines[4].split()[2:] == ["–"] * 7 + ["waiting"]
    json.dumps(as_json(summary), allow_nan=False)


def test_a_run_that_diverged_ranks_below_those_that_finished(write, made_up) -> None:
    results = [made_up("adamw", 0.5, 0.1, 9.0, status="diverged"), made_up("lion", 0.5, 0.4)]
    path, summary = write(results)
    assert [row.member.label for row in summary.ranked] == ["lion", "adamw"]
    assert summary.rows[1].verdict.startswith("lowest")
    assert "Lowest validation loss: 0.4000 with lion" in path.read_text("utf-8")


def test_nothing_at_all_is_a_report_too(write) -> None:
    path, _ = write([Result("lion", "waiting")])
    page = path.read_text("utf-8")
    parsed(page)
    assert "No run is finished yet." in page


def test_verdicts(write, made_up) -> None:
    results = [
        made_up("adamw", 1.0, 0.5, 0.4),
        made_up("lion", 1.0, 0.6, 0.8),
        made_up("prodigy", 1.0, 0.999, 0.998),
        made_up("adamw8bit", 1.0, 0.9, 1.2),
    ]
    _, summary = write(results)
    assert {row.member.label: row.verdict for row in summary.rows} == {
        "adamw": "lowest; 60.0% better than the start",
        "lion": "40.0% better than the start; rises after step 10",
        "prodigy": "no better than the start",
        "adamw8bit": "ends worse than the start; rises after step 10",
    }


def test_without_validation_the_loss_of_training_is_used_and_that_is_said(write, made_up) -> None:
    path, summary = write([made_up("adamw", 1.0, 0.5, 0.7, validation={})])
    assert summary.measure == "training loss"
    assert "rises" not in summary.rows[0].verdict
    assert "nothing is validated" in path.read_text("utf-8")
    assert not (path.parent / "validation_loss_steps.png").exists()


def test_a_grid_has_a_plot_over_the_learning_rates(write, made_up) -> None:
    names = ["adamw@1e-5", "adamw@1e-4", "lion@1e-6"]
    labels = ["adamw lr 1e-5", "adamw lr 1e-4", "lion lr 1e-6"]
    path, _ = write([made_up(label, 0.5, 0.4 - 0.01 * i) for i, label in enumerate(labels)], *names)
    assert (path.parent / "lr_grid.png").exists()


def test_values_far_apart_get_a_logarithmic_axis_and_zeros_do_not() -> None:
    look = styles(["a"])[0]
    wide = line_plot("n", "t", [Series("a", look, [(0, 1e-3), (1, 10.0)])], x="x", y="y")
    assert wide
    assert wide.y.log
    zero = line_plot("n", "t", [Series("a", look, [(0, 0.0), (1, 10.0)])], x="x", y="y", log_y=True)
    assert zero
    assert not zero.y.log
    assert line_plot("n", "t", [Series("a", look, [])], x="x", y="y") is None


@pytest.mark.parametrize("values", [[0.5], [0, 0], [1e-9, 1e3], [-1, 1], [0.1231, 0.1232], [1e7, 2e7]])
@pytest.mark.parametrize("log", [False, True])
def test_ticks_are_few_round_and_on_the_axis(values, log) -> None:
    if log and min(values) <= 0:
        return
    axis = axis_over(values, label="", log=log)
    assert 1 <= len(axis.ticks) <= 9
    assert all(-1e-6 <= axis.share(tick) <= 1 + 1e-6 for tick in axis.ticks)
    assert all(0 < axis.share(value) < 1 for value in values)
    assert len(set(tick_texts(axis.ticks))) == len(axis.ticks)


def test_a_line_that_goes_off_is_cut_and_does_not_flatten_the_others() -> None:
    look, other = styles(["a", "b"])
    good = Series("a", look, [(0, 1.0), (1, 0.9), (2, 0.8)])
    off = Series("b", other, [(0, 1.0), (1, 3.0), (2, 1.0), (3, 1e30)])
    plot = line_plot("n", "t", [good, off], x="x", y="y", cut=True)
    assert plot
    assert plot.y.high < 1.1
    assert below(off.points, 2.0) == [[(0, 1.0), (0.5, 2.0)], [(1.5, 2.0), (2, 1.0), (pytest.approx(2), 2.0)]]
    assert below(good.points, 2.0) == [good.points]
    draw_png(plot)


def test_a_line_that_begins_low_by_luck_is_not_cut() -> None:
    series = [Series(name, look, [(0, 0.5), (1, 1.0), (2, 0.8)]) for name, look in zip("ab", styles("ab"), strict=True)]
    plot = line_plot("n", "t", series, x="x", y="y", cut=True)
    assert plot
    assert plot.y.high > 1


def test_labels_are_moved_apart_and_stay_in_the_frame() -> None:
    placed = spread([10, 10, 10, 290, 299], 0, 300)
    assert all(b - a >= 13 for a, b in pairwise(placed))
    assert placed[0] >= 0
    assert placed[-1] <= 300


def test_every_run_of_many_looks_different() -> None:
    names = [f"optimizer{i}" for i in range(11)] + ["optimizer0", "optimizer0"]
    assert len({(s.colour, s.dash) for s in styles(names)}) == len(names)


def test_a_smoothed_curve_follows_a_constant_at_once() -> None:
    curve = Curve(tuple(range(100)), tuple(map(float, range(100))), (0.7,) * 100)
    assert curve.smoothed().values == pytest.approx(curve.values)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
@pytest.mark.parametrize(("scheme", "table"), [("1", LIGHT), ("0", DARK)], ids=["light", "dark"])
def test_a_browser_shows_it_in_both_themes(write, made_up, tmp_path, scheme, table) -> None:
    path, _ = write([made_up("adamw", 0.5, 0.4, 0.3), made_up("lion", 0.5, 0.45, 0.41)])
    shot = tmp_path / "shot.png"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    flags += ["--disable-component-update", "--disable-sync", "--hide-scrollbars", "--window-size=1200,1400"]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", f"--blink-settings=preferredColorScheme={scheme}"]
    command = [str(CHROMIUM), *flags, "--enable-logging=stderr", f"--screenshot={shot}", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert shot.exists(), done.stderr
    assert "CONSOLE" not in done.stderr, "the browser has nothing to complain about"
    with Image.open(shot) as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 24)}
    for name in ("surface", "ink", "c0", "c1"):
        assert tuple(bytes.fromhex(table[name][1:])) in colours, f"{name} is seen"


VISIONS = {  # Machado, Oliveira and Fernandes 2009, on linear RGB, severity 1
    "any": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "tritanopia": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}


@pytest.mark.parametrize("table", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("vision", VISIONS)
def test_colours_are_told_apart_by_everyone(vision, table) -> None:
    import numpy as np

    def lab(name: str) -> np.ndarray:
        srgb = np.array(list(bytes.fromhex(table[name][1:]))) / 255
        linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
        seen = np.clip(np.array(VISIONS[vision]) @ linear, 0, 1)
        xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ seen
        f = np.where((t := xyz / [0.9505, 1, 1.089]) > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116)
        return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])

    colours = [lab(name) for name in (*(f"c{i}" for i in range(8)), "surface")]
    distances = [float(np.linalg.norm(a - b)) for i, a in enumerate(colours) for b in colours[:i]]
    assert min(distances) > 25, "a difference of about 2 is just noticeable"
