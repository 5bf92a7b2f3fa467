from __future__ import annotations

import warnings
from fnmatch import fnmatchcase

import pytest
import torch
from diffusers import UNet2DConditionModel
from ed_train.config.validate import validated
from ed_train_freezing import ed_register_freeze_policies
from ed_train_freezing.unet import UNetFreezing, freeze_unet


@pytest.fixture(scope="module")
def shared_unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8, layers_per_block=1, block_out_channels=(8, 16), cross_attention_dim=16, attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=4,
    )  # fmt: skip


@pytest.fixture
def unet(shared_unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """A UNet with everything trainable and without gradients; the weights are those that the last test left."""
    shared_unet.zero_grad()
    return shared_unet.requires_grad_(True)


def names(module: torch.nn.Module, pattern: str) -> set[str]:
    return {name for name, _ in module.named_parameters() if fnmatchcase(name, pattern)}


def freeze(module: torch.nn.Module, *rules: str) -> set[str]:
    frozen = freeze_unet(module, UNetFreezing(rules))
    assert set(frozen) == {name for name, p in module.named_parameters() if not p.requires_grad}
    return set(frozen)


def test_all_but_cross_attention(unet):
    assert names(unet, "*attn2*")
    assert freeze(unet, "freeze *", "unfreeze *attn2*") == names(unet, "*") - names(unet, "*attn2*")


@pytest.mark.filterwarnings("ignore:.* has no effect as the first rule")
def test_the_last_match_wins(unet):
    assert freeze(unet, "unfreeze *attn2*", "freeze *") == names(unet, "*")


def test_three_rules(unet):
    down, conv, norm = names(unet, "down_blocks.*"), names(unet, "*.conv1.*"), names(unet, "*norm*")
    assert freeze(unet, "freeze down_blocks.*", "unfreeze *.conv1.*", "freeze *norm*") == (down - conv) | norm


def test_names_are_matched_whole_and_with_case(unet):
    assert freeze(unet, "freeze conv_in.weight") == {"conv_in.weight"}
    unet.requires_grad_(True)
    with pytest.raises(ValueError, match=r"'freeze CONV_IN\.\*' matches no parameter"):
        freeze(unet, "freeze CONV_IN.*")


def test_blanks_around_and_between_do_not_matter(unet):
    assert freeze(unet, "  freeze   conv_in.* ") == names(unet, "conv_in.*")


@pytest.mark.parametrize(
    ("rule", "suggestion"),
    [
        ("freeze *atn2*", r"'\*attn2\*'"),
        ("freeze downblocks.*.attentions.*", r"'down_blocks\*'"),
        ("unfreeze up_block.1.*", r"'up_blocks\.1\*'"),
        ("freeze down_blocks", r"'down_blocks\*'"),
        ("freeze attn1", r"'\*attn1\*'"),
        ("freeze text_projector", "names begin with conv_in, time_embedding, down_blocks"),
    ],
)
def test_a_rule_that_matches_nothing_is_an_error_with_a_suggestion(unet, rule, suggestion):
    with pytest.raises(ValueError, match=suggestion) as error:
        freeze_unet(unet, UNetFreezing(("freeze conv_in.*", rule)))
    assert f"{rule!r} matches no parameter" in str(error.value)
    assert all(p.requires_grad for p in unet.parameters())


def test_every_rule_that_matches_nothing_is_named(unet):
    with pytest.raises(ValueError, match=r"'freeze a' matches no parameter.*'freeze b' matches no parameter"):
        freeze_unet(unet, UNetFreezing(("freeze a", "freeze *", "freeze b")))


@pytest.mark.parametrize("rule", ["", "freeze", "freez *", "Freeze *", "*attn2*", "freeze down blocks", "train *"])
def test_malformed_rule(rule):
    config, problems, _ = validated(UNetFreezing, {"rules": ["freeze *", rule]})
    assert config is None
    assert f"{rule!r}: expected 'freeze PATTERN' or 'unfreeze PATTERN'" in problems[0].message


def test_unfreezing_first_warns():
    with pytest.warns(UserWarning, match=r"'unfreeze \*attn2\*' has no effect as the first rule.*put 'freeze \*'"):
        UNetFreezing(("unfreeze *attn2*",))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        UNetFreezing(("freeze *", "unfreeze *attn2*"))


def test_policy():
    policies = {policy.section: policy for policy in ed_register_freeze_policies()}
    assert policies["unet_freezing"].component == "unet"
    assert policies["unet_freezing"].config_type is UNetFreezing
