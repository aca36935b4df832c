"""A plain step with transformers and torch, on the same weights."""

from typing import Any

import numpy as np
import torch
import transformers

from step_room.mini import GRID, IMAGE, MINI, NEW
from step_room.ours import KL, LR
from vlaa_jax.data.samples.preprocessor import Encoded
from vlaa_jax.models.qwen_vl.config import QwenVLConfig
from vlaa_jax.models.qwen_vl.hf_keys import key_table
from vlaa_jax.models.qwen_vl.model import init_params


class Torch:
    """A plain step with transformers: generate, log-probabilities, loss, backward, AdamW."""

    def __init__(self, config: QwenVLConfig, samples: list[Encoded], g: int) -> None:
        self.model = transformers.Qwen2_5_VLForConditionalGeneration(
            transformers.Qwen2_5_VLConfig(**MINI)
        )
        self.model.load_state_dict(hf_state(config, init_params(config, 0)), strict=False)
        self.model.tie_weights()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LR, weight_decay=0.0)
        repeated = [s for s in samples for _ in range(g)]
        self.ids = torch.tensor(np.stack([s.ids_T for s in repeated])).long()
        self.images = {
            "pixel_values": torch.tensor(np.concatenate([s.patches[0] for s in repeated])),
            "image_grid_thw": torch.tensor([GRID for _ in repeated]),
        }

    def _inputs(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "mm_token_type_ids": (ids == IMAGE).long(),
            **self.images,
        }

    def rollout(self) -> np.ndarray:
        """Samples; gives tokens [P * G, T]."""
        settings = transformers.GenerationConfig(
            do_sample=True,
            top_k=0,
            top_p=1.0,
            temperature=1.0,
            max_new_tokens=NEW,
            pad_token_id=0,
            suppress_tokens=[IMAGE],  # it would then be scored as an image without features
        )
        with torch.no_grad():
            out = self.model.generate(**self._inputs(self.ids), generation_config=settings)
        return out[:, self.ids.shape[1] :].numpy().astype(np.int32)

    def logprobs(self, tokens: torch.Tensor) -> torch.Tensor:
        """Log-probabilities [P * G, T] of the completions; logits of completions only."""
        ids = torch.cat([self.ids, tokens], dim=1)
        logits = self.model(**self._inputs(ids), logits_to_keep=NEW + 1).logits[:, :-1]
        return torch.log_softmax(logits, -1).gather(-1, tokens[..., None])[..., 0]

    def score(self, tokens_NT: np.ndarray) -> np.ndarray:
        """Log-probabilities under the present parameters, [P * G, T]."""
        with torch.no_grad():
            return self.logprobs(torch.tensor(tokens_NT).long()).numpy()

    def update(self, tokens_NT: np.ndarray, advantages_N: np.ndarray, ref_NT: np.ndarray) -> float:
        """Forward, loss, backward, AdamW."""
        logprobs = self.logprobs(torch.tensor(tokens_NT).long())
        ratio = torch.exp(logprobs - logprobs.detach())
        gap = torch.tensor(ref_NT) - logprobs
        advantages = torch.tensor(advantages_N)[:, None]
        clipped = torch.clamp(ratio, 0.8, 1.2) * advantages
        per_token = -torch.minimum(ratio * advantages, clipped) + KL * (torch.exp(gap) - gap - 1)
        loss = per_token.mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())


def hf_state(config: QwenVLConfig, params: Any) -> dict[str, torch.Tensor]:
    """Our parameters under the names of transformers' module tree."""
    state = {}
    for key in key_table(config):
        leaf = params
        for part in key.path:
            leaf = leaf[part]
        layers = [leaf] if key.layers is None else list(leaf)
        for name, layer in zip(key.hf_names(), layers, strict=True):
            ours = key.transform.to_theirs(np.asarray(layer), key.hf_shape)
            new = name.replace("visual.", "model.visual.", 1)
            if name.startswith("model."):
                new = name.replace("model.", "model.language_model.", 1)
            state[new] = torch.tensor(np.ascontiguousarray(ours))
    return state
