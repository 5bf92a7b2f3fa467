"""docs/plugins.md is true: its code runs, its commands show what it says, and it leaves no public name out."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import tarfile
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ed_train
import ed_train.testing
import pytest
from ed_train import FreezePolicy, OptimizerSpec, TrainingPlan, hookspecs
from ed_train.commands.describe_optimizer import describe_optimizer
from ed_train.config.load import load_config
from ed_train.registry import OptimizerRegistry, load_registry
from ed_train.testing import FreezePolicyContract, OptimizerContract
from plugin_environment import Environment, install_module, make_environment

PAGE = (Path(__file__).parents[1] / "docs" / "plugins.md").read_text(encoding="utf-8")
FIVE_MINUTES = ("Write it", "Test it", "Try it", "Publish it")
NOT_RUN = {"pip install build twine", "twine upload dist/*"}
"""Commands of the page that need a network."""
RUN_AS = {"python -m build": "python -m build --no-isolation"}


class Block(NamedTuple):
    """A fenced block of the page.

    Attributes:
        heading: the heading under which it stands.
        file: the file that the line before it names; empty if none.
    """

    heading: str
    language: str
    file: str
    text: str


def blocks_of(page: str) -> Iterator[Block]:
    heading, before, lines = "", "", iter(page.splitlines())
    for line in lines:
        if line.startswith("```"):
            content = list(iter(lambda: next(lines), "```"))
            named = re.search(r"`([\w./]+)`:$", before)
            yield Block(heading, line.removeprefix("```"), named[1] if named else "", "\n".join(content) + "\n")
            before = ""
        elif line.startswith("#"):
            heading = line.lstrip("# ")
        else:
            before = line or before


BLOCKS = list(blocks_of(PAGE))


def blocks(*headings: str, language: str) -> list[Block]:
    return [block for block in BLOCKS if block.heading in headings and block.language == language]


def module_of(heading: str) -> str:
    """The source of the plugin under a heading."""
    (source,) = [b.text for b in blocks(heading, language="python") if "@hookimpl" in b.text]
    return source


MODULES = {
    "ed_train_cautious_lion": module_of("Write it"),
    "ed_train_schedulefree": module_of("A schedule-free optimizer"),
    "ed_train_attention": module_of("Freezing"),
}


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OptimizerRegistry]:
    """What is installed, and the page's three plugins."""
    for name, source in MODULES.items():
        install_module(tmp_path / "installed", name, source)
    monkeypatch.syspath_prepend(tmp_path / "installed")
    yield load_registry()
    for name in MODULES:
        sys.modules.pop(name, None)


# Its code


def test_every_block_is_of_a_kind_that_is_tested() -> None:
    assert {block.language for block in BLOCKS} == {"python", "toml", "json", "console"}
    assert len(BLOCKS) > 20


def test_the_plugins_load(registry) -> None:
    assert registry.broken == ()
    assert not any(plugin.loads for plugin in registry.slow)
    assert {"cautious_lion", "adamw_schedulefree"} <= set(registry.names)
    assert "attention_only" in {p.policy.section for p in registry.freeze_policies}


def test_the_plugin_is_under_40_lines() -> None:
    assert len(module_of("Write it").splitlines()) < 40


def test_the_schedule_free_optimizer_gives_advice(registry) -> None:
    spec = registry.find("adamw_schedulefree").spec
    assert spec.schedule_free
    plans = {name: TrainingPlan(name, False, None) for name in ("constant", "constant_with_warmup", "cosine")}
    assert [len(list(spec.advice(spec.config_type(), plan))) for plan in plans.values()] == [0, 0, 1]


def test_python_blocks_run_in_order(monkeypatch) -> None:
    module = types.ModuleType("docs_plugins_md")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # where types of options are looked up
    for block in BLOCKS:
        if block.language == "python":
            exec(compile(block.text, f"docs/plugins.md: {block.heading}", "exec"), vars(module))
    example = module.ExampleConfig
    with pytest.raises(ValueError, match="nesterov needs a momentum above 0"):
        example(nesterov=True)
    with pytest.warns(UserWarning, match="l2 is deprecated; write weight_decay"):
        example(l2=0.1)


def test_the_example_of_options_is_understood(monkeypatch) -> None:
    from ed_train.config.validate import validated

    module = types.ModuleType("docs_plugins_md")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    (source,) = [b.text for b in blocks("Options", language="python")]
    exec(source, vars(module))
    good = {"lr": 1, "momentum": 0.9, "nesterov": True, "growth_rate": None, "mode": "fast"}
    config, problems, warned = validated(module.ExampleConfig, good)
    assert (config.mode, problems, warned) == ("fast", [], [])
    wrong = {"lr": "1", "momentum": 1, "nesterov": 1, "growth_rate": 0, "mode": "slow"}
    assert {p.key for p in validated(module.ExampleConfig, wrong)[1]} == wrong.keys()
    assert validated(module.ExampleConfig, {"l2": 0.1})[2] == ["l2 is deprecated; write weight_decay"]


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "json"], ids=lambda b: b.file or b.text[:30])
def test_json_blocks_are_valid(block, registry, tmp_path) -> None:
    if block.file == "wrong.json":
        return  # shown with the error that it gives
    content = json.loads(block.text)
    optimizer = content if block.file != "train.json" else {"base": {"optimizer": "lion"}}
    if "base" not in optimizer:
        optimizer = {"base": {"optimizer": "lion"}, **optimizer}
    (tmp_path / "optimizer.json").write_text(json.dumps(optimizer))
    train = content if block.file == "train.json" else {"optimizer_config": "optimizer.json"}
    (tmp_path / "train.json").write_text(json.dumps(train))
    flags = {"resume_ckpt": "owner/model", "data_root": str(tmp_path)}
    run = load_config(flags, registry, tmp_path / "train.json")
    if "attention_only" in content:
        assert [f.options.kind for f in run.freezing] == ["cross"]
    elif block.file == "optimizer.json":
        assert {c.optimizer.spec.name for c in run.components.values()} == {"cautious_lion"}
        assert run.components["text_encoder"].options.lr == 5e-8
        assert run.notes == ()


# Its commands


def matches(shown: str, real: str) -> bool:
    """Whether an output is the one that is shown, in which ``...`` stands for any text and, alone, for any lines."""
    pattern = "".join(
        r"(?:.*\n)*?" if line == "..." else re.escape(line).replace(re.escape("..."), ".*") + r"\n"
        for line in shown.splitlines()
    )
    return bool(re.fullmatch(pattern, real))


def test_matches() -> None:
    assert matches("a\n... b\n...\n", "a\n12 b\n")
    assert matches("...\nb\n", "a\na\nb\n")
    assert not matches("a\n... b\n", "a\n12 c\n")
    assert not matches("", "a warning\n")


def walk_through(environment: Environment, block: Block) -> None:
    """Do what a block says: write a file, or run commands and compare what they show."""
    if block.file:
        path = environment.cwd / block.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text, encoding="utf-8")
    if block.language != "console":
        return
    for shown in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, _, output = shown.partition("\n")
        if command.startswith("cd "):
            environment.cwd /= command.removeprefix("cd ")
        elif command not in NOT_RUN:
            done = environment.run(RUN_AS.get(command, command))
            status = 2 if output.startswith("error: ") else 0
            assert done.returncode == status, f"{command}\n{done.stdout}"
            if command not in RUN_AS:
                assert matches(output, done.stdout), f"{command}\n{done.stdout}"


@pytest.mark.slow
def test_the_plugin_in_five_minutes(tmp_path) -> None:
    environment = make_environment(tmp_path / "venv")
    for block in BLOCKS:
        if block.heading in FIVE_MINUTES:
            walk_through(environment, block)
    built = {path.name for path in (environment.cwd / "dist").iterdir()}
    assert built == {"ed_train_cautious_lion-0.1.0.tar.gz", "ed_train_cautious_lion-0.1.0-py3-none-any.whl"}
    with tarfile.open(environment.cwd / "dist" / "ed_train_cautious_lion-0.1.0.tar.gz") as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"pyproject.toml", "README.md", "tests/test_contract.py"} <= names
    assert "optimizer.json" not in names  # what an author tries out stays at home


@pytest.mark.slow
def test_the_plugin_by_hand(tmp_path) -> None:
    environment = make_environment(tmp_path / "venv")
    files = blocks("Write it", language="python") + blocks("Write it", language="toml")
    assert {b.file.rpartition("/")[2] for b in files} == {"__init__.py", "pyproject.toml", "test_contract.py"}
    for block in files:
        walk_through(environment, block)
    (environment.cwd / "README.md").write_text("# Cautious Lion\n")
    for command in ("pip install -e '.[test]'", "python -m pytest"):
        done = environment.run(command)
        assert done.returncode == 0, done.stdout


def test_the_test_is_the_one_that_the_command_writes(tmp_path) -> None:
    from ed_train.commands.new_plugin import new_plugin

    new_plugin("cautious_lion", str(tmp_path / "new"))
    shown = {block.file: block.text for block in blocks("Write it", language="python")}
    assert (tmp_path / "new" / "tests" / "test_contract.py").read_text() == shown["tests/test_contract.py"]
    (toml,) = blocks("Write it", language="toml")
    written = (tmp_path / "new" / "pyproject.toml").read_text()
    assert written.replace('"torch>=2.6"', '"lion-pytorch>=0.2.5"') == toml.text


@pytest.mark.slow
def test_the_freeze_policy_passes_its_contract(tmp_path) -> None:
    environment = make_environment(tmp_path / "venv")
    (purelib,) = environment.folder.glob("lib/python*/site-packages")
    install_module(purelib, "ed_train_attention", MODULES["ed_train_attention"])
    (test,) = [b.text for b in blocks("Freezing", language="python") if "Contract" in b.text]
    (environment.cwd / "test_contract.py").write_text(test)
    done = environment.run("python -m pytest test_contract.py")
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_what_the_list_says_about_slow_and_old_plugins(tmp_path) -> None:
    environment = make_environment(tmp_path / "venv")
    (purelib,) = environment.folder.glob("lib/python*/site-packages")
    install_module(purelib, "ed_train_heavy", MODULES["ed_train_cautious_lion"] + "\nimport torch\n")
    install_module(purelib, "ed_train_older", "raise SystemExit('imported')", requires="ed-train<0.1")
    shown = [b for b in BLOCKS if b.language == "console" and b.heading not in FIVE_MINUTES]
    assert len(shown) == 2
    for block in shown:
        walk_through(environment, block)


BROKEN = {
    "module": "import no_such_module\n",
    "no_hook": "def ed_register_optimizers():\n    return []\n",
    "misspelt": "from ed_train import hookimpl\n@hookimpl\ndef ed_register_optimizer():\n    return []\n",
    "none": "from ed_train import hookimpl\n@hookimpl\ndef ed_register_optimizers():\n    pass\n",
    "twice": MODULES["ed_train_cautious_lion"].replace("return [", "return 2 * ["),
    "name": MODULES["ed_train_cautious_lion"].replace('name="cautious_lion"', 'name="Lion"'),
    "field": MODULES["ed_train_cautious_lion"].replace("usual_lr=(1e-9, 5e-7)", "usual_lr=1e-7"),
    "lr": MODULES["ed_train_cautious_lion"].replace("    lr: ", "    rate: "),
    "default": MODULES["ed_train_cautious_lion"].replace("about a tenth of AdamW's\")] = 1e-7", '")]'),
}


def test_the_reasons_for_broken_plugins(tmp_path, monkeypatch) -> None:
    for name, source in BROKEN.items():
        install_module(tmp_path, f"ed_train_broken_{name}", source)
    install_module(tmp_path, "ed_train_broken_older", "", requires="ed-train>=99")
    monkeypatch.syspath_prepend(tmp_path)
    errors = {b.entry_point: b.error for b in load_registry().broken}
    assert errors.keys() == {f"broken_{name}" for name in (*BROKEN, "older")}
    cells = [line.split(" | ")[0] for line in PAGE.partition("| reason |")[2].partition("\n\n")[0].splitlines()[2:]]
    reasons = [code for cell in cells for code in re.findall("`([^`]+)`", cell)]
    patterns = [re.escape(reason).replace(re.escape("..."), ".*") for reason in reasons]
    assert len(patterns) == len(errors)
    for error in errors.values():
        assert len([p for p in patterns if re.search(p, error)]) == 1, error
    for pattern in patterns:
        assert any(re.search(pattern, error) for error in errors.values()), pattern


# Its completeness


def first_cells(*headings: str) -> set[str]:
    """The names in the first column of the tables under some headings."""
    return {row[0] for heading in headings for row in rows(heading)}


def rows(heading: str) -> list[list[str]]:
    """The cells of the tables under a heading, up to the next one."""
    _, found, section = re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL).partition(f"\n{heading}\n")
    assert found, f"docs/plugins.md has no heading {heading!r}"
    section = re.split(r"^#", section, maxsplit=1, flags=re.MULTILINE)[0]
    tables = [line.strip("|").split(" | ") for line in section.splitlines() if line.startswith("| `")]
    return [[cell.strip().strip("`") for cell in row] for row in tables]


def test_every_public_name() -> None:
    named = first_cells("## Hooks", "## Options", "## Errors", "## A training loop of your own")
    named |= set(re.findall(r"^## (\w+)$", PAGE, re.MULTILINE))
    assert set(ed_train.__all__) - named == set()


def test_every_hook() -> None:
    assert {name for name in vars(hookspecs) if name.startswith("ed_")} == first_cells("## Hooks") - {"hookimpl"}


@pytest.mark.parametrize("type_", [OptimizerSpec, FreezePolicy], ids=lambda type_: type_.__name__)
def test_every_field_with_its_default(type_) -> None:
    documented = {row[0]: row[2] for row in rows(f"## {type_.__name__}")}
    assert list(documented) == [field.name for field in dataclasses.fields(type_)]
    for field in dataclasses.fields(type_):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        assert documented[field.name] == ("required" if default is dataclasses.MISSING else code(default))


def code(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def test_every_field_of_a_plan() -> None:
    assert first_cells("### Functions of a spec") == {field.name for field in dataclasses.fields(TrainingPlan)}


def test_every_name_for_tests() -> None:
    assert first_cells("## The contract") == set(ed_train.testing.__all__)


@pytest.mark.parametrize("contract", [OptimizerContract, FreezePolicyContract], ids=lambda c: c.__name__)
def test_every_check_and_every_attribute(contract) -> None:
    documented = first_cells(f"### {contract.__name__}")
    checks = {name for name in dir(contract) if name.startswith("test_")}
    assert len(checks) > 10
    assert {name for name in documented if name.startswith("test_")} == checks
    settings = {name for cls in contract.__mro__ for name in vars(cls).get("__annotations__", ())}
    assert settings <= documented
    for row in rows(f"### {contract.__name__}"):
        if row[0] in settings and row[1] != "required":
            value = getattr(contract, row[0])
            assert row[1] == code(dict(value) if isinstance(value, types.MappingProxyType) else value)


def test_every_link_within_the_page_leads_somewhere() -> None:
    text = re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    links = set(re.findall(r"\]\(#([^)]*)\)", text))
    assert len(links) > 10
    assert links - anchors == set()


def test_the_page_names_the_series_that_runs() -> None:
    major, minor = map(int, ed_train.__version__.split(".")[:2])
    assert f'"ed-train>={major}.{minor},<{major}.{minor + 1}"' in PAGE.partition("## Versions")[2]


def test_describing_the_schedule_free_optimizer(registry, capsys) -> None:
    describe_optimizer("adamw_schedulefree", registry, as_json=False)
    assert "schedule-free: needs no learning-rate schedule" in capsys.readouterr().out
