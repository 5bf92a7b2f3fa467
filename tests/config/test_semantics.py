"""What the keys of train.json and optimizer.json mean: one test for each rule, named for it."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import pytest
from ed_train.commands.arguments import parse_arguments
from ed_train.config.jsontext import parse_json_object
from ed_train.config.optimizer_file import OptimizerFileResolver
from ed_train.config.run import TEXT_ENCODER, UNET, RunConfig
from ed_train.config.train_keys import TrainConfig
from ed_train.registry import OptimizerRegistry

DIFFERENT_KINDS = "of which only one is learning-rate-free"


def lrs(run: RunConfig) -> tuple[float, float]:
    return run.components[UNET].options.lr, run.components[TEXT_ENCODER].options.lr


def notes_about(run: RunConfig, text: str) -> list[str]:
    return [note for note in run.notes if text in note]


# The default optimizer


@pytest.mark.parametrize("train", [{}, {"optimizer_config": None}])
def test_without_optimizer_config_adamw8bit_with_its_defaults(train, resolve) -> None:
    run = resolve(train)
    for component in run.components.values():
        assert component.optimizer.spec.name == "adamw8bit"
        assert vars(component.options).items() >= {
            "lr": 1e-6, "betas": (0.9, 0.999), "epsilon": 1e-8, "weight_decay": 0.01
        }.items()  # fmt: skip
        assert (component.lr_scheduler, component.lr_decay_steps, component.lr_warmup_steps) == ("constant", None, None)
    assert list(run.components) == [UNET, TEXT_ENCODER]
    assert run.grad_scaler_tweaks
    assert run.notes == ()


@pytest.mark.parametrize(
    "optimizer",
    [{}, {"base": None}, {"base": {}}, {"base": {"optimizer": None, "lr": None}, "text_encoder_overrides": None}],
)
def test_every_section_and_key_is_optional(optimizer, resolve) -> None:
    run = resolve({}, optimizer)
    assert {c.optimizer.spec.name for c in run.components.values()} == {"adamw8bit"}
    assert lrs(run) == (1e-6, 1e-6)


@pytest.mark.parametrize("name", ["doc", "$schema"])
def test_free_text_is_allowed_in_every_object(name, resolve) -> None:
    free = {name: {"anything": ["at", "all"]}}
    sections = ("base", "text_encoder_overrides", "text_encoder_freezing")
    assert resolve(free, {**free, **dict.fromkeys(sections, free)}).notes == ()


# Where the lr comes from


@pytest.mark.parametrize(
    ("name", "lr"),
    [("adamw", 1e-6), ("adamw8bit", 1e-6), ("lion", 1e-7), ("prodigy", 1.0), ("dadapt_adam", 1.0), ("dadapt_sgd", 1.0)],
)
def test_lr_that_is_set_nowhere_is_the_optimizers_default(name, lr, resolve) -> None:
    run = resolve({}, {"base": {"optimizer": name}})
    assert lrs(run) == (lr, lr)
    assert run.components[UNET].sources["lr"].startswith("default of ed-train-")


def test_lr_of_optimizer_json_counts_when_train_json_has_none(resolve) -> None:
    run = resolve({"lr": None}, {"base": {"lr": 3e-6}, "text_encoder_overrides": {"lr": 5e-7}})
    assert lrs(run) == (3e-6, 5e-7)
    assert run.notes == ()


def test_lr_of_train_json_overrides_both_components_and_says_so(resolve) -> None:
    run = resolve({"lr": 2e-6}, {"base": {"lr": 1e-6}, "text_encoder_overrides": {"lr": 5e-7}})
    assert lrs(run) == (2e-6, 2e-6)
    (line,) = notes_about(run, "text_encoder_overrides.lr")
    assert line == "lr=2e-06 (train.json:4) overrides text_encoder_overrides.lr=5e-07 (optimizer.json:1)"
    assert notes_about(run, "overrides base.lr=1e-06")


def test_lr_flag_overrides_both_files_and_says_so(resolve) -> None:
    run = resolve({"lr": 2e-6}, {"base": {"lr": 1e-6}, "text_encoder_overrides": {"lr": 5e-7}}, lr="4e-6")
    assert lrs(run) == (4e-6, 4e-6)
    assert notes_about(run, "--lr 4e-06 overrides text_encoder_overrides.lr=5e-07")
    assert run.components[TEXT_ENCODER].sources["lr"] == "--lr"


def test_an_override_by_the_same_lr_is_no_news(resolve) -> None:
    assert resolve({"lr": 1e-6}, {"base": {"lr": 1e-6}}).notes == ()


# Null, absent, zero and false


ZEROS = [("lr", 0), ("lr", 0.0), ("weight_decay", 0), ("weight_decay", 0.0), ("epsilon", 0), ("min_8bit_size", 0)]


@pytest.mark.parametrize("section", ["base", "text_encoder_overrides"])
@pytest.mark.parametrize(("key", "zero"), ZEROS)
def test_an_explicit_zero_is_a_value(section, key, zero, resolve) -> None:
    run = resolve({}, {"base": {"lr": 1e-5, "weight_decay": 0.5, "epsilon": 1e-7}, section: {key: zero}})
    options = run.components[UNET if section == "base" else TEXT_ENCODER].options
    assert getattr(options, key) == 0
    assert all(f"{key} 0" in note for note in run.notes), "a warning at most"


@pytest.mark.parametrize("key", ["lr_warmup_steps", "lr_decay_steps"])
def test_an_explicit_zero_in_the_schedule_is_a_value(key, resolve) -> None:
    run = resolve({}, {"base": {key: 30}, "text_encoder_overrides": {key: 0}})
    assert [getattr(c, key) for c in run.components.values()] == [30, 0]
    assert [getattr(c, key) for c in resolve({key: 0}).components.values()] == [0, 0]


def test_an_explicit_false_is_a_value(resolve) -> None:
    base = {"optimizer": "prodigy", "decouple": True, "safeguard_warmup": True}
    run = resolve(
        {},
        {
            "base": base,
            "text_encoder_overrides": {"decouple": False, "safeguard_warmup": False},
            "apply_grad_scaler_step_tweaks": False,
        },
    )
    unet, text_encoder = (c.options for c in run.components.values())
    assert (unet.decouple, unet.safeguard_warmup) == (True, True)
    assert (text_encoder.decouple, text_encoder.safeguard_warmup) == (False, False)
    assert run.grad_scaler_tweaks is False


@pytest.mark.parametrize("absent", [{}, dict.fromkeys(["lr", "betas", "weight_decay", "lr_scheduler"])])
def test_null_and_absent_inherit_from_base(absent, resolve) -> None:
    base = {"lr": 3e-6, "betas": [0.8, 0.9], "weight_decay": 0.3, "lr_scheduler": "cosine", "lr_warmup_steps": 7}
    unet, text_encoder = resolve({}, {"base": base, "text_encoder_overrides": absent}).components.values()
    assert text_encoder.options == unet.options
    assert text_encoder.options.betas == (0.8, 0.9)
    assert (text_encoder.lr_scheduler, text_encoder.lr_warmup_steps) == ("cosine", 7)
    assert text_encoder.sources["betas"] == "optimizer.json:1 base.betas"


EVERYTHING = {
    "prodigy": {
        "lr": 0.5, "betas": [0.8, 0.9], "beta3": 0.7, "epsilon": 1e-7, "weight_decay": 0.3, "decouple": False,
        "use_bias_correction": False, "safeguard_warmup": False, "d0": 1e-5, "d_coef": 2.0, "growth_rate": 1.5,
        "slice_p": 11, "implementation": "reference",
    },
    "dadapt_adam": {
        "lr": 0.5, "betas": [0.8, 0.9], "epsilon": 1e-7, "weight_decay": 0.3, "decouple": False,
        "use_bias_correction": True, "d0": 1e-5, "growth_rate": 1.5, "implementation": "reference",
    },
    "dadapt_adan": {
        "lr": 0.5, "betas": [0.8, 0.9, 0.7], "epsilon": 1e-7, "weight_decay": 0.3, "no_prox": True, "d0": 1e-5,
        "growth_rate": 1.5,
    },
    "dadapt_sgd": {"lr": 0.5, "momentum": 0.9, "weight_decay": 0.3, "d0": 1e-5, "growth_rate": 1.5},
    "dadapt_lion": {"lr": 0.5, "betas": [0.8, 0.9], "weight_decay": 0.3, "d0": 1e-5},
    "lion": {
        "lr": 1e-5, "betas": [0.8, 0.9], "weight_decay": 0.3, "decoupled_weight_decay": False,
        "implementation": "reference",
    },
    "adamw8bit": {"lr": 1e-5, "betas": [0.8, 0.9], "epsilon": 1e-7, "weight_decay": 0.3, "min_8bit_size": 16384},
}  # fmt: skip


@pytest.mark.parametrize("name", EVERYTHING)
def test_the_text_encoder_inherits_every_key_of_base(name, resolve) -> None:
    options = EVERYTHING[name]
    run = resolve({}, {"base": {"optimizer": name, **options}})
    as_written = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    assert vars(run.components[UNET].options) == vars(run.components[TEXT_ENCODER].options) == as_written


def test_every_key_can_be_overridden_for_the_text_encoder(resolve) -> None:
    run = resolve({}, {"base": {"optimizer": "prodigy"}, "text_encoder_overrides": EVERYTHING["prodigy"]})
    assert run.components[UNET].options.d_coef == 1.0
    assert run.components[TEXT_ENCODER].options.d_coef == 2.0


def test_null_growth_rate_means_no_limit(resolve) -> None:
    run = resolve({}, {"base": {"optimizer": "dadapt_adam", "growth_rate": None}})
    assert run.components[UNET].options.growth_rate is None


# Two different optimizers


def test_keys_that_the_other_optimizer_lacks_are_not_copied(resolve) -> None:
    base = {"optimizer": "adamw", "lr": 2e-6, "epsilon": 1e-6, "weight_decay": 0.3}
    run = resolve({}, {"base": base, "text_encoder_overrides": {"optimizer": "lion"}})
    text_encoder = run.components[TEXT_ENCODER].options
    assert (text_encoder.lr, text_encoder.weight_decay) == (2e-6, 0.3)
    (note,) = run.notes
    assert "lr 2e-06 is unusual for the text_encoder: usual for lion is" in note


@pytest.mark.parametrize(("unet", "text_encoder", "lr"), [("dadapt_adam", "adamw", 1e-6), ("adamw", "prodigy", 1.0)])
def test_lr_is_not_copied_between_learning_rate_free_and_ordinary(unet, text_encoder, lr, resolve) -> None:
    run = resolve({}, {"base": {"optimizer": unet, "lr": 0.3}, "text_encoder_overrides": {"optimizer": text_encoder}})
    assert lrs(run) == (0.3, lr)
    (line,) = notes_about(run, DIFFERENT_KINDS)
    assert line.startswith("base.lr=0.3 (optimizer.json:1)")
    assert f"{text_encoder}'s default lr {lr:g}" in line


def test_a_value_that_only_the_text_encoder_cannot_have_is_named_as_inherited(problems) -> None:
    base = {"optimizer": "dadapt_adan", "betas": [0.9, 0.9, 0.99]}
    (problem,) = problems({}, {"base": base, "text_encoder_overrides": {"optimizer": "adamw"}})
    assert "the text encoder's adamw inherits it: set text_encoder_overrides.betas" in problem
    (problem,) = problems({}, {"base": {"optimizer": "adamw", "betas": [0.9]}})
    assert "inherits" not in problem, "a value that is wrong for both is wrong in base"


@pytest.mark.parametrize(
    ("optimizer", "line"),
    [
        ({"text_encoder_overrides": {"lr": 5e-7}}, "optimizer.json:1: text_encoder_overrides has no effect"),
        ({"text_encoder_lr_scale": 0.5}, "optimizer.json:1: text_encoder_lr_scale has no effect"),
        (
            {"text_encoder_lr_scale": 0.5, "text_encoder_overrides": {"lr": 1}},
            "text_encoder_lr_scale and text_encoder_overrides have no effect",
        ),
    ],
)
def test_settings_of_a_text_encoder_that_does_not_train_get_a_line(optimizer, line, resolve) -> None:
    (note,) = resolve({"disable_textenc_training": True}, optimizer).notes
    assert line in note
    assert note.endswith(": the text_encoder does not train")
    assert resolve({"disable_textenc_training": True}, {"text_encoder_overrides": {"lr": None}}).notes == ()


def test_lr_is_copied_between_two_learning_rate_free_optimizers(resolve) -> None:
    run = resolve(
        {}, {"base": {"optimizer": "prodigy", "lr": 0.5}, "text_encoder_overrides": {"optimizer": "dadapt_sgd"}}
    )
    assert lrs(run) == (0.5, 0.5)
    assert run.notes == ()


def test_an_explicit_lr_is_kept_between_different_kinds(resolve) -> None:
    run = resolve({}, {"base": {"optimizer": "prodigy"}, "text_encoder_overrides": {"optimizer": "adamw", "lr": 3e-6}})
    assert lrs(run) == (1.0, 3e-6)


# text_encoder_lr_scale


@pytest.mark.parametrize("key", ["text_encoder_lr_scale", "text_encder_lr_scale"])
@pytest.mark.parametrize("inside", [True, False], ids=["in text_encoder_overrides", "at the top"])
def test_lr_scale_in_every_place_and_spelling(key, inside, resolve) -> None:
    scale = {key: 0.5}
    run = resolve({}, {"base": {"lr": 2e-6}, **({"text_encoder_overrides": scale} if inside else scale)})
    assert lrs(run) == (2e-6, 1e-6)
    assert f"{key} 0.5 x " in run.components[TEXT_ENCODER].sources["lr"]


def test_lr_scale_applies_to_an_lr_that_is_set_nowhere(resolve) -> None:
    assert lrs(resolve({}, {"text_encoder_lr_scale": 0.5})) == (1e-6, 5e-7)


@pytest.mark.parametrize("flags", [{}, {"lr": "4e-6"}], ids=["train.json", "flag"])
def test_lr_scale_applies_to_the_lr_of_train_json_and_of_the_command_line(flags, resolve) -> None:
    run = resolve({"lr": 2e-6}, {"base": {"lr": 1e-6}, "text_encoder_lr_scale": 0.25}, **flags)
    unet = 4e-6 if flags else 2e-6
    assert lrs(run) == (unet, 0.25 * unet)


def test_lr_scale_of_zero_is_a_value(resolve) -> None:
    assert lrs(resolve({}, {"base": {"lr": 2e-6}, "text_encoder_lr_scale": 0})) == (2e-6, 0)


def test_lr_scale_is_ignored_beside_an_explicit_lr_and_says_so(resolve) -> None:
    run = resolve({}, {"base": {"lr": 2e-6}, "text_encoder_overrides": {"lr": 5e-7}, "text_encoder_lr_scale": 0.5})
    assert lrs(run) == (2e-6, 5e-7)
    (line,) = run.notes
    assert line == (
        "text_encoder_lr_scale=0.5 (optimizer.json:1) is ignored: text_encoder_overrides.lr is set (optimizer.json:1)"
    )


def test_two_lr_scales_that_contradict_each_other(problems) -> None:
    (line,) = problems({}, {"text_encoder_lr_scale": 0.5, "text_encder_lr_scale": 0.6})
    assert "contradicts" in line


@pytest.mark.parametrize("scale", ["0.5", -1, True])
def test_lr_scale_of_a_wrong_value(scale, problems) -> None:
    (line,) = problems({}, {"text_encoder_lr_scale": scale})
    assert "text_encoder_lr_scale: got" in line
    assert "expected a number >= 0" in line


# Names


@pytest.mark.parametrize("name", ["LION", "Lion", " lion ", "ed-train-lion:lion", "Ed_Train.Lion:Lion"])
def test_names_are_case_insensitive(name, resolve) -> None:
    assert resolve({}, {"base": {"optimizer": name}}).components[UNET].optimizer.spec.name == "lion"


@pytest.mark.parametrize("name", ["lio", "adam", "lion8", "AdamW-8bit", "lionlion"])
def test_a_name_that_is_only_similar_is_an_error(name, problems) -> None:
    (line,) = problems({}, {"base": {"optimizer": name}})
    assert line.startswith("optimizer.json:1: base.optimizer: no installed optimizer is called")
    assert "installed: adamw, adamw8bit," in line


def test_a_name_of_a_plugin_that_is_not_installed(problems) -> None:
    (line,) = problems({}, {"base": {"optimizer": "lion"}}, registry=OptimizerRegistry())
    assert "needs the distribution ed-train-lion, which is not installed: pip install ed-train-lion" in line


def test_the_default_optimizer_that_is_not_installed(problems) -> None:
    (line,) = problems({}, registry=OptimizerRegistry())
    assert "pip install ed-train-bnb" in line
    assert "it is the default" in line


def test_a_freezing_section_whose_plugin_is_not_installed(problems, registry) -> None:
    without = OptimizerRegistry(optimizers=registry.optimizers)
    (line,) = problems({}, {"text_encoder_freezing": {"unfreeze_last_n_layers": 2}}, registry=without)
    assert "pip install ed-train-freezing" in line


# Keys of other optimizers


def test_a_key_that_only_other_optimizers_have_is_accepted_with_a_line(resolve) -> None:
    run = resolve({}, {"base": {"optimizer": "lion", "epsilon": 1e-8}})
    assert run.notes == ("optimizer.json:1: base.epsilon has no effect on the unet: lion has no epsilon",)


def test_a_foreign_key_among_the_overrides_has_a_line_of_its_own(resolve) -> None:
    optimizer = {"base": {"optimizer": "adamw"}, "text_encoder_overrides": {"optimizer": "lion", "d0": 1e-5}}
    (line,) = resolve({}, optimizer).notes
    assert "text_encoder_overrides.d0 has no effect on the text_encoder: lion has no d0" in line


def test_a_foreign_key_is_not_silent_where_only_the_text_encoder_trains(resolve) -> None:
    run = resolve({"disable_unet_training": True}, {"base": {"optimizer": "lion", "epsilon": 1e-8}})
    (line,) = run.notes
    assert "base.epsilon has no effect on the text_encoder: lion has no epsilon" in line


def test_a_key_that_nobody_knows_is_an_error_even_in_a_component_that_does_not_train(problems) -> None:
    (line,) = problems({"disable_textenc_training": True}, {"text_encoder_overrides": {"weight_dekay": 0}})
    assert "did you mean 'weight_decay'?" in line


# Schedules


@pytest.mark.parametrize(
    "name", ["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"]
)
def test_each_component_has_a_scheduler_of_its_own(name, resolve) -> None:
    run = resolve({}, {"text_encoder_overrides": {"lr_scheduler": name, "lr_warmup_steps": 3, "lr_decay_steps": 40}})
    text_encoder = run.components[TEXT_ENCODER]
    assert (text_encoder.lr_scheduler, text_encoder.lr_warmup_steps, text_encoder.lr_decay_steps) == (name, 3, 40)
    assert run.components[UNET].lr_scheduler == "constant"


def test_schedule_of_train_json_counts_where_optimizer_json_has_none(resolve) -> None:
    run = resolve({"lr_scheduler": "linear"}, {"text_encoder_overrides": {"lr_scheduler": "cosine"}})
    assert [c.lr_scheduler for c in run.components.values()] == ["linear", "cosine"]
    assert notes_about(run, 'text_encoder_overrides.lr_scheduler="cosine" (optimizer.json:1) overrides lr_scheduler')


def test_schedule_flag_goes_over_optimizer_json(resolve) -> None:
    run = resolve({}, {"text_encoder_overrides": {"lr_scheduler": "cosine"}}, lr_scheduler="linear")
    assert [c.lr_scheduler for c in run.components.values()] == ["linear", "linear"]
    assert notes_about(run, '--lr_scheduler "linear" overrides text_encoder_overrides.lr_scheduler')


# Freezing


def freezing(run: RunConfig) -> dict[str, object]:
    (config,) = run.freezing
    return {k: v for k, v in vars(config.options).items() if v is not None}


@pytest.mark.parametrize("key", ["unfreeze_last_n_layers", "unfreeze_final_n_layers"])
@pytest.mark.parametrize("layers", [0, 2, 99])
def test_unfreeze_last_layers_under_both_names(key, layers, resolve) -> None:
    run = resolve({}, {"text_encoder_freezing": {key: layers}})
    assert freezing(run) == {key: layers}
    assert run.freezing[0].options.trained_layers == layers


def test_null_never_wins_over_a_value_in_freezing(resolve) -> None:
    run = resolve({}, {"text_encoder_freezing": {"freeze_front_n_layers": -2, "unfreeze_last_n_layers": None}})
    assert freezing(run) == {"freeze_front_n_layers": -2}
    (line,) = run.notes
    assert "freeze_front_n_layers=-2 is deprecated; write unfreeze_last_n_layers=2" in line


def test_freezing_false_is_a_value(resolve) -> None:
    keys = {"freeze_embeddings": False, "freeze_final_layer_norm": False}
    assert freezing(resolve({}, {"text_encoder_freezing": keys})) == keys


def test_legacy_and_new_freezing_that_contradict_each_other(problems) -> None:
    (line,) = problems({}, {"text_encoder_freezing": {"freeze_front_n_layers": -3, "unfreeze_last_n_layers": 2}})
    assert "contradicts" in line


# Inputs and paths


def test_input_objects_are_never_mutated(registry) -> None:
    text = (
        '{"base": {"optimizer": "lion", "lr": 1e-6, "epsilon": 1e-8},'
        ' "text_encoder_overrides": {"optimizer": "adamw", "text_encoder_lr_scale": 0.5},'
        ' "text_encoder_freezing": {"freeze_front_n_layers": -2}}'
    )
    document = parse_json_object(text, Path("optimizer.json"))
    before = copy.deepcopy(document)
    resolver = OptimizerFileResolver(document, TrainConfig(), {}, registry)
    first = resolver.resolve()
    assert resolver.problems == []
    assert document == before
    assert OptimizerFileResolver(document, TrainConfig(), {}, registry).resolve() == first


@pytest.mark.parametrize("flag", ["--max_epochs", "--max-epochs", "--max-epochs=7", "--max_epochs=7"])
def test_hyphens_and_underscores_in_flags(flag) -> None:
    assert parse_arguments([flag] if "=" in flag else [flag, "7"]).flags == {"max_epochs": "7"}


@pytest.mark.parametrize("flag", ["--list-optimizers", "--list_optimizers"])
def test_hyphens_and_underscores_in_commands(flag) -> None:
    assert parse_arguments([flag]).command == "list_optimizers"


def test_a_relative_path_of_a_flag_is_looked_up_from_the_current_directory(resolve, tmp_path, monkeypatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "optimizer.json").write_text('{"base": {"optimizer": "lion"}}')
    monkeypatch.chdir(elsewhere)
    run = resolve({}, {"base": {"optimizer": "adamw"}}, optimizer_config="optimizer.json")
    assert run.components[UNET].optimizer.spec.name == "lion"


def test_every_path_that_a_run_writes_to_is_absolute(resolve, tmp_path) -> None:
    train = resolve({"save_ckpt_dir": "ckpts"}).train
    written = [train.logdir, train.cache_dir, train.save_ckpt_dir]
    assert written == [str(tmp_path / "logs"), str(tmp_path / "logs" / "cache"), str(tmp_path / "ckpts")]
    assert os.listdir(tmp_path / "input") == []
    assert not (tmp_path / "logs").exists()


def test_paths_of_inputs_do_not_depend_on_the_folders_that_they_lead_through(resolve, tmp_path, micro_model) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "model").symlink_to(micro_model)
    run = resolve({"data_root": "configs/../input", "resume_ckpt": "./configs/../model"})
    assert (run.train.data_root, run.model.location) == (str(tmp_path / "input"), str(tmp_path / "model"))
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "far" / "input").mkdir()
    (tmp_path / "link").symlink_to("far/away")
    run = resolve({"data_root": "link/../input"})
    assert os.path.realpath(run.train.data_root) == str(tmp_path / "far" / "input"), (
        "it is not the input beside the link"
    )


def test_seed_minus_one_draws_a_seed_and_says_which(resolve) -> None:
    runs = [resolve({"seed": -1}) for _ in range(3)]
    seeds = {run.train.seed for run in runs}
    assert len(seeds) == 3
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert all(str(run.train.seed) in run.notes[0] for run in runs)


def test_interval_of_sample_pictures_flag_over_prompts_over_train_json(resolve, tmp_path) -> None:
    (tmp_path / "p.json").write_text('{"generate_samples_every_n_steps": 3, "samples": [{"prompt": "a photo"}]}')
    prompts = {"sample_prompts": "p.json"}
    run = resolve(prompts)
    assert (run.train.sample_steps, run.notes) == (3, ())
    run = resolve({**prompts, "sample_steps": 5})
    assert run.train.sample_steps == 3
    assert notes_about(run, "generate_samples_every_n_steps=3 (p.json) overrides sample_steps=5 (train.json:")
    run = resolve({**prompts, "sample_steps": 5}, sample_steps="0")
    assert run.train.sample_steps == 0
    assert run.notes == ("--sample_steps 0 overrides generate_samples_every_n_steps=3 (p.json)",)


def test_an_ordinary_lr_with_a_learning_rate_free_optimizer_gets_a_line(resolve) -> None:
    (note,) = resolve({"lr": 1e-6, "disable_textenc_training": True}, {"base": {"optimizer": "prodigy"}}).notes
    assert note.startswith("train.json:")
    assert "lr 1e-06 is unusual for the unet: prodigy finds its own step size" in note
    assert resolve({"disable_textenc_training": True}, {"base": {"optimizer": "prodigy"}}).notes == ()


@pytest.mark.parametrize(("key", "value"), [("train_sampler", "ddim"), ("attn_type", "xformers")])
def test_a_choice_that_changes_nothing_gets_a_line(resolve, key, value) -> None:
    (note,) = resolve({key: value}).notes
    assert note.startswith(f'{key}="{value}" (train.json:')
    assert "has no effect" in note
