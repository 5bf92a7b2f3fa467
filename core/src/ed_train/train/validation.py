"""The loss of pictures that do not train, with the same timesteps and noise every time.

Nothing here touches a global random generator, a weight or an optimizer: training goes on as if it had not happened.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ed_train.config.ema import uses_ema
from ed_train.config.validation import TRAIN, ValidationConfig
from ed_train.data.encode import LatentCache
from ed_train.train.best import Best, find_best, keep_best
from ed_train.train.validation_data import ValidationSet

if TYPE_CHECKING:
    from ed_train.config.train_keys import TrainConfig
    from ed_train.train.session import Session

DEFINING = (
    "resolution", "loss_type", "min_snr_gamma", "zero_frequency_noise_ratio", "pyramid_noise_discount",
    "timestep_start", "timestep_end", "enable_zero_terminal_snr", "clip_skip",
)  # fmt: skip
"""Settings of train.json that decide what a loss means: losses under other ones cannot be compared."""


@dataclass(frozen=True)
class Evaluation:
    """One picture at one timestep.

    Attributes:
        index: of the picture in its set.
        place: among the timesteps that are trained, 0 to 1.
        seed: of its noise.
    """

    index: int
    place: float
    seed: str


class Validator:
    """Computes and logs the losses of the sets, when they are due.

    Attributes:
        config: the settings.
        sets: the pictures.
        first: the first loss of each set.
        best: the lowest loss of each set since training began, and its optimizer step.
    """

    def __init__(
        self,
        config: ValidationConfig,
        sets: Sequence[ValidationSet],
        latents: LatentCache,
        train: TrainConfig,
    ) -> None:
        """Plan what each validation evaluates.

        Args:
            config: the settings.
            sets: the pictures.
            latents: holds them, uncropped beyond their size and not mirrored.
            train: the settings of the run.
        """
        self.config, self.sets = config, sets
        self.first: dict[str, float] = {}
        self.best: dict[str, tuple[float, int]] = {}
        self._latents = latents
        self._every = Fraction(str(config.every_n_epochs))
        self._mark = 0
        size = config.batch_size or train.batch_size
        self._batches = [(number, batch) for number, one in enumerate(sets) for batch in _batches(one, config, size)]
        self._fingerprints = self._fingerprinted(train)

    def _fingerprinted(self, train: TrainConfig) -> dict[str, str]:
        return {one.scanned.name: _fingerprint(one, self.config, train) for one in self.sets}

    def begin(self, session: Session) -> None:
        """Validate before the first step, or where an interrupted run has not come to it."""
        if self.first.keys() < self._fingerprints.keys() or self._intervals(session) > self._mark:
            self.validate(session)

    def after_step(self, session: Session) -> None:
        """Validate if it is due: every so many epochs, and at the end."""
        if session.done or self._intervals(session) > self._mark:
            self.validate(session)

    def validate(self, session: Session) -> None:
        """Compute and log all losses; all processes must call it together. A signal ends it without a result."""
        if session.agree(bool(session.signals.number))[0]:
            return
        with session.evaluation():
            losses = self._losses(session)
            if losses is None:
                return
            self._mark = self._intervals(session)
            names = [one.scanned.name for one in self.sets]
            own = dict(zip(names, losses, strict=False))
            self._count(own, session.step)
            self._keep_best(session, own)
        self._log(session, names, losses)

    def kept(self, session: Session) -> Best | None:
        """The weights that are kept as the best of the run, in the main process; None where it keeps none."""
        name, output = self.config.watched, session.output
        if not self.config.keep_best_ckpt or name is None or output is None:
            return None
        return find_best(output.writer.folder, output.run_id, self._fingerprints[name])

    def _keep_best(self, session: Session, losses: Mapping[str, float]) -> None:
        """Keep the weights if they are better than those that have been kept; what is on the disk decides."""
        name, output = self.config.watched, session.output
        keeps = self.config.keep_best_ckpt and not session.run.train.save_nothing
        if not keeps or name is None or output is None or not session.step or not math.isfinite(losses[name]):
            return
        output.settle(session)
        kept = self.kept(session)
        if kept is None or losses[name] < kept.loss:
            keep_best(session, name, self._fingerprints[name], losses[name])

    def _intervals(self, session: Session) -> int:
        """How many validations are due up to where the run is."""
        done = session.batches_done
        part = Fraction(done, session.loader.epochs.batches(session.epoch)) if done else 0
        return (session.epoch + part) // self._every

    def _losses(self, session: Session) -> list[float] | None:
        """The loss of each set, and with a moving average then that of each set with it; None if a signal came."""
        rank, world = session.accelerator.process_index, session.accelerator.num_processes
        sums = self._sums(session, rank, world)
        if uses_ema(session.run.train):
            if session.ema:  # which the main process alone has
                with session.ema.in_use():
                    sums += self._sums(session, 0, 1)
            else:
                sums += [0.0] * len(self.sets)
        if world > 1:
            total = torch.tensor(sums, dtype=torch.float64, device=session.accelerator.device)
            sums = session.accelerator.reduce(total, "sum").tolist()
        if session.agree(bool(session.signals.number))[0]:
            return None
        counts = [len(one.scanned.items) * self.config.timesteps_per_image for one in self.sets]
        return [total / count for total, count in zip(sums, counts * (len(sums) // len(counts)), strict=True)]

    @torch.no_grad()
    def _sums(self, session: Session, rank: int, world: int) -> list[float]:
        """The sum of the losses of this process's share of each set."""
        mine, losses = self._batches[rank::world], []
        for number, batch in mine:
            if session.signals.number:  # whoever asked for these sums asks for the signal, too
                break
            losses.append(self._loss(session, self.sets[number], batch) * len(batch))
        sums = [0.0] * len(self.sets)
        for (number, _), loss in zip(mine, torch.stack(losses).tolist() if losses else [], strict=False):
            sums[number] += loss
        return sums

    def _loss(self, session: Session, one: ValidationSet, batch: Sequence[Evaluation]) -> Tensor:
        """The mean loss of one batch, a scalar."""
        device, items = session.accelerator.device, one.scanned.items
        stacked = np.stack([self._latents.get(items[e.index].path, 0, False).numpy() for e in batch])
        mean, std = torch.from_numpy(stacked).to(device).chunk(2, dim=1)
        noisy = session.diffusion.add_fixed_noise(mean, std, [e.place for e in batch], [e.seed for e in batch])
        embeddings = session.text.embeddings(one.token_ids[[e.index for e in batch]])
        unet = session.accelerator.unwrap_model(session.unet)  # processes have different numbers of batches
        prediction = unet(noisy.latents, noisy.timesteps, embeddings, return_dict=False)[0]
        return session.diffusion.loss(prediction, noisy)

    def _count(self, losses: Mapping[str, float], step: int) -> None:
        """Keep the first and the best losses. The model that training begins with is no result of it."""
        self.first = {**losses, **self.first}
        if step:
            for name, loss in losses.items():
                if math.isfinite(loss) and loss < self.best.get(name, (math.inf, 0))[0]:
                    self.best[name] = (loss, step)

    def _log(self, session: Session, names: Sequence[str], losses: Sequence[float]) -> None:
        """Write the losses to the metrics, and a line of them."""
        own = dict(zip(names, losses, strict=False))
        averaged = dict(zip(names, losses[len(names) :], strict=False))
        scalars = {f"validation/loss/{name}": loss for name, loss in own.items()}
        scalars |= {f"validation/loss_ema/{name}": loss for name, loss in averaged.items()}
        if self.config.use_relative_loss:
            scalars |= {f"validation/relative_loss/{name}": loss - self.first[name] for name, loss in own.items()}
        session.metrics.scalars(scalars, session.step)
        line = ", ".join(f"{name} {loss:.4f}{self._compared(name, session.step)}" for name, loss in own.items())
        if averaged:
            line += f"; of the average: {', '.join(f'{name} {loss:.4f}' for name, loss in averaged.items())}"
        session.metrics.say(f"validation: {line}")

    def _compared(self, name: str, step: int) -> str:
        """How a loss compares with earlier ones: `` (best 0.1200 at step 40)``."""
        if name not in self.best or name == TRAIN:
            return ""
        best, at = self.best[name]
        return " (best so far)" if at == step else f" (best {best:.4f} at step {at})"

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs."""
        return {
            "fingerprints": self._fingerprints,
            "first": self.first,
            "best": {name: list(best) for name, best in self.best.items()},
            "every": str(self._every),
            "mark": self._mark,
        }

    def load(self, state: Mapping[str, Any] | None, session: Session) -> list[str]:
        """Go on with what `state_dict` returned; None for a checkpoint of a run without validation.

        Returns:
            Lines about sets that are not the same any more.
        """
        state = state or {}
        self.first = dict(state.get("first", {}))
        self.best = {name: (best[0], best[1]) for name, best in state.get("best", {}).items()}
        reached = self._intervals(session)
        self._mark = min(state["mark"], reached) if state.get("every") == str(self._every) else reached
        return self._forget_others(state.get("fingerprints", {}))

    def redefine(self, train: TrainConfig) -> list[str]:
        """Go on under other settings.

        Returns:
            Lines about sets whose losses cannot be compared with earlier ones.
        """
        before, self._fingerprints = self._fingerprints, self._fingerprinted(train)
        return self._forget_others(before)

    def _forget_others(self, before: Mapping[str, str]) -> list[str]:
        """Keep the first and best losses of those sets alone that are as they were `before`; lines about the others."""
        same = {name for name, fingerprint in self._fingerprints.items() if before.get(name) == fingerprint}
        self.first = {name: loss for name, loss in self.first.items() if name in same}
        self.best = {name: best for name, best in self.best.items() if name in same}
        changed = [name for name in self._fingerprints if name in before and name not in same]
        what = "its pictures, or settings that its loss depends on, have changed; its first and best losses begin anew"
        return [f"validation {name}: {what}" for name in changed]


def _batches(one: ValidationSet, config: ValidationConfig, size: int) -> Iterator[list[Evaluation]]:
    """All evaluations of a set, in batches of one bucket each.

    The places of a set, and those of each of its pictures, are spread evenly over the timesteps (stratified sampling):
    a loss depends more on the timestep than on anything else.
    """
    scanned, repeats = one.scanned, config.timesteps_per_image
    count = len(scanned.items)
    order = sorted(range(count), key=lambda i: (_digest(f"{config.seed}/{one.contents[i]}"), i))
    by_bucket: dict[Any, list[Evaluation]] = {}
    for rank, index in enumerate(order):
        for repeat in range(repeats):
            seed = f"validation/{config.seed}/{one.contents[index]}/{repeat}"
            within = int.from_bytes(_digest(f"{seed}/place")[:4], "little") / 2**32
            place = (repeat * count + rank + within) / (count * repeats)
            by_bucket.setdefault(scanned.buckets[index], []).append(Evaluation(index, place, seed))
    for _, evaluations in sorted(by_bucket.items()):
        for start in range(0, len(evaluations), size):
            yield evaluations[start : start + size]


def _fingerprint(one: ValidationSet, config: ValidationConfig, train: TrainConfig) -> str:
    """Of everything that decides a set's loss, but the model."""
    settings = [config.seed, config.timesteps_per_image, *(getattr(train, key) for key in DEFINING)]
    pictures = sorted(zip(one.contents, map(str, one.scanned.buckets), map(str, one.token_ids.tolist()), strict=True))
    return _digest(json.dumps([settings, pictures])).hex()


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
