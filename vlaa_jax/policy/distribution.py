"""The policy's distribution: log-probabilities of completions and of packed rows."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vlaa_jax.algos.logprobs import Chunking, token_logprobs
from vlaa_jax.models.qwen_vl.lora import has_adapters
from vlaa_jax.models.qwen_vl.model import PromptInputs, QwenVL, RowInputs, completion_inputs

Array = jax.Array


@dataclass(frozen=True)
class Distribution:
    """The distribution over next tokens that sampler and trainer share. Static under jit.

    Attributes:
        graphdef: structure of the model.
        temperature: divides the logits.
        chunk: tokens whose logits exist at the same time.
        row_shards: data shards of the mesh.
    """

    graphdef: nnx.GraphDef
    temperature: float
    chunk: int
    row_shards: int
    base_graphdef: nnx.GraphDef | None = None
    """Structure for parameters without LoRA branches, where `graphdef` has some."""

    def completion_logprobs(
        self,
        params: Mapping[str, Any],
        prompt: PromptInputs,
        tokens_PGT: Array,
        allowed_V: Array,
        *,
        entropy_gradient: bool = False,
    ) -> tuple[Array, Array]:
        """Log-probability of each completion token and the entropy there, float32 [P, G, T]."""
        model = self._model(params)
        hidden = model.hidden_groups(prompt, completion_inputs(prompt, tokens_PGT))
        return self._logprobs(model, hidden, tokens_PGT, allowed_V, entropy_gradient)

    def row_logprobs(
        self, params: Mapping[str, Any], rows: RowInputs, allowed_V: Array | None = None
    ) -> tuple[Array, Array]:
        """Log-probability of every token of packed rows given those before it, and the entropy.

        Args:
            params: parameters, with or without adapters.
            rows: packed or padded rows.
            allowed_V: False for ids that the distribution leaves out; None leaves all in.

        Returns:
            Both float32 [B, T]; entry t is of the token at t + 1 of the row, whatever segment that
            belongs to. The last entry of a row means nothing.
        """
        model = self._model(params)
        hidden = model.hidden_rows(rows)
        targets_BT = jnp.concatenate([rows.ids_BT[:, 1:], rows.ids_BT[:, :1]], axis=1)
        return self._logprobs(model, hidden, targets_BT, allowed_V, False)

    def _model(self, params: Mapping[str, Any]) -> QwenVL:
        graphdef = self.graphdef
        if self.base_graphdef is not None and not has_adapters(params):
            graphdef = self.base_graphdef
        return nnx.merge(graphdef, params)

    def _logprobs(
        self,
        model: QwenVL,
        hidden: Array,
        tokens: Array,
        allowed_V: Array | None,
        entropy_gradient: bool,
    ) -> tuple[Array, Array]:
        logprobs_N, entropy_N = token_logprobs(
            hidden.reshape(-1, hidden.shape[-1]),
            model.head_kernel_DV,
            tokens.reshape(-1),
            temperature=self.temperature,
            allowed_V=allowed_V,
            entropy_gradient=entropy_gradient,
            chunking=Chunking(self.chunk or None, self.row_shards, model.compute.layout),
        )
        return logprobs_N.reshape(tokens.shape), entropy_N.reshape(tokens.shape)
