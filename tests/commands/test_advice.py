"""What the plugins' advice warns about really happens."""

from __future__ import annotations

import pytest
import torch
from ed_train import create_optimizer
from ed_train.api import installed_plugins
from ed_train.specs import TrainingPlan

PLAN = TrainingPlan("constant", has_warmup=False, clip_grad_norm=None)


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize("name", ["adamw", "adamw8bit", "paged_adamw8bit"])
def test_without_epsilon_embeddings_of_absent_tokens_become_nan(name) -> None:
    tokens = torch.nn.Embedding(100, 64)
    optimizer = create_optimizer(name, tokens.parameters(), epsilon=0)
    tokens(torch.arange(10)).square().sum().backward()
    optimizer.step()
    assert tokens.weight[:10].isfinite().all()
    assert tokens.weight[10:].isnan().all()
    spec = installed_plugins().find(name).spec
    assert spec.advice is not None
    (line,) = spec.advice(spec.config_type(epsilon=0), PLAN)
    assert "these weights become NaN; use 1e-8" in line
    assert list(spec.advice(spec.config_type(), PLAN)) == []


def test_without_its_safeguard_a_warmup_raises_prodigys_estimate() -> None:
    def estimate(warmup: int, safeguard: bool) -> float:
        generator = torch.Generator().manual_seed(0)
        pictures = torch.randn(512, 32, generator=generator)
        targets = pictures @ torch.randn(32, 8, generator=generator) + 0.3 * torch.randn(512, 8, generator=generator)
        module = torch.nn.Linear(32, 8)
        torch.nn.init.normal_(module.weight, std=0.1, generator=generator)
        torch.nn.init.zeros_(module.bias)
        optimizer = create_optimizer("prodigy", module.parameters(), safeguard_warmup=safeguard)
        for step in range(500):
            optimizer.param_groups[0]["lr"] = min(1.0, max(step, 1e-3) / warmup) if warmup else 1.0
            batch = torch.randint(0, 512, (16,), generator=generator)
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(module(pictures[batch]), targets[batch]).backward()
            optimizer.step()
        return optimizer.param_groups[0]["d"]

    growth = {safeguard: estimate(300, safeguard) / estimate(0, safeguard) for safeguard in (True, False)}
    assert growth[False] > 1.05
    assert growth[False] > growth[True]
