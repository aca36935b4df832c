"""Work and memory of a task's programs by formulas: GRPO and supervised training."""

from typing import Any

from vlaa_jax.models.qwen_vl.attend import choose
from vlaa_jax.models.qwen_vl.config import QwenVLConfig
from vlaa_jax.models.qwen_vl.flops import group_flops, row_flops
from vlaa_jax.plan.formulas import Batch, Cut, Formulas, Work
from vlaa_jax.plan.shapes import bins_per_row, shapes_of, vision_rows
from vlaa_jax.rollout.slots import MOST_HELD
from vlaa_jax.settings.grpo import GrpoSettings
from vlaa_jax.settings.sft import SftSettings


class GroupFormulas(Formulas):
    """Of a GRPO step."""

    settings: GrpoSettings

    def __init__(
        self, settings: GrpoSettings, config: QwenVLConfig, cut: Cut, form: str = "dense"
    ) -> None:
        super().__init__(settings, config, cut, form)
        self.shapes = shapes_of(settings, config)
        self.sampling = cut.sampling(settings.rollout.tensor)
        self._groups = settings.rollout.completions

    @property
    def rows(self) -> int:
        """Of the largest image."""
        return self.shapes.rows

    @property
    def loop(self) -> int:
        """Tokens of a burst."""
        return self.shapes.burst

    @property
    def keeps_reference(self) -> bool:
        """Where there is a KL term."""
        return bool(self.settings.algo.kl_coef)

    def works(self) -> dict[str, tuple[int, Work]]:
        """See Formulas."""
        rollout, algo, shapes = self.settings.rollout, self.settings.algo, self.shapes
        prompts, limit = rollout.prompts, rollout.max_new_tokens
        again = (algo.updates_per_step > 1) + bool(algo.kl_coef)
        micro = self.batch(shapes.micro, shapes.answer)
        burst = Work(*(shapes.burst * figure for figure in self.token(limit / 2)))
        bursts = -(-prompts // shapes.slots) * -(-limit // shapes.burst)
        prompts_alone = self.batch(shapes.prefill, 0)
        prefill = self.passes(prompts_alone, backward=False, sampling=self.sampling)
        updates, micros = algo.updates_per_step, algo.updates_per_step * self._micros
        return {
            "weights": (1, self.weights()),
            "prefill": (prompts // shapes.prefill, prefill),
            "burst": (bursts, burst),
            "score": (prompts // shapes.micro * again, self.passes(micro, backward=False)),
            "gradients": (micros, self.passes(micro, backward=True)),
            "apply": (updates, self.apply()),
        }

    @property
    def _micros(self) -> int:
        per_update = self.settings.rollout.prompts // self.settings.algo.updates_per_rollout
        return max(per_update // self.shapes.micro, 1)

    def memory(self) -> dict[str, float]:
        """See Formulas."""
        decoding = self.decoding()
        learning = self.learning(self.batch(self.shapes.micro, self.shapes.answer))
        return dict.fromkeys(("weights", "prefill", "burst"), decoding) | {"gradients": learning}

    def batch(self, prompts: int, answer: int) -> Batch:
        """Some prompts with completions of that many positions each."""
        shapes, answers = self.shapes, self._groups * answer
        lengths, group = [shapes.prompt] * prompts, [answer] * self._groups * (answer > 0)
        return Batch(
            prompts * (shapes.prompt + answers),
            prompts * (shapes.prompt**2 + answers * (shapes.prompt + answer)),
            prompts * (shapes.prompt**2 / 2 + answers * (shapes.prompt + answer / 2)),
            prompts * answers,
            prompts,
            group_flops(self.config, lengths, [group] * prompts, []),
        )

    def token(self, past: float) -> Work:
        """One token of every completion in the slots, `past` tokens after their first."""
        text, cut = self.config.text, self.sampling
        prompts = self.shapes.slots / cut.shards
        rows = prompts * self._groups
        active = (self.sizes.layers + self.sizes.embedding + self.sizes.head) / cut.tensor
        products = 2 * rows * (active - (0 if self.sizes.head == 0 else self.sizes.embedding))
        heads = max(text.kv_heads / cut.tensor, 1)  # repeated where there are more parts
        kv = 2 * text.layers * heads * text.head_dim * self._item
        held = self.shapes.prompt + self._groups * (self.shapes.past + self.shapes.burst)
        pairs = rows * (self.shapes.prompt + past)
        products += 4 * text.layers * text.heads * text.head_dim * pairs / cut.tensor
        read = active * self._matrix + prompts * held * kv + rows * text.vocab_size * 4 * 6
        sums = 0.0 if cut.tensor == 1 else 2 * text.layers * rows * text.width * 4 * 2
        return Work(products, products, read, sums)

    def weights(self) -> Work:
        """The cast and the layout for decoding."""
        whole = self.sizes.total * self._matrix / self.sampling.tensor
        return Work(0, 0, 2 * whole, whole * (1 - 1 / self.cut.fsdp))

    def decoding(self) -> float:
        """Bytes of a device while it decodes."""
        text, cut, shapes = self.config.text, self.sampling, self.shapes
        kv = text.layers * max(text.kv_heads / cut.tensor, 1) * text.head_dim * self._item
        cache = 2 * kv * (shapes.prompt + self._groups * (shapes.past + shapes.burst))
        cache *= shapes.slots / cut.shards
        # Prefixes that are computed and wait for slots; see rollout/engine.py.
        cache += 2 * kv * shapes.prompt * MOST_HELD * shapes.prefill / cut.shards
        # A base that never trains is decoded with as it lies, where it is not cut.
        lies = bool(self.settings.model.lora.rank) and self.cut.fsdp == 1
        weights = 0 if lies else self.sizes.total * self._matrix / cut.tensor
        return self.kept() + weights + cache


class RowFormulas(Formulas):
    """Of a supervised update: packed rows."""

    settings: SftSettings

    @property
    def rows(self) -> int:
        """Of the largest image."""
        return vision_rows(self.settings.data, self.config)

    def works(self) -> dict[str, tuple[int, Work]]:
        """See Formulas."""
        data = self.settings.data
        gradients = self.passes(self.batch(), backward=True)
        return {
            "gradients": (data.rows // data.rows_at_once, gradients),
            "apply": (1, self.apply()),
        }

    def memory(self) -> dict[str, float]:
        """See Formulas."""
        return {"gradients": self.learning(self.batch())}

    def batch(self) -> Batch:
        """A micro-batch of rows, each full of samples of SAMPLE_TOKENS with an image each."""
        data = self.settings.data
        rows, length = data.rows_at_once, data.tokens_per_row
        samples = rows * bins_per_row(length)
        useful = row_flops(self.config, [length // bins_per_row(length)] * samples, [])
        tokens = rows * length
        return Batch(tokens, tokens * length, tokens * length / 2, tokens, samples, useful)


def formulas_of(settings: Any, config: QwenVLConfig, cut: Cut, platform: str = "tpu") -> Formulas:
    """Formulas of a run's task on devices of a platform."""
    form = choose(settings.model.attention, platform, exact=settings.model.exact).name
    if isinstance(settings, SftSettings):
        return RowFormulas(settings, config, cut, form)
    return GroupFormulas(settings, config, cut, form)
