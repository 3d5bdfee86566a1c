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
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gansparse.compress import distributed
from gansparse.compress.checkpointing import latest_checkpoint, load_checkpoint, save_checkpoint
from gansparse.compress.config import TrainConfig
from gansparse.compress.ema import mask_average, update_ema
from gansparse.compress.norms import freeze_norms, leave_gradients, recalibrate
from gansparse.compress.objectives import Made, Objective
from gansparse.compress.origin import changes, origin_of
from gansparse.compress.quantize import plain
from gansparse.compress.recipes import get_recipe
from gansparse.compress.start import (
    Beginning,
    check_fit,
    critic_pruner,
    d_update_rule,
    make_pruner,
    original_generator,
    place,
    quantize_networks,
    starting_discriminator,
    starting_generator,
)
from gansparse.errors import CheckpointError, InputError, TrainingError
from gansparse.files import alone_in, atomic_file, save_tensors, write_json
from gansparse.optim import MaskedAdam
from gansparse.tasks.gan import Batch, GANTask, detached
from gansparse.tasks.pool import ImagePool


@dataclass
class Result:
    """What a run leaves.

    Attributes:
        generator: the generator to deploy, in eval mode (the EMA where one was kept).
        discriminator: D as it ended, or None.
        masks: parameter name -> bool mask; empty where nothing was pruned.
        history: one row per logged step: step, sparsity, loss, terms.
        seconds: wall time of the steps, over all resumes.
        notes: one sentence for each layer that can't reach its target sparsity, and why; and what
            else did not come as the configuration says.
        files: the generator's weights: one, or one for each network that it consists of.
    """

    generator: nn.Module
    discriminator: nn.Module | None
    masks: dict[str, torch.Tensor]
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)


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
        self._origin: dict[str, Any] | None = None
        self.history: list[dict[str, Any]] = []
        torch.manual_seed(config.seed)

        # Networks, as the row says.
        recipe, reading = self.recipe, config.reading
        self.g_o = original_generator(task, recipe, self.device)
        self.g_c = place(starting_generator(task, recipe, config), self.device)
        critic = starting_discriminator(task, recipe)
        self.d = None if critic is None else place(critic, self.device)
        check_fit(task, self.g_c, self.d)
        if self.g_o is not None:
            self.g_o = distributed.synchronised_norms(self.g_o, self.device)
        self.g_c = distributed.synchronised_norms(self.g_c, self.device)
        self.d = self.d and distributed.synchronised_norms(self.d, self.device)
        quantize_networks(self.g_c, self.d, recipe, config)
        d_update = d_update_rule(recipe, config)
        self.objective = Objective(task, recipe, config, d_update)
        # What the user has frozen, a backbone of D say, stays so.
        self._d_learns = [p for p in self.d.parameters() if p.requires_grad] if self.d else []
        self.pool = ImagePool(task.pool_size, config.seed)
        if recipe.objective != "adversarial" and reading.g_norm == "running":
            freeze_norms(self.g_c)
        running = recipe.objective == "self-supervised" and reading.d_norm == "running"
        if self.d is not None and (running or d_update == "fixed"):
            freeze_norms(self.d)

        # Pruning and optimizers. The masks live in the optimizer step.
        self.pruner = make_pruner(self.g_c, recipe, config, task)
        self.ema = copy.deepcopy(self.g_c).requires_grad_(False) if config.ema else None
        self.pruner_d = None if self.d is None else critic_pruner(self.d, recipe, config)
        self._sparsity = 0.0
        lr = task.lr if config.lr is None else config.lr
        self.opt_g = MaskedAdam(
            self.g_c.parameters(),
            lr=lr,
            betas=task.betas,
            masks=self.pruner.masks if self.pruner else {},
        )
        self.opt_d: MaskedAdam | None = None
        if self.d is not None and d_update != "fixed":
            own = lr * reading.d_lr_factor if recipe.objective == "self-supervised" else lr
            d_lr = own if config.d_lr is None else config.d_lr
            self.opt_d = MaskedAdam(
                self.d.parameters(),
                lr=d_lr,
                betas=task.betas,
                masks=self.pruner_d.masks if self.pruner_d else {},
            )
        self.lr_decay = task.lr_decay if config.lr_decay is None else config.lr_decay
        self._base_lrs = {id(o): o.param_groups[0]["lr"] for o in (self.opt_g, self.opt_d) if o}
        if resume:
            self._resume()

    def run(self, on_step: Callable[[dict[str, Any]], None] | None = None) -> Result:
        """Trains to the end; ``on_step`` gets each step's row (for progress and logging).

        Raises:
            TrainingError: a loss is NaN or infinite; the message names step and phase.
            OutputError: a checkpoint or the result could not be written.
            InputError: ``out`` has checkpoints of a run that is not resumed, or another run is at
                work in it.
        """
        written = self.out if distributed.rank() == 0 else None
        with nullcontext() if written is None else alone_in(written):
            return self._run(on_step)

    def _run(self, on_step: Callable[[dict[str, Any]], None] | None) -> Result:
        config = self.config
        found = None if self.out is None else latest_checkpoint(self.out / "checkpoints")
        if found and self.step == 0:
            raise InputError(
                f"{found}: of another run; go on with it (resume=True), or choose another out"
            )
        if self.out is not None and distributed.rank() == 0:
            self._write_history()  # no step is taken for a place that takes no files
        while self.step < config.steps:
            start = time.perf_counter()
            with distributed.whole_batches():
                row = self.train_step(self.step)
            self.step += 1
            self.seconds += time.perf_counter() - start
            turn = row["step"] // self.task.g_every
            due = turn % config.log_every == 0 or self.step == config.steps
            if due and row["loss"] is not None:
                self.history.append(row)
            if on_step is not None:
                on_step(row)
            if config.save_every and self.step % config.save_every == 0:
                self.save()
        return self._finish()

    def train_step(self, step: int) -> dict[str, Any]:
        """One step of D, and of G when it is its turn; the row that is logged."""
        task = self.task
        torch.manual_seed(self.config.seed * 1_000_003 + step)  # dropout, noise inside networks
        for optimizer in (self.opt_g, self.opt_d):
            if optimizer is not None:
                optimizer.param_groups[0]["lr"] = self._base_lrs[id(optimizer)] * self._decay(step)
        batch = self._batch(step)

        # Mask schedule first, so that both phases see the generator as it is now.
        for pruner, optimizer in ((self.pruner, self.opt_g), (self.pruner_d, self.opt_d)):
            if pruner is not None and optimizer and pruner.step(step, self.config.steps):
                optimizer.set_masks(pruner.masks)  # zeroes weights and moments outside
                if pruner is self.pruner:
                    self._sparsity = pruner.achieved_sparsity()
                    if self.ema is not None:  # also where G has no turn any more
                        mask_average(self.ema, pruner)

        g_turn = step % task.g_every == task.g_every - 1
        made = self._generate(batch, g_turn)
        terms: dict[str, float] = {}
        if not task.g_first:
            self._d_phase(step, batch, made, terms)
        if g_turn:
            self._g_phase(step, batch, made, terms)
        if task.g_first:
            self._d_phase(step, batch, self._generate(batch) if task.fresh_fakes else made, terms)
        for network in (self.g_c, self.d):
            if network is not None:
                distributed.average_buffers(network)
        terms = distributed.average_values(terms)
        loss = terms.pop("loss", None)  # absent where only D took a step
        return {"step": step, "loss": loss, "sparsity": self._sparsity, "terms": terms}

    def _batch(self, step: int) -> Batch:
        """This process's share of a step's batch, on its device."""
        batch = self.task.batch(step)
        if self._origin is None and self.out is not None:
            self._origin = origin_of(self.task, batch)
        batch = distributed.share(batch)
        return {key: value.to(self.device) for key, value in batch.items()}

    def _generate(self, batch: Batch, g_turn: bool = False) -> Made:
        """Both generators' fakes, as far as they are needed; G_C's in the graph on G's turn."""
        task, objective, fake_o = self.task, self.objective, None
        generate = task.generate if g_turn else task.generate_for_d or task.generate
        with self._autocast(), torch.no_grad(), objective.tapped(self.g_o) as layers_o:
            if self.g_o is not None and (g_turn or objective.d_sees_original):
                fake_o = generate(self.g_o, batch)
        with self._autocast(), torch.set_grad_enabled(g_turn), objective.tapped(self.g_c) as layers:
            return Made(fake_o, generate(self.g_c, batch), layers_o, layers)

    def _d_phase(self, step: int, batch: Batch, made: Made, terms: dict[str, float]) -> None:
        """The supervisor goes on learning, unless the row fixes it."""
        if self.d is None or self.opt_d is None:
            return
        task = self.task
        shown = detached(made.fake_c)
        if self.objective.d_update == "adversarial-compressed" and self.pool.size:
            shown = distributed.of_the_whole(partial(self.pool.exchange, step=step), shown)
        with self._autocast():
            loss = self.objective.d_loss(self.d, batch, made.fake_o, shown)
        if task.regulariser is not None and step % task.regulariser_every == 0:
            loss = loss + task.regulariser_every * task.regulariser(self.d, batch)
        _finite(loss, step, "D phase")
        self.opt_d.zero_grad(set_to_none=True)
        _backward(loss, self.d)
        self.opt_d.step()
        terms["D"] = float(loss.detach())

    def _g_phase(self, step: int, batch: Batch, made: Made, terms: dict[str, float]) -> None:
        """The generator minimises the row's objective; the discriminator stands still."""
        for parameter in self._d_learns:
            parameter.requires_grad_(False)
        with self._autocast():
            parts = self.objective.g_losses(self.d, batch, made)
        loss = torch.stack([value.float() for value in parts.values()]).sum()
        _finite(loss, step, "G phase")
        self.opt_g.zero_grad(set_to_none=True)
        _backward(loss, self.g_c)
        self.opt_g.step()
        for parameter in self._d_learns:
            parameter.requires_grad_(True)
        if self.ema is not None:
            distributed.average_buffers(self.g_c)
            update_ema(self.ema, self.g_c, self.config.ema, step // self.task.g_every, self.pruner)
        terms.update({name: float(value.detach()) for name, value in parts.items()})
        terms["loss"] = float(loss.detach())

    def _autocast(self) -> torch.autocast:
        enabled = self.config.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    def _decay(self, step: int) -> float:
        """Factor of the learning rate at a step."""
        done = step / self.config.steps
        if self.lr_decay == "linear":
            return 1.0 - done
        if self.lr_decay == "half":  # constant, then linear, as Pix2Pix, CycleGAN, StarGAN
            return min(1.0, 2.0 - 2.0 * done)
        if self.lr_decay == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * done))
        return 1.0

    # What a run leaves, and takes up again.

    def _parts(self) -> dict[str, Any]:
        """Everything that has a state of its own."""
        ordered = self.config.order == "searched"
        parts = {
            "g": self.g_c,
            "d": self.d,
            "ema": self.ema,
            "opt_g": self.opt_g,
            "opt_d": self.opt_d,
            "pruner": self.pruner,
            "pruner_d": self.pruner_d,
            "beginning": Beginning(self.pruner) if ordered and self.pruner is not None else None,
            "pool": self.pool,
            "references": self.objective.references,
        }
        return {name: part for name, part in parts.items() if part is not None}

    def save(self) -> None:
        """Writes a checkpoint and the history so far; nothing where there is no ``out``."""
        if self.out is None or distributed.rank() > 0:
            return
        self._write_history()
        states = {name: part.state_dict() for name, part in self._parts().items()}
        state = {
            "parts": states,
            "config": self.config.to_dict(),
            "seconds": self.seconds,
            "origin": self._origin or {},
        }
        save_checkpoint(self.out / "checkpoints", self.step, state)

    def _write_history(self) -> None:
        assert self.out is not None
        with atomic_file(self.out / "history.jsonl") as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in self.history))

    def _read_history(self) -> list[dict[str, Any]]:
        assert self.out is not None
        path = self.out / "history.jsonl"
        try:
            return [json.loads(line) for line in path.read_text().splitlines()]
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise CheckpointError(
                f"{path}: not the whole history ({reason}); put it back, or choose another --out"
            ) from None

    def _resume(self) -> None:
        path = None if self.out is None else latest_checkpoint(self.out / "checkpoints")
        if path is None or self.out is None:
            return
        step, state = load_checkpoint(path)
        made, own = state["config"], json.loads(json.dumps(self.config.to_dict()))
        free = {"log_every", "save_every"}
        if not self.recipe.prunes and self.lr_decay == "none":
            free.add("steps")  # nothing depends on where the run ends
        changed = [
            f"{key} ({made.get(key)}, now {own[key]})"
            for key in own
            if made.get(key) != own[key] and key not in free
        ]
        self._origin = origin_of(self.task, self.task.batch(step))
        if other := changes(state.get("origin", {}), self._origin):
            changed.append(other)
        if changed:
            raise CheckpointError(
                f"{path}: was made with another {', '.join(changed)}; "
                "resume with the same settings or choose another --out"
            )
        for name, part in self._parts().items():
            try:
                part.load_state_dict(state["parts"][name])
            except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
                line = next(iter(str(error).splitlines()), type(error).__name__)
                raise CheckpointError(
                    f"{path}: its {name} does not fit, as that of another version of gansparse "
                    f"({line}); choose another --out"
                ) from None
        self.step, self.seconds = step, float(state["seconds"])
        if self.pruner is not None:
            self._sparsity = self.pruner.achieved_sparsity()
        self.history = [row for row in self._read_history() if row["step"] < step]

    def _finish(self) -> Result:
        generator = self.g_c if self.ema is None else self.ema
        if self.recipe.quantizes:
            generator = plain(copy.deepcopy(generator))
        if self.config.recalibration and self.config.reading.g_norm == "batch":
            torch.manual_seed(self.config.seed * 1_000_003 + self.config.steps)
            with torch.no_grad():
                recalibrate(generator, self._forwards(self.config.recalibration))
        for network in (generator, self.d):
            if network is not None:  # as they came: without our hooks, in torch's own layout
                leave_gradients(network)
                _contiguous(network)
        generator.eval()
        masks = self.pruner.state_dict() if self.pruner is not None else {}
        files: list[Path] = []
        self.save()
        if self.out is not None and distributed.rank() == 0:
            note = {"config": json.dumps(self.config.to_dict()), "task": self.task.name}
            if self.task.trained_with:
                note["options"] = json.dumps(dict(self.task.trained_with))
            if self.recipe.key == "a":  # the GAN's own training, of which compression takes a share
                note["trained_steps"] = str(self.config.steps + (self.task.trained_steps or 0))
            files = _save_networks(self.out / "generator.safetensors", generator, note)
            if self.d is not None:
                _save_networks(self.out / "discriminator.safetensors", self.d, note)
            write_json(self.out / "config.json", self.config.to_dict())
        notes = list(self.pruner.notes) if self.pruner is not None else []
        return Result(generator, self.d, masks, self.history, self.seconds, notes, files)

    def _forwards(self, count: int) -> Callable[[nn.Module], None]:
        """Runs ``count`` batches through a module, none of which it was trained on."""

        def run(module: nn.Module) -> None:
            for index in range(count):
                batch = self.task.batch(self.config.steps + index)
                self.task.generate(module, {k: v.to(self.device) for k, v in batch.items()})

        return run


def _contiguous(module: nn.Module) -> None:
    to: Any = module.to  # torch's annotation lacks memory_format
    to(memory_format=torch.contiguous_format)


def _save_networks(path: Path, module: nn.Module, note: dict[str, str]) -> list[Path]:
    """Each network in a file of its own, in its own layout, so that it loads anywhere."""
    parts = dict(module.items()) if isinstance(module, nn.ModuleDict) else {"": module}
    files = {path.with_stem(f"{path.stem}_{name}".rstrip("_")): net for name, net in parts.items()}
    for file, net in files.items():
        save_tensors(file, net.state_dict(), note)
    return list(files)


def _backward(loss: torch.Tensor, module: nn.Module) -> None:
    loss.backward()  # type: ignore[no-untyped-call]
    distributed.average_gradients(module.parameters())


def _finite(loss: torch.Tensor, step: int, phase: str) -> None:
    if not bool(torch.isfinite(loss)):
        raise TrainingError(
            f"step {step}, {phase}: the loss is {float(loss.detach())}; look at the data, or "
            "lower lr and start from the last checkpoint"
        )
