"""The loaders over usable records."""

from dataclasses import replace

from vlaa_jax.data.loaders.loader import Loader, Order, ordered, prompt_loader
from vlaa_jax.parallel import hosts
from vlaa_jax.policy.checked import Usable
from vlaa_jax.policy.prompts import Encoder, Prompt
from vlaa_jax.policy.spread import Deal, SpreadLoader, complete
from vlaa_jax.settings import by_source


def training_loader(
    records: Usable, encoder: Encoder, *, batch: int, seed: int, deal: Deal | None = None
) -> Loader[list[Prompt]]:
    """Endless shuffled batches of prompts with exact state.

    Args:
        records: as ``checked.load_checked`` gives them.
        encoder: its settings hold the mix of sources and the number of threads.
        batch: prompts of a step over all hosts.
        seed: of the order.
        deal: which of them each host loads; needed where there are several.

    Raises:
        UserError: a weighted source has no records.
    """
    spread = deal if hosts.count() > 1 else None
    order = Order(seed=seed, source_weights=by_source.source_weights(encoder.data.source_weights))
    places = tuple(spread.held(batch)) if spread else ()
    loader = prompt_loader(
        records,
        records.images,
        batch_size=len(places) or batch,
        order=replace(order, places=places, batch=batch) if spread else order,
        threads=encoder.data.workers,
        process=encoder,
    )
    return SpreadLoader(loader, ordered(records, order), spread, batch) if spread else loader


def heldout_prompts(records: Usable, encoder: Encoder, deal: Deal | None = None) -> list[Prompt]:
    """All prompts of a held-out set, in file order; see ``spread`` for several hosts."""
    spread = deal if hosts.count() > 1 else None
    held = spread.held(len(records)) if spread else list(range(len(records)))
    mine: list[Prompt] = []
    if held:
        with prompt_loader(
            [records[place] for place in held],
            records.images,
            batch_size=32,
            order=Order(shuffle=False, epochs=1),
            threads=encoder.data.workers,
            process=encoder,
        ) as loader:
            mine = [prompt for batch in loader for prompt in batch]
    if spread is None:
        return mine
    return complete(records, dict(zip(held, mine, strict=True)), spread.owner_P(len(records)))
