from __future__ import annotations

import logging
import subprocess
import sys

import pytest
import torch
from ed_train import ConfigError, create_optimizer
from ed_train.specs import option_names
from ed_train_bnb import AdamW8bitConfig, Lion8bitConfig, ed_register_optimizers

# On a CPU bitsandbytes keeps the paged state in ordinary memory and says so.
pytestmark = pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")

CLASSES = {
    "adamw8bit": "AdamW8bit",
    "lion8bit": "Lion8bit",
    "paged_adamw8bit": "PagedAdamW8bit",
    "paged_lion8bit": "PagedLion8bit",
}
ADAMW = ["adamw8bit", "paged_adamw8bit"]
GROUP_OPTIONS = [
    ("lr", "lr", 3e-4),
    ("betas", "betas", (0.8, 0.95)),
    ("weight_decay", "weight_decay", 0.3),
]
EPSILON = [("epsilon", "eps", 1e-5)]


def layer() -> torch.nn.Linear:
    """A layer whose weight has just enough elements for 8-bit state."""
    torch.manual_seed(0)
    return torch.nn.Linear(64, 64)


def test_defaults():
    assert AdamW8bitConfig() == AdamW8bitConfig(
        lr=1e-6, betas=(0.9, 0.999), epsilon=1e-8, weight_decay=0.01, min_8bit_size=4096
    )
    assert Lion8bitConfig() == Lion8bitConfig(lr=1e-7, betas=(0.9, 0.99), weight_decay=0.1, min_8bit_size=4096)


@pytest.mark.parametrize("name", CLASSES)
def test_builds_the_class_with_its_defaults(name):
    optimizer = create_optimizer(name, layer().parameters())
    (group,) = optimizer.param_groups
    config = AdamW8bitConfig() if name in ADAMW else Lion8bitConfig()
    assert type(optimizer).__name__ == CLASSES[name]
    assert (group["lr"], tuple(group["betas"]), group["weight_decay"]) == (config.lr, config.betas, config.weight_decay)
    assert group["eps"] == (1e-8 if name in ADAMW else 0.0)
    assert (optimizer.args.optim_bits, optimizer.args.min_8bit_size) == (8, 4096)
    assert optimizer.is_paged == name.startswith("paged_")


@pytest.mark.parametrize(
    ("name", "option", "argument", "value"),
    [(name, *case) for name in CLASSES for case in GROUP_OPTIONS]
    + [(name, *case) for name in ADAMW for case in EPSILON],
)
def test_option_reaches_bitsandbytes(name, option, argument, value):
    assert create_optimizer(name, layer().parameters(), **{option: value}).param_groups[0][argument] == value


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize(("size", "dtype"), [(4096, torch.uint8), (4097, torch.float32), (0, torch.uint8)])
def test_min_8bit_size_decides_about_the_state(name, size, dtype):
    module = layer()
    optimizer = create_optimizer(name, module.parameters(), min_8bit_size=size)
    module(torch.ones(64)).sum().backward()
    optimizer.step()
    assert optimizer.state[module.weight]["state1"].dtype == dtype
    assert optimizer.state[module.bias]["state1"].dtype == (torch.uint8 if size == 0 else torch.float32)


def test_every_option_is_tested():
    tested = {option for option, _, _ in GROUP_OPTIONS} | {"min_8bit_size"}
    assert tested == set(option_names(Lion8bitConfig))
    assert tested | {"epsilon"} == set(option_names(AdamW8bitConfig))


@pytest.mark.parametrize(
    ("name", "option"), [("adamw8bit", "amsgrad"), ("adamw8bit", "percentile_clipping"), ("lion8bit", "epsilon")]
)
def test_what_bitsandbytes_cannot_use_is_refused(name, option):
    with pytest.raises(ConfigError, match=option):
        create_optimizer(name, layer().parameters(), **{option: 1})


def test_building_prints_nothing_about_inference_kernels():
    code = """
import torch
from ed_train import create_optimizer
create_optimizer("adamw8bit", [torch.nn.Parameter(torch.zeros(3))])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "")
    assert "gemm_4bit_forward" not in result.stderr


def test_later_warnings_of_bitsandbytes_are_heard(caplog):
    create_optimizer("adamw8bit", layer().parameters())
    logging.getLogger("bitsandbytes.backends.cpu.ops").warning("gemm_4bit_forward is slow")
    assert "gemm_4bit_forward is slow" in caplog.text


def test_specs():
    specs = {spec.name: spec for spec in ed_register_optimizers()}
    assert set(specs) == set(CLASSES)
    assert not any(spec.shardable for spec in specs.values())
    assert {name for name, spec in specs.items() if spec.devices == ("cuda",)} == {"paged_adamw8bit", "paged_lion8bit"}
    assert all("10 to 16 times" in specs[name].slow_on["cpu"] for name in ("adamw8bit", "lion8bit"))
