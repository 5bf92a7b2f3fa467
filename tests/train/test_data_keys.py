"""Settings that lie beside the pictures, in real runs: factors of losses, batches of their own, captions."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from ed_train.train.step import forward_loss, train_step

ADAMW = {"base": {"optimizer": "adamw", "lr": 1e-3}}


@pytest.fixture
def folder(photos, tmp_path, flags, write_optimizer) -> Path:
    """A copy of the photos, to put files beside."""
    write_optimizer(ADAMW)
    shutil.copytree(photos, tmp_path / "pictures")
    flags["data_root"] = str(tmp_path / "pictures")
    return tmp_path / "pictures"


def losses_of_an_epoch(session) -> list[float]:
    with torch.no_grad():
        return [float(forward_loss(session, batch, n)) for n, batch in enumerate(session.loader.iterate(0))]


def test_a_loss_scale_is_a_factor_of_the_loss(make_session, folder) -> None:
    plain = losses_of_an_epoch(make_session())
    (folder / "loss_scale.txt").write_text("0.25")
    assert losses_of_an_epoch(make_session()) == pytest.approx([loss / 4 for loss in plain])


def test_a_picture_of_loss_scale_0_teaches_nothing(make_session, folder) -> None:
    session = make_session(batch_size=8)
    (batch,) = session.loader.iterate(0)
    (folder / "local.yaml").write_text("loss_scale: 0")
    first = min(folder.glob("*.jpg"))
    first.with_suffix(".yaml").write_text("loss_scale: 8")
    only = batch.images.index(first)
    scaled_session = make_session(batch_size=8)
    (scaled,) = scaled_session.loader.iterate(0)
    assert scaled.images == batch.images
    assert scaled.weights.tolist() == [8.0 if n == only else 0.0 for n in range(8)]
    gradients = []
    for one, weights in ((session, torch.eye(8)[only] * 8), (scaled_session, scaled.weights)):
        forward_loss(one, type(batch)(**{**vars(batch), "weights": weights}), 0).backward()
        gradients.append([p.grad.clone() for c in one.components for p in c.parameters])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert sum(float(g.norm()) for g in gradients[0]) > 0


def test_pictures_that_shuffle_their_tags_keep_the_text_encoder(make_session, folder, capsys) -> None:
    settings = {"disable_textenc_training": True, "keep_tags": 1}
    assert make_session(**settings).text.module is None
    out = capsys.readouterr().out
    assert "note: keep_tags=1 (--keep_tags) has no effect without shuffle_tags, in train.json or of a picture" in out
    caption = min(folder.glob("*.txt"))
    caption.write_text("a photo, of this, and that, and more")
    caption.with_suffix(".yaml").write_text("shuffle_tags: true")
    session = make_session(**settings)
    out = capsys.readouterr().out
    assert "computed in every step, since shuffle_tags makes new captions all the time" in out
    assert "keep_tags" not in out
    batches = [batch for epoch in range(4) for batch in session.loader.iterate(epoch)]
    captions = {text for batch in batches for text in batch.captions if "that" in text}
    assert len(captions) > 1
    assert all(text.startswith("a photo, ") for text in captions)
    assert torch.isfinite(train_step(session, next(session.windows())).loss)


def test_batches_of_their_own_and_what_is_said_of_them(run_cli, folder, capsys) -> None:
    for path in sorted(folder.glob("*.jpg"))[:3]:
        path.with_suffix(".yaml").write_text("batch_id: horses\nrating: 3")
    assert run_cli(max_epochs=1, save_nothing=True) == 0
    out = capsys.readouterr().out
    assert "64 pixels, 5 batches an epoch\n    batch_id: 1 in use; 2 of these batches are filled up" in out
    assert "note: rating has no effect without rated_dataset; 3 of the 8 pictures have one" in out


def test_a_rated_data_set_without_ratings_says_so(make_session, folder, capsys) -> None:
    make_session(rated_dataset=True)
    assert "note: rated_dataset: no picture has a rating: all are equally likely" in capsys.readouterr().out
