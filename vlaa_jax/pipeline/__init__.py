"""The six steps that built VLAA-Thinking, resumable, with every call recorded and priced.

    sample.py     the record that travels      steps/      caption, distil, rewrite, verify
    collect.py    step 1, over sources/        split.py    step 6, and the files training reads
    client.py     one call: ledger, budget, pacing, transport
    runner.py     asyncio on one machine       beam.py     the same steps on Apache Beam

Nothing here imports jax.
"""
