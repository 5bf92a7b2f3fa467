"""Plugins that are broken in every way: each is recorded with the reason, and none disturbs another."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest
import torch
from ed_train.api import build_optimizer, create_optimizer
from ed_train.commands.describe_optimizer import describe_optimizer
from ed_train.commands.schema import print_schema
from ed_train.errors import ConfigError, PluginError
from ed_train.first_party import DISTRIBUTION_OF_OPTIMIZER
from ed_train.registry import OptimizerRegistry, load_registry

Install = Callable[..., None]

GOOD = """
    from dataclasses import dataclass
    from ed_train import OptimizerSpec, hookimpl

    @dataclass(frozen=True)
    class Config:
        lr: float = 1e-3

    def build(params, config):
        import torch
        return torch.optim.SGD(params, lr=config.lr)

    def spec(name="made_up", config_type=Config, build=build, **more):
        return OptimizerSpec(name=name, summary="made up", config_type=config_type, build=build, **more)

"""
REGISTER = """
    @hookimpl
    def ed_register_optimizers():
        return [spec()]
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """``install(source)``: a distribution of one module on sys.path, as pip would leave it."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    numbers = itertools.count()

    def install(source: str, distribution: str = "broken-plugin", version: str = "1.2", module: str = "") -> None:
        module = module or f"broken_plugin_{next(numbers)}"
        metadata = tmp_path / f"{distribution.replace('-', '_')}-{version}.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (metadata / "entry_points.txt").write_text(f"[ed_train]\nplugin = {module}\n")
        (tmp_path / f"{module}.py").write_text(dedent(source))

    yield install
    for name in set(sys.modules) - before:
        if name.startswith("broken_plugin"):
            del sys.modules[name]


def assert_others_are_there(registry: OptimizerRegistry) -> None:
    assert set(registry.names) >= set(DISTRIBUTION_OF_OPTIMIZER)
    assert [p.policy.section for p in registry.freeze_policies] == ["text_encoder_freezing", "unet_freezing"]


BROKEN = {
    "import error": ("import does_not_exist", "ModuleNotFoundError: No module named 'does_not_exist'"),
    "syntax error": ("def", "SyntaxError: "),
    "sys.exit on import": ("import sys; sys.exit(3)", "SystemExit: 3"),
    "sys.exit on import without a word": ("import sys; sys.exit()", "SystemExit: no message"),
    "sys.exit in a hook": (
        GOOD + "    @hookimpl\n    def ed_register_optimizers():\n        raise SystemExit('bye')",
        "SystemExit: bye",
    ),
    "panics on import, as a library in Rust": (
        "class PanicException(BaseException): pass\nraise PanicException('called unwrap on None')",
        "PanicException: called unwrap on None",
    ),
    "misspelt hook": (GOOD + REGISTER.replace("optimizers", "optimiser"), "unknown hook 'ed_register_optimiser'"),
    "wrong argument": (GOOD + REGISTER.replace("()", "(registry)", 1), "Argument(s) {'registry'} are declared"),
    "no hookimpl": (GOOD + REGISTER.replace("@hookimpl", ""), "implements no hook; is @hookimpl missing?"),
    "returns None": (GOOD + REGISTER.replace("[spec()]", "None"), "ed_register_optimizers returned None"),
    "returns a spec itself": (GOOD + REGISTER.replace("[spec()]", "spec()"), "expected an iterable of OptimizerSpec"),
    "returns a number": (GOOD + REGISTER.replace("[spec()]", "7"), "returned 7; expected an iterable"),
    "returns a text": (GOOD + REGISTER.replace("[spec()]", "'lion'"), "returned 'l' among its results"),
    "a wrong member": (GOOD + REGISTER.replace("[spec()]", "[spec(), Config]"), "among its results; expected"),
    "one name twice": (GOOD + REGISTER.replace("[spec()]", "[spec(), spec()]"), "'made_up' is offered twice"),
    "raises": (GOOD + REGISTER.replace("[spec()]", "1 / 0"), "ZeroDivisionError: division by zero"),
    "raises half-way": (
        GOOD + REGISTER.replace("return [spec()]", "yield spec(); raise OSError('no\\nfile')"),
        "OSError: no file",
    ),
    "config_type is no dataclass": (GOOD + REGISTER.replace("spec()", "spec(config_type=dict)"), "is not a dataclass"),
    "config_type is an instance": (GOOD + REGISTER.replace("spec()", "spec(config_type=Config())"), "not a dataclass"),
    "no lr": (GOOD.replace("lr: float", "rate: float") + REGISTER, "Config has no field 'lr'"),
    "no default": (GOOD.replace("lr: float = 1e-3", "lr: float") + REGISTER, "Config.lr has no default"),
    "a name in upper case": (GOOD + REGISTER.replace("spec()", "spec(name='SGD')"), "optimizer name 'SGD': expected"),
    "a name that is no text": (GOOD + REGISTER.replace("spec()", "spec(name=3)"), "optimizer name 3: expected"),
}

BROKEN |= {
    f"{field}={value}": (
        GOOD.replace('summary="made up", config_type=config_type, build=build, **more', "**given")
        + "\n    given = {'summary': 'made up', 'config_type': Config, 'build': build}\n"
        + f"    given[{field!r}] = {value}\n"
        + REGISTER.replace("spec()", "OptimizerSpec(name='made_up', **given)"),
        f"PluginError: optimizer 'made_up': {field} is {value}; expected {expected}",
    )
    for field, value, expected in (
        ("summary", None, "a text"),
        ("build", "'build'", "a function"),
        ("devices", "'cuda'", "a tuple of texts, e.g. ('cuda',)"),
        ("slow_on", "['cpu']", "a dictionary"),
        ("usual_lr", "1e-05", "(lowest, highest), or None"),
        ("usual_lr", "(1e-05,)", "(lowest, highest), or None"),
        ("state_bytes", "'8'", "a number, a function, or None"),
        ("shardable", "'no'", "True or False"),
        ("recommended", "[('lr', 1)]", "a dictionary"),
        ("effective_lr", "0.1", "a function, or None"),
        ("advice", "'careful'", "a function, or None"),
    )
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_plugin_is_recorded_and_disturbs_no_other(name, install) -> None:
    source, reason = BROKEN[name]
    install(source)
    registry = load_registry()
    (broken,) = registry.broken
    assert (broken.distribution, broken.version, broken.entry_point) == ("broken-plugin", "1.2", "plugin")
    assert reason in broken.error
    assert "\n" not in broken.error
    assert "made_up" not in registry.names
    assert_others_are_there(registry)


def test_keyboard_interrupt_is_no_broken_plugin(install) -> None:
    install("raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        load_registry()


def test_what_a_plugin_prints_or_warns_stays_out_of_the_output(install, capsys, recwarn) -> None:
    install("import warnings\nprint('hello')\nwarnings.warn('careful')\n" + dedent(GOOD + REGISTER))
    assert "made_up" in load_registry().names
    out, err = capsys.readouterr()
    assert (out, err) == ("", "hello\n")
    assert list(recwarn) == []


@pytest.mark.parametrize("entry", ["plugin =", "plugin", "plugin = no such name", "plugin = .x", "= ed_train_lion.x"])
def test_a_malformed_entry_point_is_a_broken_plugin(entry, install, tmp_path) -> None:
    install(GOOD)
    (tmp_path / "broken_plugin-1.2.dist-info" / "entry_points.txt").write_text(f"[ed_train]\n{entry}\n")
    registry = load_registry()
    assert [b.distribution for b in registry.broken] == ["broken-plugin"]
    assert_others_are_there(registry)


@pytest.mark.parametrize("content", [b"[console_scripts]\nno equals sign\n", b"\xff\xfe[ed_train]\n", b"[ed_train"])
def test_a_malformed_file_of_another_distribution_disturbs_nobody(content, install, tmp_path) -> None:
    install(GOOD, distribution="stranger")
    (tmp_path / "stranger-1.2.dist-info" / "entry_points.txt").write_bytes(content)
    registry = load_registry()
    assert registry.broken == ()
    assert_others_are_there(registry)


def test_name_and_version_come_from_the_header_and_not_from_the_readme(install, tmp_path) -> None:
    install(GOOD + REGISTER, distribution="Broken.Plugin")
    (metadata,) = tmp_path.glob("*.dist-info/METADATA")
    metadata.write_bytes(metadata.read_bytes() + b"\nName: readme\nVersion: 9\n\xff\n")
    origin = load_registry().find("made_up")
    assert (origin.distribution, origin.version) == ("broken-plugin", "1.2")


def test_an_object_may_be_the_plugin(install, tmp_path) -> None:
    source = (
        GOOD + "    class Plugin:\n        @hookimpl\n        def ed_register_optimizers(self):\n            return "
    )
    install(source + "(spec(),)\n\n    plugin = Plugin()", module="broken_plugin_object")
    points = tmp_path / "broken_plugin-1.2.dist-info" / "entry_points.txt"
    points.write_text("# ours\n\n[other]\nx = y\n[ ed_train ]\nplugin = broken_plugin_object : plugin [extra]\n")
    assert "made_up" in load_registry().names


# Several plugins


def test_two_distributions_that_offer_one_name_are_both_named(install) -> None:
    install(GOOD + REGISTER, distribution="first-plugin")
    install(GOOD + REGISTER, distribution="second-plugin", version="2.0")
    registry = load_registry()
    with pytest.raises(ConfigError) as error:
        registry.find("made_up")
    assert str(error.value) == (
        "'made_up' is offered by first-plugin 1.2 and second-plugin 2.0; "
        "choose with first-plugin:made_up or second-plugin:made_up"
    )
    for name in ("first-plugin:made_up", "Second_Plugin:MADE_UP"):
        assert registry.find(name).distribution == name.partition(":")[0].lower().replace("_", "-")


def test_the_order_in_which_plugins_are_found_never_matters(install, monkeypatch) -> None:
    install(GOOD + REGISTER, distribution="zebra")
    install(GOOD + REGISTER.replace("spec()", "spec('another'), spec('zz'), spec('aa')"), distribution="ape")
    install("import nothing_here", distribution="broken-plugin")
    registry = load_registry()
    assert registry.names == sorted(registry.names)
    assert [o.spec.name for o in registry] == sorted(o.spec.name for o in registry)
    monkeypatch.setattr(sys, "path", [*sys.path[1:], sys.path[0]])
    again = load_registry()
    assert [(o.spec.name, o.distribution) for o in again] == [(o.spec.name, o.distribution) for o in registry]
    assert again.broken == registry.broken


def test_of_two_copies_of_a_distribution_the_first_on_the_path_counts(install, tmp_path, monkeypatch) -> None:
    install(GOOD + REGISTER)
    older = tmp_path / "older"
    metadata = older / "Broken.Plugin-1.1.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Name: Broken.Plugin\nVersion: 1.1\n")
    (metadata / "entry_points.txt").write_text("[ed_train]\nplugin = nothing_here\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(older), str(tmp_path)])
    registry = load_registry()
    assert registry.find("made_up").version == "1.2"
    assert registry.broken == ()


def test_two_plugins_that_offer_one_freezing_section(install, tmp_path, monkeypatch) -> None:
    from ed_train.config.load import load_config

    source = """
        from dataclasses import dataclass
        from ed_train import FreezePolicy, hookimpl

        @dataclass(frozen=True)
        class Config:
            on: bool = True

        @hookimpl
        def ed_register_freeze_policies():
            return [FreezePolicy(section="unet_freezing", component="unet", summary="", config_type=Config, apply=list)]
    """
    install(source)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "optimizer.json").write_text('{"unet_freezing": ["freeze *"]}')
    flags = {"resume_ckpt": "a/b", "data_root": ".", "optimizer_config": "optimizer.json"}
    with pytest.raises(ConfigError, match="broken-plugin and ed-train-freezing both offer this section"):
        load_config(flags, load_registry())


# What is said when the optimizer of a broken or missing plugin is asked for


def test_installed_but_broken_is_not_called_not_installed(install) -> None:
    install("import does_not_exist", distribution="ed-train-lion", version="9.9")
    with pytest.raises(ConfigError) as error:
        load_registry().find("lion")
    assert str(error.value).startswith(
        "'lion' is in ed-train-lion 9.9, which is installed but broken: "
        "ModuleNotFoundError: No module named 'does_not_exist'"
    )
    assert "not installed" not in str(error.value)


def test_a_known_plugin_that_is_not_installed_names_its_distribution() -> None:
    for name, distribution in DISTRIBUTION_OF_OPTIMIZER.items():
        with pytest.raises(ConfigError) as error:
            OptimizerRegistry().find(name)
        assert f"which is not installed: pip install {distribution} (installed: none)" in str(error.value)


def test_a_known_plugin_that_is_too_old_is_not_called_not_installed() -> None:
    registry = load_registry()
    older = OptimizerRegistry(tuple(o for o in registry if o.spec.name != "lion8bit"))
    with pytest.raises(ConfigError, match="'lion8bit' needs a newer ed-train-bnb: pip install --upgrade ed-train-bnb"):
        older.find("lion8bit")


def test_an_unknown_name_mentions_what_is_broken(install) -> None:
    install("import does_not_exist")
    with pytest.raises(ConfigError, match=r"no installed optimizer .*\(broken: broken-plugin: ModuleNotFoundError"):
        load_registry().find("made_up")


@pytest.mark.parametrize("name", ["nobody:lion", "ed-train-bnb:lion"])
def test_a_distribution_that_does_not_offer_the_name(name) -> None:
    with pytest.raises(ConfigError, match=f"no installed optimizer is called '{name}'; did you mean 'lion'"):
        load_registry().find(name)


def test_the_hint_table_agrees_with_the_plugins() -> None:
    offered = {o.spec.name: o.distribution for o in load_registry()}
    assert offered.items() >= DISTRIBUTION_OF_OPTIMIZER.items()


# Building


def built(install: Install, body: str) -> torch.optim.Optimizer:
    """The optimizer that a plugin with this ``build`` returns over two parameters."""
    build = f"\n    def build(params, config):\n        import torch\n        {body}\n"
    install(GOOD + build + REGISTER.replace("spec()", "spec(build=build)"))
    module = torch.nn.Linear(2, 2)
    registered = load_registry().find("made_up")
    config = registered.spec.config_type()
    return build_optimizer(registered, list(module.parameters()), config)


BAD_BUILDS = {
    "returns None": ("pass", "returned NoneType, not an Optimizer"),
    "returns something else": ("return params", "returned list, not an Optimizer"),
    "returns the class": ("return torch.optim.SGD", "returned type, not an Optimizer"),
    "drops parameters": (
        "return torch.optim.SGD(params[:1], lr=1)",
        "does not hold exactly the parameters that it was given",
    ),
    "adds parameters": (
        "return torch.optim.SGD([*params, torch.nn.Parameter(torch.ones(1))], lr=1)",
        "does not hold exactly the parameters that it was given",
    ),
    "replaces parameters": (
        "return torch.optim.SGD([p.detach().clone() for p in params], lr=1)",
        "does not hold exactly the parameters that it was given",
    ),
    "raises": ("raise RuntimeError('no kernel')", "made_up could not be built: no kernel"),
    "raises without a word": ("raise RuntimeError", "made_up could not be built: RuntimeError"),
    "exits": ("raise SystemExit('no triton')", "made_up could not be built: no triton"),
    "needs a closure": ("return torch.optim.LBFGS(params)", "made_up: its step() needs closure, which this trainer"),
    "has no lr in its groups": (
        "class Other(torch.optim.Optimizer): pass\n        return Other(params, {'step_size': 1})",
        "made_up has no 'lr' in its parameter groups, which schedules set",
    ),
    "is passed an argument that is gone": (
        "return torch.optim.SGD(params, lr=1, percentile_clipping=5)",
        "unexpected keyword argument 'percentile_clipping'",
    ),
}


@pytest.mark.parametrize("name", BAD_BUILDS)
def test_a_build_that_breaks_its_contract_names_the_distribution(name, install) -> None:
    body, reason = BAD_BUILDS[name]
    with pytest.raises(PluginError) as error:
        built(install, body)
    assert str(error.value).startswith("broken-plugin 1.2: ")
    assert reason in str(error.value)


def test_a_build_may_be_interrupted(install) -> None:
    with pytest.raises(KeyboardInterrupt):
        built(install, "raise KeyboardInterrupt")


def test_option_types_that_cannot_be_checked_name_the_plugin(install) -> None:
    install(GOOD.replace("lr: float = 1e-3", "lr: 'Unknown' = 1e-3") + REGISTER, module="broken_plugin_types")
    from ed_train.config.validate import validated

    registry = load_registry()
    config_type = registry.find("made_up").spec.config_type
    unreadable = r"broken_plugin_types\.Config cannot be read: name 'Unknown' is not .*TYPE_CHECKING"
    with pytest.raises(PluginError, match=unreadable):
        validated(config_type, {"lr": 1.0})
    with pytest.raises(PluginError, match=unreadable):
        describe_optimizer("made_up", registry, as_json=False)


def test_the_schema_leaves_out_what_cannot_be_described_and_says_so(install, capsys) -> None:
    install(GOOD.replace("lr: float = 1e-3", "lr: 'Unknown' = 1e-3") + REGISTER, module="broken_plugin_schema")
    print_schema("optimizer", load_registry())
    out, err = capsys.readouterr()
    assert "ed-train-lion.lion" in json.loads(out)["$defs"]
    assert "made_up" not in out
    assert err.startswith("warning: broken-plugin 1.2: made_up is not in the schema: the types of the options of ")


UNUSABLE_TYPES = {
    "Decimal": ("'decimal.Decimal' = None", "the type Decimal"),
    "list[float]": ("list[float] = None", "the type list[float]"),
    "object": ("Annotated[object, Help('x')] = None", "the type object"),
    "tuple[complex, ...] | None": ("'tuple[complex, ...] | None' = None", "the type tuple[complex, ...] | None"),
}


@pytest.mark.parametrize("name", UNUSABLE_TYPES)
def test_option_types_that_json_lacks_are_refused_and_disturb_no_other_plugin(name, install, capsys) -> None:
    option, words = UNUSABLE_TYPES[name]
    source = GOOD.replace("lr: float = 1e-3", f"lr: float = 1e-3\n        odd: {option}")
    source = source.replace("import OptimizerSpec", "import Help, OptimizerSpec")
    source = "import decimal\nfrom typing import Annotated\n" + dedent(source + REGISTER)
    install(source, module="broken_plugin_odd")
    registry = load_registry()
    with pytest.raises(PluginError) as error:
        describe_optimizer("made_up", registry, as_json=False)
    assert f"option 'odd' of broken_plugin_odd.Config has {words}; expected float, int, bool, str," in str(error.value)
    print_schema("optimizer", registry)
    out, err = capsys.readouterr()
    assert "ed-train-lion.lion" in json.loads(out)["$defs"]
    assert "made_up is not in the schema" in err


def test_what_a_broken_plugin_says_cannot_colour_the_terminal(install) -> None:
    install(r"raise ValueError('one\ntwo \x1b[31mred')")
    (broken,) = load_registry().broken
    assert broken.error == r"ValueError: one two \x1b[31mred"


def test_create_optimizer_works_beside_broken_plugins(install, monkeypatch) -> None:
    install("import does_not_exist")
    monkeypatch.setattr("ed_train.api.installed_plugins", load_registry)
    assert isinstance(create_optimizer("adamw", torch.nn.Linear(2, 2).parameters()), torch.optim.AdamW)


def test_reserved_names_are_those_that_the_configuration_knows() -> None:
    from ed_train.config.freeze_sections import FREE_KEYS
    from ed_train.config.optimizer_keys import SCALE_KEYS, SCHEDULE_KEYS
    from ed_train.specs import RESERVED_OPTIONS, RESERVED_SECTIONS

    assert set(RESERVED_OPTIONS) == {"optimizer", *SCHEDULE_KEYS, *FREE_KEYS}
    known = {"base", "text_encoder_overrides", "apply_grad_scaler_step_tweaks", *SCALE_KEYS, *FREE_KEYS}
    assert set(RESERVED_SECTIONS) == known


@pytest.mark.parametrize("option", ["lr_scheduler", "doc"])
def test_an_option_may_not_have_a_name_of_ours(option, install) -> None:
    install(GOOD.replace("lr: float = 1e-3", f"lr: float = 1e-3\n        {option}: float = 1.0") + REGISTER)
    (broken,) = load_registry().broken
    assert f"the option {option!r} has a meaning of its own; rename it" in broken.error


def test_a_section_may_not_have_a_name_of_ours() -> None:
    from dataclasses import make_dataclass

    from ed_train import FreezePolicy

    with pytest.raises(PluginError, match="section 'base' has a meaning of its own"):
        FreezePolicy(
            section="base", component="unet", summary="", config_type=make_dataclass("C", []), apply=lambda m, c: ()
        )
