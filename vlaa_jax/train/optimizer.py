"""AdamW, its learning-rate schedule, and which parameters it moves."""

import optax

from vlaa_jax.settings.shared import OptimizerSettings


def learning_rate(settings: OptimizerSettings, updates: int) -> optax.Schedule:
    """Linear warm-up from 0, then cosine decay to `min_lr` over the rest of the run.

    Args:
        settings: peak, floor and warm-up share.
        updates: optimizer updates of the whole run.
    """
    warmup = round(settings.warmup_frac * updates)
    return optax.schedules.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup else settings.lr,
        peak_value=settings.lr,
        warmup_steps=warmup,
        decay_steps=max(updates, warmup + 1),
        end_value=settings.min_lr,
    )


def make_optimizer(
    settings: OptimizerSettings, updates: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Gradient clipping by global norm, AdamW, and the schedule it follows."""
    schedule = learning_rate(settings, updates)
    steps = [
        optax.adamw(
            schedule,
            b1=settings.b1,
            b2=settings.b2,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
        )
    ]
    if settings.grad_clip:
        steps.insert(0, optax.clip_by_global_norm(settings.grad_clip))
    return optax.chain(*steps), schedule
