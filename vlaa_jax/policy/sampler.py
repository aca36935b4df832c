"""Draws completions from the policy: the engine on the mesh, its random keys, prompts in parts."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vlaa_jax.models.qwen_vl.model import PromptInputs
from vlaa_jax.policy.pretrained import Pretrained
from vlaa_jax.policy.prompts import Collator, Prompt
from vlaa_jax.rollout.engine import Decoding, Engine, OnFinished, Rollout
from vlaa_jax.rollout.sampling import Sampling
from vlaa_jax.rollout.weights import sampling_mesh
from vlaa_jax.settings.shared import RolloutSettings

Place = Callable[[Sequence[Prompt]], PromptInputs]


class Sampler:
    """Samples completions of prompts.

    Args:
        pretrained: whose structure and tokenizer are used; weights are given with each call.
        collator: puts prompts on the mesh.
        settings: temperature, lengths, and how many prompts at once.
        mesh: the device mesh.
        seed: of the keys.
        completions: per prompt; None takes that of the settings.
        like: a sampler of the same policy, whose compiled prefill is shared.
    """

    def __init__(
        self,
        pretrained: Pretrained,
        collator: Collator,
        settings: RolloutSettings,
        mesh: Mesh,
        *,
        seed: int,
        completions: int | None = None,
        like: "Sampler | None" = None,
    ) -> None:
        self.collator = collator
        self.at_once = settings.at_once
        self._key = jax.random.key(seed)
        self.engine: Engine = Engine(
            pretrained.graphdef,
            Decoding(
                completions or settings.completions,
                settings.max_new_tokens,
                slots=settings.batch_prompts or settings.prompts,
                burst=settings.burst,
            ),
            sampling=Sampling(settings.temperature, settings.top_k, settings.top_p, settings.min_p),
            eos_id=pretrained.chat.stop_ids,
            allowed_V=pretrained.allowed_V,
            mesh=sampling_mesh(mesh, settings.tensor) if settings.tensor else mesh,
            like=like.engine if like else None,
        )

    def weights(self, params: Mapping[str, Any]) -> Mapping[str, Any]:
        """The parameters cast and laid out for sampling; the same ones where nothing changes."""
        laid_out: Mapping[str, Any] = self.engine.weights(params)
        if laid_out is not params:
            jax.block_until_ready(laid_out)
        return laid_out

    def keys(self, stream: int, first: int, count: int) -> jax.Array:
        """One random key per prompt; a function of seed, stream (the step) and place alone."""
        places = np.arange(first, first + count)
        fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
        return fold(jax.random.fold_in(self._key, stream), places)

    def __call__(
        self,
        params: Mapping[str, Any],
        prompts: Sequence[Prompt],
        keys_P: jax.Array,
        *,
        place: Place | None = None,
        on_finished: OnFinished | None = None,
    ) -> Rollout:
        """Completions of the prompts, in their order.

        Args:
            params: the policy's parameters, or `weights` of them.
            prompts: any number of them; the last part is filled up with repeats.
            keys_P: one key per prompt.
            place: puts a part on the mesh, where the caller wants the same arrays again.
            on_finished: see ``Engine.generate``.
        """
        return self.engine.generate(
            params,
            self._parts(prompts, place),
            keys_P,
            prefix_length=self.collator.prompt_bucket(prompts),
            on_finished=on_finished,
        )

    def _parts(self, prompts: Sequence[Prompt], place: Place | None) -> Iterator[PromptInputs]:
        for start in range(0, len(prompts), self.at_once):
            part = list(prompts[start : start + self.at_once])
            part = (part * self.at_once)[: self.at_once]
            yield place(part) if place else self.collator(part)[0]
