"""A GRPO run: everything that is set up once, and the little that changes from step to step."""

import dataclasses
import json
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from rich.console import Console
from rich.table import Table

from vlaa_jax.algos import kl
from vlaa_jax.data.batches import PromptBatch
from vlaa_jax.data.synthetic.dataset import write_dataset
from vlaa_jax.models.qwen_vl.lora import without_adapters
from vlaa_jax.models.qwen_vl.model import PromptInputs
from vlaa_jax.parallel.mesh import data_shards, make_mesh, replicated
from vlaa_jax.rewards.mixed import MixedReward
from vlaa_jax.rollout.engine import Engine
from vlaa_jax.rollout.sampling import Sampling
from vlaa_jax.schema import VERIFIER_TYPES, UserError
from vlaa_jax.settings.grpo import GrpoSettings
from vlaa_jax.settings.rewards import RewardSettings
from vlaa_jax.settings.shared import PromptSettings
from vlaa_jax.train.checkpoint import Checkpoints, Progress
from vlaa_jax.train.gallery import write_gallery
from vlaa_jax.train.heldout import Heldout, save_json
from vlaa_jax.train.metrics import CompileCounter, MetricsWriter, StepClock
from vlaa_jax.train.optimizer import make_optimizer
from vlaa_jax.train.policy import Checkpoint, copy_sidecars, open_checkpoint
from vlaa_jax.train.prompts import (
    Collator,
    Encoder,
    Prompt,
    heldout_prompts,
    load_checked,
    training_loader,
)
from vlaa_jax.train.reward_head import head_scorer
from vlaa_jax.train.state import abstract_state, merge, new_state, partition, to_shape
from vlaa_jax.train.step import Policy, Steps
from vlaa_jax.train.workdir import check_files, check_workdir, plain


class Run:
    """Sets a run up in its directory, new or where it was interrupted.

    Args:
        settings: checked settings.
        rewards: options of the mixed reward.
        workdir: run directory.
        console: where people read along.

    Raises:
        UserError: the run directory, the checkpoint or the data cannot be used.
    """

    def __init__(
        self,
        settings: GrpoSettings,
        rewards: RewardSettings,
        workdir: Path,
        console: Console | None = None,
    ) -> None:
        self.settings = settings
        self.workdir = workdir
        self.console = console or Console()
        self.compilations = CompileCounter()
        check_files(settings.data)
        check_workdir(workdir, settings)
        self.mesh: Mesh = make_mesh(**dataclasses.asdict(settings.mesh))
        self.reward = _mixed_reward(rewards, self.mesh, settings.model.dtype)
        _check_shards(settings, data_shards(self.mesh))
        self.checkpoint: Checkpoint = open_checkpoint(settings.model, settings.data, self.mesh)
        self.reward.start()
        self.collate_on_mesh = Collator(self.checkpoint, settings.data, self.mesh)
        self.allowed_V = jax.device_put(self.checkpoint.allowed_V, replicated(self.mesh))
        self._placed: dict[tuple[int, ...], tuple[PromptInputs, PromptBatch]] = {}
        self._set_up_state()
        self._set_up_data()
        self.writer = MetricsWriter(workdir, self.progress.step)
        self._seconds: deque[float] = deque(maxlen=10)
        # Only now, when everything opened: a mistyped option must not claim the directory.
        copy_sidecars(self.checkpoint.sidecars, workdir / "hf")
        save_json(workdir / "config.json", plain(settings))

    # -- set-up ---------------------------------------------------------------------------

    def _set_up_state(self) -> None:
        settings, algo = self.settings, self.settings.algo
        updates = settings.run.steps * algo.updates_per_rollout
        optimizer, self.schedule = make_optimizer(settings.optimizer, max(updates, 1))
        policy = Policy(
            self.checkpoint.graphdef,
            temperature=settings.rollout.temperature,
            chunk=algo.logprob_chunk,
            row_shards=data_shards(self.mesh),
            base_graphdef=self.checkpoint.base_graphdef if settings.model.lora.rank else None,
        )
        limit = settings.rollout.max_new_tokens
        self.steps = Steps(policy, algo, optimizer, max_new_tokens=limit)
        self.engine = self._engine(settings.rollout.completions)
        self.checkpoints = Checkpoints(self.workdir / "checkpoints", settings.run.keep_checkpoints)
        self._saved = 0
        self._evaluated: tuple[int, dict[str, float]] | None = None
        self.progress = Progress(0, {}, algo.kl_coef)
        self._load(optimizer)
        self.kl = kl.kl_controller(
            algo.kl_coef, target=algo.kl_target or 1.0, horizon=algo.kl_horizon
        )._replace(coef=jnp.float32(self.progress.kl_coef))

    def _load(self, optimizer: optax.GradientTransformation) -> None:
        """Parameters, reference and optimizer state, new or from the newest checkpoint.

        The reference is the starting point itself; arrays that never train are shared with it, and
        with LoRA it is the base with adapters off. Nothing is on the devices twice: what a
        checkpoint brings is given up before it is read.
        """
        settings, everywhere = self.settings, replicated(self.mesh)
        adapters_only = bool(settings.model.lora.rank)
        trainable, frozen = partition(
            self.checkpoint.load_params(settings.seed),
            settings.model.freeze,
            adapters_only=adapters_only,
        )
        has_own_start = bool(settings.algo.kl_coef) and not adapters_only
        start = trainable if has_own_start else {}
        if self.checkpoints.latest is not None:
            shapes = abstract_state(trainable, optimizer, everywhere)
            frozen = jax.tree.map(to_shape, frozen)
            del trainable
            self.state, frozen, self.progress = self.checkpoints.restore(shapes, frozen)
            self._saved = self.progress.step
            self.console.print(f"resuming at step {self.progress.step}")
        else:
            # Updates write over what they are given: the reference keeps the arrays, we a copy.
            own = jax.tree.map(jnp.copy, trainable) if has_own_start else trainable
            self.state = new_state(own, optimizer, everywhere)
        self.frozen = frozen
        self.reference = without_adapters(merge(start, frozen)) if settings.algo.kl_coef else {}

    def _engine(self, completions: int) -> Engine:
        rollout = self.settings.rollout
        return Engine(
            self.checkpoint.graphdef,
            completions=completions,
            max_new_tokens=rollout.max_new_tokens,
            sampling=Sampling(rollout.temperature, rollout.top_k, rollout.top_p, rollout.min_p),
            eos_id=self.checkpoint.chat.end_of_turn_id,
            allowed_V=self.checkpoint.allowed_V,
            slots=rollout.batch_prompts or rollout.prompts,
            burst=rollout.burst,
            mesh=self.mesh,
        )

    def _set_up_data(self) -> None:
        data = self.settings.data
        records, images, heldout = self._files(data)
        self.image_root = images
        encoder = Encoder(self.checkpoint, data)
        gold_problems = self.reward.gold_problems
        usable, rejects = load_checked(records, images, encoder, gold_problems=gold_problems)
        self._say_rejects(records, len(usable), rejects)
        self.progress = self.progress.with_records(usable)
        self.loader = training_loader(
            usable, images, encoder, batch=self.settings.rollout.prompts, seed=self.settings.seed
        )
        if self.progress.loader:
            self.loader.set_state(self.progress.loader)
        self._heldout: Heldout | None = None
        if heldout is not None:
            held, rejects = load_checked(heldout, images, encoder, gold_problems=gold_problems)
            self._say_rejects(heldout, len(held), rejects)
            self._heldout = Heldout(
                heldout_prompts(held, images, encoder),
                self._engine(self.settings.run.eval_completions),
                self.collate_on_mesh,
                self.reward,
                self.checkpoint,
                images,
                batch=self.prefill_prompts,
                seed=self.settings.seed,
            )

    def _files(self, data: PromptSettings) -> tuple[Path, Path, Path | None]:
        if data.records != "embedded":
            heldout = Path(data.heldout) if data.heldout else None
            return Path(data.records), Path(data.image_root), heldout
        paths = write_dataset(
            self.workdir / "data", n_train=data.embedded_train, n_heldout=data.embedded_heldout
        )
        return paths.grpo, paths.images, paths.heldout

    def _say_rejects(self, path: Path, usable: int, rejects: Sequence[Any]) -> None:
        if rejects:
            listing = self.workdir / f"rejects-{path.stem}.txt"
            listing.write_text("".join(f"{r}\n" for r in rejects), encoding="utf-8")
            self.console.print(
                f"{path}: {usable} records, {len(rejects)} left out (reasons in {listing})"
            )

    # -- what the loop asks for ------------------------------------------------------------

    @property
    def params(self) -> dict[str, Any]:
        """All parameters of the policy."""
        return merge(self.state.trainable, self.frozen)

    @property
    def prefill_prompts(self) -> int:
        """Prompts whose prefixes are computed at once."""
        rollout = self.settings.rollout
        return rollout.prefill_prompts or rollout.batch_prompts or rollout.prompts

    @property
    def micro_prompts(self) -> int:
        """Prompts per gradient computation."""
        algo = self.settings.algo
        return algo.micro_prompts or self.settings.rollout.prompts // algo.updates_per_rollout

    def new_step(self) -> None:
        """Forgets the last step's arrays."""
        self._placed.clear()

    def place(self, prompts: Sequence[Prompt]) -> PromptInputs:
        """Prompts of this step on the device; the same ones are put there once."""
        key = tuple(id(prompt) for prompt in prompts)
        if key not in self._placed:
            self._placed[key] = self.collate(prompts)
        return self._placed[key][0]

    def collate(self, prompts: Sequence[Prompt]) -> tuple[PromptInputs, PromptBatch]:
        """Prompts on the device and the host batch."""
        return self.collate_on_mesh(prompts)

    def put(self, array: np.ndarray) -> jax.Array:
        """An array with P first, split over the data shards."""
        return self.collate_on_mesh.put(array)

    def keys(self, step: int, first: int, count: int) -> jax.Array:
        """One random key per prompt of a step; a function of seed, step and place alone."""
        key = jax.random.fold_in(jax.random.key(self.settings.seed), step)
        places = np.arange(first, first + count)
        return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, places)

    def evaluate(self, step: int) -> dict[str, float]:
        """Held-out rewards after `step` steps, with a page of samples; empty without records.

        A mean that no earlier evaluation reached makes the step's checkpoint the best one.
        """
        if self._heldout is None:
            return {}
        if self._evaluated is not None and self._evaluated[0] == step:
            return self._evaluated[1]
        metrics, groups = self._heldout(self.params)
        title = f"{self.workdir.name}, step {step}: held-out mean {metrics['heldout/mean']:.3f}"
        page = self.workdir / "samples" / f"{step:06d}.html"
        write_gallery(page, title, groups, self.image_root)
        self._evaluated = (step, metrics)
        return metrics

    def batch_metrics(self) -> dict[str, float]:
        """Padding of the step's batches, and programs compiled so far."""
        batches = [batch for _, batch in self._placed.values()]
        return {
            "padding/text_frac": float(np.mean([b.padding_frac for b in batches])),
            "padding/vision_frac": float(np.mean([b.vision.padding_frac for b in batches])),
            "compile/count": float(self.compilations.count),
        }

    def logs_rollouts(self, step: int) -> bool:
        """Whether this step's completions are written."""
        every = self.settings.run.log_rollouts_every
        return bool(every) and step % every == 0

    def evaluates(self, step: int) -> bool:
        """Whether held-out records are sampled after this step."""
        every, last = self.settings.run.eval_every, step + 1 == self.settings.run.steps
        return last or bool(every and (step + 1) % every == 0)

    def saves(self, step: int) -> bool:
        """Whether a checkpoint follows this step."""
        last = step + 1 == self.settings.run.steps
        evaluated, metrics = self._evaluated or (-1, {})
        best = evaluated == step + 1 and metrics["heldout/mean"] > self.checkpoints.best_score
        return last or best or (step + 1) % self.settings.run.save_every == 0

    def save(self) -> None:
        """Writes a checkpoint of the current position."""
        evaluated, metrics = self._evaluated or (-1, {})
        score = metrics["heldout/mean"] if evaluated == self.progress.step else None
        self.checkpoints.save(self.state, self.frozen, self.progress, score)
        self._saved = self.progress.step

    def report(self, step: int, metrics: Mapping[str, float], clock: StepClock) -> None:
        """Writes a step's metrics and its line."""
        times = {f"time/{name}_s": seconds for name, seconds in clock.seconds.items()}
        self.writer.write(step, {**metrics, **times, "time/step_s": clock.total})
        self._seconds.append(clock.total)
        left = float(np.median(self._seconds)) * (self.settings.run.steps - step - 1)
        divergence = metrics.get("policy/kl", float("nan"))
        self.console.print(
            f"step {step + 1:>4}/{self.settings.run.steps}"
            f"  reward {metrics.get('reward/mean', float('nan')):.3f}"
            f"  format {metrics['reward/extracted_frac']:.2f}"
            f"  kl {divergence:.4f}"
            f"  length {metrics['rollout/length_mean']:.1f}"
            f"  {metrics['rollout/tokens_per_s']:.0f} tok/s"
            f"  {clock.total:.1f} s  left {_minutes(left)}",
            highlight=False,
            soft_wrap=True,
        )

    def measure(self, name: str) -> dict[str, float]:
        """Held-out rewards under a name, kept in heldout.json so that a resumed run has them."""
        path = self.workdir / "heldout.json"
        kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if self._heldout is None:
            return {}
        if name == "after" or name not in kept:
            kept[name] = self.evaluate(self.progress.step)
        save_json(path, kept)
        embedded = self.settings.data.records == "embedded"
        if name == "after" and embedded and "constant" not in kept:
            kept["constant"] = self._heldout.constant_scores()
            save_json(path, kept)
        return kept[name]

    def summary(self) -> None:
        """The closing table: held-out reward per verifier before and after, and the files."""
        path = self.workdir / "heldout.json"
        if path.exists():
            self.console.print(_table(json.loads(path.read_text(encoding="utf-8"))))
        self.console.print(f"run directory  {self.workdir}", soft_wrap=True)
        names = ("config.json", "metrics.jsonl", "heldout.json", "rollouts", "samples")
        for name in (*names, "checkpoints"):
            self.console.print(f"  {name}", highlight=False)
        if self.checkpoints.best is not None:
            self.console.print(f"best checkpoint  checkpoints/{self.checkpoints.best}")

    def close(self) -> None:
        """Ends writers, workers and threads, all of them even where one fails."""
        with ExitStack() as ends:
            for part in (self.reward, self.loader, self.writer, self.checkpoints):
                ends.callback(part.close)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        try:
            if kind is not None and issubclass(kind, KeyboardInterrupt | UserError):
                self._save_finished_steps()
        finally:
            self.close()

    def _save_finished_steps(self) -> None:
        """Keeps the steps done since the last checkpoint when a run is stopped between updates."""
        updates = self.state.updates
        if updates.is_deleted():  # stopped in the middle of an update
            return
        done = self.progress.step * self.settings.algo.updates_per_rollout
        if self.progress.step > self._saved and int(updates) == done:
            self.save()


def _mixed_reward(rewards: RewardSettings, mesh: Mesh, dtype: str) -> MixedReward:
    """The mixed reward, with the in-process head where the settings choose it."""
    if rewards.open_ended == "reward_head":
        return MixedReward(rewards, head_scorer(rewards, mesh, dtype))
    return MixedReward(rewards)


def _check_shards(settings: GrpoSettings, shards: int) -> None:
    algo, rollout = settings.algo, settings.rollout
    parts = {
        "rollout.prefill_prompts": rollout.prefill_prompts
        or rollout.batch_prompts
        or rollout.prompts,
        "algo.micro_prompts": algo.micro_prompts or rollout.prompts // algo.updates_per_rollout,
    }
    for name, size in parts.items():
        if size % shards:
            raise UserError(
                f"{name}: {size} prompts at once cannot be dealt to {shards} data shards "
                "(mesh.data x mesh.fsdp); choose a multiple"
            )


def _table(kept: Mapping[str, Mapping[str, float]]) -> Table:
    table = Table(title="held-out reward")
    for column in ("verifier", "constant answer", "before", "after", "change"):
        table.add_column(column, justify="left" if column == "verifier" else "right")
    before, after = kept.get("before", {}), kept.get("after", {})
    constant = kept.get("constant", {})
    names = {key.removeprefix("heldout/") for key in after}
    kinds = sorted(names & set(VERIFIER_TYPES))
    for part in (kinds, ["mean"], sorted(names - {*kinds, "mean"})):
        for name in part:
            old, new = before.get(f"heldout/{name}", float("nan")), after[f"heldout/{name}"]
            bar = f"{constant[name]:.3f}" if name in constant else ""
            table.add_row(name, bar, f"{old:.3f}", f"{new:.3f}", f"{new - old:+.3f}")
        table.add_section()
    return table


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest:02d}s"
