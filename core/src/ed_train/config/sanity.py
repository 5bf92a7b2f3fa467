"""Warn about settings that run without an error and do not do what they seem to: by traits of specs, not by names."""

from __future__ import annotations

from collections.abc import Iterator

from ed_train.config.run import ComponentConfig
from ed_train.errors import PluginError
from ed_train.specs import TrainingPlan


def sanity_notes(component: ComponentConfig, clip_grad_norm: float | None) -> list[str]:
    """Lines about a component's settings. Nothing is changed.

    Raises:
        PluginError: the spec's `advice` fails.
    """
    notes = list(_about_lr(component))
    spec = component.optimizer.spec
    if not component.optimizer.verified:
        origin = component.optimizer.origin
        notes.append(f"{component.name}: {spec.name} ({origin}) has no plugin: its options have no ranges or advice")
    if spec.schedule_free and not component.lr_scheduler.startswith("constant"):
        source, schedule = component.sources["lr_scheduler"], component.lr_scheduler
        why = f"{spec.name} is schedule-free: its averages take the place of a decay; use constant"
        notes.append(f"{source}: lr_scheduler {schedule} is unusual for the {component.name}: {why}")
    if spec.advice:
        scheduler = component.lr_scheduler
        has_warmup = scheduler != "constant" and component.lr_warmup_steps != 0
        try:
            advice = list(spec.advice(component.options, TrainingPlan(scheduler, has_warmup, clip_grad_norm)))
        except Exception as error:
            origin = component.optimizer.origin
            raise PluginError(f"{origin}: {spec.name}'s advice failed: {type(error).__name__}: {error}") from error
        notes += [f"{component.name}: {spec.name}: {line}" for line in advice]
    return notes


def _about_lr(component: ComponentConfig) -> Iterator[str]:
    spec, lr = component.optimizer.spec, component.options.lr
    source = component.sources["lr"]
    if lr == 0:
        advice = f"disable_{_FLAG[component.name]}_training leaves it as it is and is faster"
        yield f"{source}: lr 0: the {component.name} is computed in full and does not change; {advice}"
        return
    if spec.usual_lr is None or spec.usual_lr[0] <= lr <= spec.usual_lr[1]:
        return
    usual = f"usual for {spec.name} is {spec.usual_lr[0]:g} to {spec.usual_lr[1]:g}"
    if spec.learning_rate_free and lr < spec.usual_lr[0]:
        usual = f"{spec.name} finds its own step size and scales it by lr; {usual}"
    recommended = spec.recommended.get("lr")
    usual += f" (recommended: {recommended:g})" if recommended is not None else ""
    yield f"{source}: lr {lr:g} is unusual for the {component.name}: {usual}"


_FLAG = {"unet": "unet", "text_encoder": "textenc"}
