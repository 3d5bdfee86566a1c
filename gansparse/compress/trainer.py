# SPDX-License-Identifier: Apache-2.0
"""One training loop for every technique of Table 1; it reads the recipe's row, top to bottom.

batch -> D phase -> G phase -> optimizer step -> mask schedule -> EMA -> log -> save.

All randomness is a pure function of (seed, step), so a run stopped anywhere and resumed from its
newest checkpoint ends with the same bits on the CPU.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gansparse.compress.checkpointing import latest_checkpoint, load_checkpoint, save_checkpoint
from gansparse.compress.config import TrainConfig
from gansparse.compress.ema import update_ema
from gansparse.compress.losses import (
    consistency,
    feature_distance,
    output_distance,
    tapped_features,
)
from gansparse.compress.norms import freeze_norms, recalibrate
from gansparse.compress.recipes import Recipe, get_recipe
from gansparse.compress.start import (
    d_update_rule,
    make_pruner,
    original_generator,
    place,
    starting_discriminator,
    starting_generator,
)
from gansparse.errors import CheckpointError, TrainingError
from gansparse.files import atomic_file, save_tensors, write_json
from gansparse.optim import MaskedAdam
from gansparse.tasks.gan import Batch, GANTask, Terms, weighted_mean


@dataclass
class Result:
    """What a run leaves.

    Attributes:
        generator: the generator to deploy, in eval mode (the EMA where one was kept).
        discriminator: D as it ended, or None.
        masks: parameter name -> bool mask; empty where nothing was pruned.
        history: one row per logged step: step, sparsity, loss, terms.
        seconds: wall time of the steps, over all resumes.
        notes: one sentence for each layer that can't reach its target sparsity, and why.
    """

    generator: nn.Module
    discriminator: nn.Module | None
    masks: dict[str, torch.Tensor]
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)


class Trainer:
    """Runs one recipe on one task.

    Args:
        task: networks, data, loss terms.
        config: everything else.
        out: folder for checkpoints, history and the result; None writes nothing.
        device: where to compute.
        resume: start from the newest checkpoint in ``out``, if there is one.
    """

    def __init__(
        self,
        task: GANTask,
        config: TrainConfig,
        *,
        out: str | Path | None = None,
        device: str | torch.device = "cpu",
        resume: bool = False,
    ) -> None:
        self.task, self.config = task, config
        self.recipe = get_recipe(config.recipe)
        self.out = None if out is None else Path(out)
        self.device = torch.device(device)
        self.step, self.seconds = 0, 0.0
        self.history: list[dict[str, Any]] = []
        torch.manual_seed(config.seed)

        # Networks, as the row says.
        recipe, reading = self.recipe, config.reading
        self.g_o = original_generator(task, recipe, self.device)
        self.g_c = place(starting_generator(task, recipe, config), self.device)
        critic = starting_discriminator(task, recipe)
        self.d = None if critic is None else place(critic, self.device)
        self.ema = copy.deepcopy(self.g_c).requires_grad_(False) if config.ema else None
        self.d_update = d_update_rule(recipe, config)
        if recipe.objective != "adversarial" and reading.g_norm == "running":
            freeze_norms(self.g_c)
        running = recipe.objective == "self-supervised" and reading.d_norm == "running"
        if self.d is not None and (running or self.d_update == "fixed"):
            freeze_norms(self.d)

        # Pruning and optimizers. The masks live in the optimizer step.
        self.pruner = make_pruner(self.g_c, recipe, config)
        self._sparsity = 0.0
        lr = task.lr if config.lr is None else config.lr
        self.opt_g = MaskedAdam(
            self.g_c.parameters(),
            lr=lr,
            betas=task.betas,
            masks=self.pruner.masks if self.pruner else {},
        )
        self.opt_d: MaskedAdam | None = None
        if self.d is not None and self.d_update != "fixed":
            own = lr * reading.d_lr_factor if recipe.objective == "self-supervised" else lr
            d_lr = own if config.d_lr is None else config.d_lr
            self.opt_d = MaskedAdam(self.d.parameters(), lr=d_lr, betas=task.betas)
        self._base_lrs = {id(o): o.param_groups[0]["lr"] for o in (self.opt_g, self.opt_d) if o}
        if resume:
            self._resume()

    def run(self, on_step: Callable[[dict[str, Any]], None] | None = None) -> Result:
        """Trains to the end; ``on_step`` gets each step's row (for progress and logging).

        Raises:
            TrainingError: a loss is NaN or infinite; the message names step and phase.
            OutputError: a checkpoint or the result could not be written.
        """
        config = self.config
        while self.step < config.steps:
            start = time.perf_counter()
            row = self._train_step(self.step)
            self.step += 1
            self.seconds += time.perf_counter() - start
            if row["step"] % config.log_every == 0 or self.step == config.steps:
                self.history.append(row)
            if on_step is not None:
                on_step(row)
            if config.save_every and self.step % config.save_every == 0:
                self.save()
        return self._finish()

    def _train_step(self, step: int) -> dict[str, Any]:
        task, recipe, reading = self.task, self.recipe, self.config.reading
        torch.manual_seed(self.config.seed * 1_000_003 + step)  # dropout, noise inside networks
        for optimizer in (self.opt_g, self.opt_d):
            if optimizer is not None:
                optimizer.param_groups[0]["lr"] = self._base_lrs[id(optimizer)] * self._decay(step)
        batch = {key: value.to(self.device) for key, value in task.batch(step).items()}

        # Mask schedule first, so that both phases see the generator as it is now.
        if self.pruner is not None and self.pruner.step(step, self.config.steps):
            self.opt_g.set_masks(self.pruner.masks)  # zeroes weights and moments outside
            self._sparsity = self.pruner.achieved_sparsity()

        with self._autocast(), torch.no_grad():
            fake_o = task.generate(self.g_o, batch) if self.g_o is not None else None
        with self._autocast():
            fake_c = task.generate(self.g_c, batch)

        # D phase: the supervisor goes on learning, unless the row fixes it.
        terms: dict[str, float] = {}
        if self.opt_d is not None:
            loss_d = self._d_loss(batch, fake_o, fake_c.detach(), step)
            _finite(loss_d, step, "D phase")
            self.opt_d.zero_grad(set_to_none=True)
            _backward(loss_d)
            self.opt_d.step()
            terms["D"] = float(loss_d.detach())

        # G phase: what the generator minimises is the row's objective.
        if self.d is not None:
            self.d.requires_grad_(False)
        with self._autocast():
            parts = self._g_losses(recipe, reading, batch, fake_o, fake_c)
        loss_g = torch.stack([value.float() for value in parts.values()]).sum()
        _finite(loss_g, step, "G phase")
        self.opt_g.zero_grad(set_to_none=True)
        _backward(loss_g)
        self.opt_g.step()
        if self.d is not None:
            self.d.requires_grad_(True)
        if self.ema is not None:
            update_ema(self.ema, self.g_c, self.config.ema, step, self.pruner)
        terms.update({name: float(value.detach()) for name, value in parts.items()})
        loss = float(loss_g.detach())
        return {"step": step, "loss": loss, "sparsity": self._sparsity, "terms": terms}

    def _d_loss(
        self, batch: Batch, fake_o: torch.Tensor | None, fake_c: torch.Tensor, step: int
    ) -> torch.Tensor:
        assert self.d is not None
        with self._autocast():
            judged_real = self.task.judge(self.d, batch["real"], batch)
            if self.d_update == "consistency":  # eq. 6, minimised by D itself
                assert fake_o is not None
                _, dis_o = self._terms(batch, fake_o, judged_real)
                _, dis_c = self._terms(batch, fake_c, judged_real)
                return self._gap(dis_o, dis_c)
            fake = fake_o if self.d_update == "adversarial-original" else fake_c
            assert fake is not None
            loss = weighted_mean(self.task, self._terms(batch, fake, judged_real)[1])
        if self.task.regulariser is not None and step % self.task.regulariser_every == 0:
            loss = loss + self.task.regulariser_every * self.task.regulariser(self.d, batch)
        return loss

    def _g_losses(
        self,
        recipe: Recipe,
        reading: Any,
        batch: Batch,
        fake_o: torch.Tensor | None,
        fake_c: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        if recipe.objective == "adversarial":
            assert self.d is not None
            judged = self.task.judge(self.d, fake_c, batch)
            terms = self.task.generator_terms(judged, fake_c, batch)
            return {name: self.task.weight(name) * value.mean() for name, value in terms.items()}
        assert fake_o is not None
        losses: dict[str, torch.Tensor] = {}
        if reading.output_term != "none" and reading.output_weight:
            distance = output_distance(fake_o, fake_c, reading.output_term)
            losses["output"] = reading.output_weight * distance
        if recipe.objective == "distillation":
            if self.d is not None:  # Aguinaldo et al. 2019: joint loss
                judged = self.task.judge(self.d, fake_c, batch)
                terms = self.task.generator_terms(judged, fake_c, batch)
                losses["gen"] = weighted_mean(self.task, terms)
            return losses
        # Eq. 3, 6, 9: the same terms on both paths, judged by the same D.
        assert self.d is not None
        with torch.no_grad():
            judged_real = self.task.judge(self.d, batch["real"], batch)
            with tapped_features(self.d) as features_o:
                gen_o, dis_o = self._terms(batch, fake_o, judged_real)
        with tapped_features(self.d) as features_c:
            gen_c, dis_c = self._terms(batch, fake_c, judged_real)
        losses["L_GC"] = self._gap(gen_o, gen_c)
        losses["L_DC"] = self.config.lambda_ * self._gap(dis_o, dis_c)
        if reading.adversarial_weight:
            losses["gen"] = reading.adversarial_weight * weighted_mean(self.task, gen_c)
        if reading.feature_weight:
            losses["features"] = reading.feature_weight * feature_distance(features_o, features_c)
        return losses

    def _gap(self, terms_o: Terms, terms_c: Terms) -> torch.Tensor:
        reading = self.config.reading
        return consistency(self.task, terms_o, terms_c, reading.reduction, reading.normaliser_floor)

    def _terms(self, batch: Batch, fake: torch.Tensor, judged_real: Any) -> tuple[Terms, Terms]:
        """Generator's and discriminator's terms of one path."""
        assert self.d is not None
        task = self.task
        judged_fake = task.judge(self.d, fake, batch)
        dis = task.discriminator_terms(judged_real, judged_fake, batch)
        dis |= task.penalty_terms(self.d, fake, batch)
        return task.generator_terms(judged_fake, fake, batch), dis

    def _autocast(self) -> torch.autocast:
        enabled = self.config.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    def _decay(self, step: int) -> float:
        """Factor of the learning rate at a step."""
        done = step / self.config.steps
        if self.config.lr_decay == "linear":
            return 1.0 - done
        if self.config.lr_decay == "half":  # constant, then linear, as Pix2Pix, CycleGAN, StarGAN
            return min(1.0, 2.0 - 2.0 * done)
        if self.config.lr_decay == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * done))
        return 1.0

    # What a run leaves, and takes up again.

    def _parts(self) -> dict[str, Any]:
        """Everything that has a state of its own."""
        parts = {
            "g": self.g_c,
            "d": self.d,
            "ema": self.ema,
            "opt_g": self.opt_g,
            "opt_d": self.opt_d,
            "pruner": self.pruner,
        }
        return {name: part for name, part in parts.items() if part is not None}

    def save(self) -> None:
        """Writes a checkpoint and the history so far; nothing where there is no ``out``."""
        if self.out is None:
            return
        self._write_history()
        states = {name: part.state_dict() for name, part in self._parts().items()}
        state = {"parts": states, "config": self.config.to_dict(), "seconds": self.seconds}
        save_checkpoint(self.out / "checkpoints", self.step, state)

    def _write_history(self) -> None:
        assert self.out is not None
        with atomic_file(self.out / "history.jsonl") as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in self.history))

    def _resume(self) -> None:
        path = None if self.out is None else latest_checkpoint(self.out / "checkpoints")
        if path is None or self.out is None:
            return
        step, state = load_checkpoint(path)
        saved, own = state["config"], json.loads(json.dumps(self.config.to_dict()))
        free = {"log_every", "save_every"}
        if not self.recipe.prunes and self.config.lr_decay == "none":
            free.add("steps")  # nothing depends on where the run ends
        changed = [key for key in own if saved.get(key) != own[key] and key not in free]
        if changed:
            raise CheckpointError(
                f"{path}: was made with another {', '.join(changed)}; "
                "resume with the same settings or choose another --out"
            )
        for name, part in self._parts().items():
            part.load_state_dict(state["parts"][name])
        self.step, self.seconds = step, float(state["seconds"])
        if self.pruner is not None:
            self._sparsity = self.pruner.achieved_sparsity()
        rows = (self.out / "history.jsonl").read_text().splitlines()
        self.history = [row for row in map(json.loads, rows) if row["step"] < step]

    def _finish(self) -> Result:
        generator = self.g_c if self.ema is None else self.ema
        if self.config.recalibration and self.config.reading.g_norm == "batch":
            with torch.no_grad():
                recalibrate(generator, self._forwards(self.config.recalibration))
        generator.eval()
        masks = self.pruner.state_dict() if self.pruner is not None else {}
        if self.out is not None:
            self.save()
            note = {"config": json.dumps(self.config.to_dict()), "task": self.task.name}
            save_tensors(self.out / "generator.safetensors", generator.state_dict(), note)
            if self.d is not None:
                save_tensors(self.out / "discriminator.safetensors", self.d.state_dict(), note)
            write_json(self.out / "config.json", self.config.to_dict())
        notes = list(self.pruner.notes) if self.pruner is not None else []
        return Result(generator, self.d, masks, self.history, self.seconds, notes)

    def _forwards(self, count: int) -> Callable[[nn.Module], None]:
        """Runs ``count`` batches through a module, none of which it was trained on."""

        def run(module: nn.Module) -> None:
            for index in range(count):
                batch = self.task.batch(self.config.steps + index)
                self.task.generate(module, {k: v.to(self.device) for k, v in batch.items()})

        return run


def _backward(loss: torch.Tensor) -> None:
    loss.backward()  # type: ignore[no-untyped-call]


def _finite(loss: torch.Tensor, step: int, phase: str) -> None:
    if not bool(torch.isfinite(loss)):
        raise TrainingError(
            f"step {step}, {phase}: the loss is {float(loss.detach())}; look at the data, or "
            "lower lr and start from the last checkpoint"
        )
