"""What a run takes on a machine that is not at hand: memory, collectives, time and cost."""
