"""The contract of every section of optimizer.json that freezes parameters."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import pytest
import torch

from ed_train.api import installed_plugins
from ed_train.config.describe import annotations_of
from ed_train.config.run import TEXT_ENCODER
from ed_train.config.validate import validated
from ed_train.registry import RegisteredFreezePolicy
from ed_train.specs import FreezePolicy
from ed_train.testing import metadata
from ed_train.testing.explain import explained
from ed_train.testing.models import small_text_encoder, small_unet, text_encoder_output, unet_output
from ed_train.testing.option_values import other_values, refused_values

NO_SETTINGS = "no settings are known that freeze something; set settings = {...}"


class FreezePolicyContract:
    """Everything that ed-train expects of a section of optimizer.json that freezes parameters.

    Subclass it in a test file of the plugin, which must be installed; each check is a test::

        from ed_train.testing import FreezePolicyContract

        class TestTextEncoderFreezing(FreezePolicyContract):
            section = "text_encoder_freezing"

    The checks freeze parameters of a small UNet of diffusers, or a small CLIP text model of transformers.

    Attributes:
        section: the key of optimizer.json.
        settings: values of the section that freeze something of the model and leave something to train; without them
            the checks look for such values themselves, which works for switches and numbers.
        freezes_by_default: whether an empty section freezes something, and the documentation says so.
    """

    section: str = ""
    settings: Mapping[str, Any] = MappingProxyType({})
    freezes_by_default: bool = False

    def model(self) -> torch.nn.Module:
        """A small model of the policy's component; override it, and `forward`, for other kinds."""
        return small_text_encoder() if self.policy.component == TEXT_ENCODER else small_unet()

    def forward(self, model: torch.nn.Module) -> torch.Tensor:
        """A differentiable output of `model`."""
        return text_encoder_output(model) if self.policy.component == TEXT_ENCODER else unet_output(model)

    @property
    def registered(self) -> RegisteredFreezePolicy:
        """The policy and where it comes from."""
        found = [p for p in installed_plugins().freeze_policies if p.policy.section == self.section]
        assert found, f"section = {self.section!r} finds no freeze policy; is the plugin installed (pip install -e .)?"
        return found[0]

    @property
    def policy(self) -> FreezePolicy:
        return self.registered.policy

    def test_imports_nothing_heavy(self) -> None:
        """Loading the plugin imports nothing that takes long: every command waits for it."""
        metadata.check_imports(self.registered.distribution)

    def test_requires_ed_train(self) -> None:
        """Who installs the plugin gets ed-train with it."""
        metadata.check_requirements(self.registered.distribution, library="")

    def test_says_what_it_is(self) -> None:
        """There is one line for users."""
        metadata.check_summary(self.section, self.policy.summary)

    def test_every_option_has_help(self) -> None:
        """Every option says in one line what it does."""
        metadata.check_help(self.policy.config_type)

    def test_options_are_frozen(self) -> None:
        """The options cannot be changed after they were checked."""
        metadata.check_frozen(self.policy.config_type)

    def test_unknown_and_out_of_range_options_are_refused(self) -> None:
        """A wrong name or value is a problem that names the option, before apply sees it."""
        defaults = self.policy.config_type()
        wrong: list[tuple[str, Any]] = [("no_such_option", 1)]
        for option, annotation in annotations_of(self.policy.config_type).items():
            wrong += [(option, value) for value in refused_values(annotation, getattr(defaults, option))]
        for option, value in wrong:
            _, problems, _ = validated(self.policy.config_type, {option: value})
            text = "; ".join(map(str, problems))
            assert text, f"{option}={value!r} is accepted: give the option a type, with its range if it has one"
            assert option in text, f"{option}={value!r} is refused without naming {option}: {text}"

    def test_default_settings_freeze_nothing(self) -> None:
        """An empty section freezes nothing, unless the test class says that it does."""
        with explained("apply refuses an empty section, whose keys all have their defaults; freeze nothing then"):
            frozen = self.frozen_by({})
        if self.freezes_by_default:
            assert frozen, "freezes_by_default = True, but an empty section freezes nothing; leave it out"
        else:
            names = ", ".join(sorted(frozen)[:3])
            assert not frozen, f"an empty section freezes {names}, ...; if it should, set freezes_by_default = True"

    def test_settings_freeze_something(self) -> None:
        """There are settings that freeze something."""
        if self.settings:
            assert self.frozen_by(self.settings), (
                f"with settings = {dict(self.settings)} every parameter still has requires_grad; "
                "call requires_grad_(False) on what is not to train, or set other settings"
            )
        assert self.working_settings is not None, NO_SETTINGS

    def test_returns_the_names_of_what_it_froze(self) -> None:
        """The names that apply returns are those of the parameters that do not train any more."""
        model, settings = self.model(), self.settings_or_skip()
        returned = self.apply(model, settings)
        frozen = frozen_names(model)
        differing = sorted({*(set(returned) ^ frozen), *(name for name in returned if returned.count(name) > 1)})
        assert not differing, (
            f"apply returned {len(returned)} names and froze {len(frozen)} parameters; return the names from "
            f"named_parameters(), each once; they differ in {', '.join(differing[:3])}"
        )

    def test_leaves_something_to_train(self) -> None:
        """What the settings leave trains."""
        model, settings = self.model(), self.settings_or_skip()
        self.apply(model, settings)
        trains = any(p.requires_grad for p in model.parameters())
        assert trains, f"{settings} leaves nothing to train; raise ValueError for settings that cannot be meant"

    def test_never_unfreezes(self) -> None:
        """What another policy, or the trainer, has frozen stays frozen."""
        model, settings = self.model(), self.settings_or_skip()
        model.requires_grad_(False)
        self.apply(model, settings)
        unfrozen = [name for name, p in model.named_parameters() if p.requires_grad]
        assert not unfrozen, f"apply unfroze {', '.join(unfrozen[:3])}; call requires_grad_(False) only, never True"

    def test_leaves_the_weights_alone(self) -> None:
        """No weight changes, and no buffer."""
        model, settings = self.model(), self.settings_or_skip()
        before = copy.deepcopy(model.state_dict())
        self.apply(model, settings)
        after = model.state_dict()
        assert list(before) == list(after), "apply adds or removes weights; call requires_grad_(False) and nothing else"
        changed = [name for name in before if not torch.equal(before[name], after[name])]
        assert not changed, f"apply changes {', '.join(changed[:3])}; call requires_grad_(False) and nothing else"

    def test_changes_nothing_else(self) -> None:
        """Parameters stay the same objects; no module is switched to evaluation, hooked or set otherwise."""
        model, settings = self.model(), self.settings_or_skip()
        before = _settings_of_modules(model)
        self.apply(model, settings)
        after = _settings_of_modules(model)
        changed = [name for name in before if before[name] != after.get(name)]
        assert not changed, (
            f"apply changes {', '.join(changed[:3])}; call requires_grad_(False) and nothing else: the trainer "
            "relies on the parameters and modes that it has set up"
        )

    def test_applying_prints_nothing(self) -> None:
        """Nothing is printed: it would get into the output of --json, and a run says itself what is frozen."""
        model, settings = self.model(), self.settings_or_skip()
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            self.apply(model, settings)
        assert not printed.getvalue(), f"apply prints {printed.getvalue()!r}; leave it out, or use logging"

    def test_applying_twice_changes_nothing_more(self) -> None:
        """A second time is as good as once."""
        model, settings = self.model(), self.settings_or_skip()
        self.apply(model, settings)
        once = frozen_names(model)
        self.apply(model, settings)
        more = frozen_names(model) - once
        assert not more, (
            f"applied again, it freezes {', '.join(sorted(more)[:3])} too; choose by names, not by what trains"
        )

    def test_the_model_still_trains(self) -> None:
        """After a backward pass frozen parameters have no gradient, and others do."""
        model, settings = self.model(), self.settings_or_skip()
        self.apply(model, settings)
        if len(frozen_names(model)) == len(list(model.parameters())):
            pytest.skip(f"{settings} leaves nothing to train")
        with explained("the model cannot be trained after apply; call requires_grad_(False) and nothing else"):
            torch.autograd.backward(self.forward(model).square().mean())
        got = {name for name, p in model.named_parameters() if p.grad is not None}
        assert got.isdisjoint(frozen_names(model)), (
            "frozen parameters get gradients; call requires_grad_(False) on them"
        )
        assert got, "no parameter gets a gradient any more; call requires_grad_(False) and nothing else"

    def test_works_on_the_meta_device(self) -> None:
        """The choice does not depend on values: --plan-memory has a model without any."""
        settings = self.settings_or_skip()
        with torch.device("meta"):
            model = self.model()
        with explained("apply fails for a model on the meta device, which has no values; choose by names and shapes"):
            self.apply(model, settings)
        same = frozen_names(model) == self.frozen_by(settings)
        assert same, "apply freezes other parameters of a model on the meta device; choose by names and shapes"

    def test_a_module_that_does_not_fit_is_a_value_error(self) -> None:
        """A module of another kind is refused in a way that becomes a message, not a traceback."""
        settings, module = self.settings_or_skip(), torch.nn.Linear(2, 2)
        try:
            returned = self.apply(module, settings)
        except ValueError:
            return
        except Exception as error:
            raise AssertionError(
                f"for a Linear apply raises {type(error).__name__}: {error}; "
                "raise ValueError that says what kind of module it is for"
            ) from error
        assert set(returned) == frozen_names(module), "for a Linear apply returns other names than it froze"
        assert returned, (
            f"for a Linear {dict(settings)} freezes nothing, and nobody would know; "
            "raise ValueError where there is nothing of what is to be frozen"
        )

    def apply(self, model: torch.nn.Module, settings: Mapping[str, Any]) -> list[str]:
        """Apply the policy; returns the names that it returned."""
        config, problems, _ = validated(self.policy.config_type, dict(settings))
        assert not problems, f"settings = {dict(settings)} are not valid: {'; '.join(map(str, problems))}"
        returned: Any = self.policy.apply(model, config)
        return list(() if returned is None else returned)

    def frozen_by(self, settings: Mapping[str, Any]) -> set[str]:
        """The names of the parameters of a new model that settings freeze."""
        model = self.model()
        self.apply(model, settings)
        return frozen_names(model)

    @property
    def working_settings(self) -> Mapping[str, Any] | None:
        """Settings that freeze something: those of the test class, or the first that are found."""
        return next((s for s in self._candidates() if s or self.freezes_by_default if self.frozen_by(s)), None)

    def settings_or_skip(self) -> Mapping[str, Any]:
        settings = self.working_settings
        if settings is None:
            pytest.skip(NO_SETTINGS)
        return settings

    def _candidates(self) -> Iterator[Mapping[str, Any]]:
        yield self.settings
        if self.settings:
            return
        defaults = self.policy.config_type()
        for option, annotation in annotations_of(self.policy.config_type).items():
            for alternatives in other_values(annotation, getattr(defaults, option)):
                valid = ({option: value} for value in alternatives)
                yield from (s for s in valid if not validated(self.policy.config_type, s)[1])


def _settings_of_modules(model: torch.nn.Module) -> dict[str, Any]:
    """Which parameters there are, and what each module has of plain attributes, such as its mode, and of hooks."""
    found: dict[str, Any] = {f"the parameter {name}": id(p) for name, p in model.named_parameters()}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if key.endswith("hooks"):
                found[f"{key} of {name or 'the model'}"] = len(value or ())
            elif isinstance(value, bool | int | float | str):
                found[f"{key} of {name or 'the model'}"] = value
    return found


def frozen_names(module: torch.nn.Module) -> set[str]:
    """The names of the parameters that do not train."""
    return {name for name, p in module.named_parameters() if not p.requires_grad}
