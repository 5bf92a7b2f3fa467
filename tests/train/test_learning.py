"""Every optimizer learns: the loss of photos that it does not train on, at fixed noise and timesteps, goes down."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ed_train.registry import load_registry
from ed_train.train.setup import prepare_data
from ed_train.train.step import forward_loss, train_step

# A model with random weights wants larger steps than the fine-tuning defaults of the plugins.
SETTINGS: dict[str, dict[str, object]] = {
    "lion": {"lr": 3e-4},
    "lion8bit": {"lr": 3e-4},
    "dadapt_adam": {"d0": 1e-4},
    "dadapt_adan": {"d0": 1e-4},
    "dadapt_lion": {"d0": 1e-5},
    "dadapt_sgd": {"d0": 1e-3, "lr": 0.3},  # at 1 some seeds diverge
    "prodigy": {"d0": 1e-4},
}
STEPS = 60


@pytest.fixture(scope="session")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from make_photos import make_photos

    folder = tmp_path_factory.mktemp("held-out")
    make_photos(folder, count=8, seed=99)
    return folder


def validation_loss(session, loader) -> float:
    """Mean loss over all batches, always with the same noise and timesteps."""
    with torch.no_grad(), session.evaluation():
        batches = (batch for _ in range(4) for batch in loader.iterate(0))
        losses = [forward_loss(session, batch, 10_000 + number) for number, batch in enumerate(batches)]
    return float(torch.stack(losses).mean())


@pytest.mark.slow
@pytest.mark.parametrize("name", [o.spec.name for o in load_registry() if "cuda" not in o.spec.devices])
def test_training_lowers_the_validation_loss(make_session, write_optimizer, held_out, name) -> None:
    write_optimizer({"base": {"optimizer": name, **SETTINGS.get(name, {"lr": 1e-3})}})
    session = make_session(max_epochs=100, batch_size=4, cond_dropout=0)
    other = replace(session.run, train=replace(session.run.train, data_root=str(held_out)))
    validation = prepare_data(other, session.model, session.accelerator).loader
    before = validation_loss(session, validation)
    steps = 0
    while steps < STEPS:
        session.epoch = steps
        for window in session.windows():
            assert train_step(session, window).skipped == ()
            steps += 1
    after = validation_loss(session, validation)
    assert after < before - 0.05, f"{name}: {before:.4f} -> {after:.4f}"
