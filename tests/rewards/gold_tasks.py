"""Stands in for the parser in the workers: golds that hang, die or fail, each once or always."""

import os
import time
from pathlib import Path

BROKEN = Path(os.environ["GOLD_TASKS_LOG"] + ".broken")
if BROKEN.exists():
    raise ImportError("broken")


def check(item):
    """Do what the gold's first letter says; every call leaves a line in $GOLD_TASKS_LOG."""
    gold = item["gold"].strip("$")
    log = Path(os.environ["GOLD_TASKS_LOG"])
    seen = log.read_text().split("\n") if log.exists() else []
    with log.open("a") as file:
        file.write(gold + "\n")
    is_first = gold not in seen
    if gold[0] == "h" or (gold[0] == "s" and is_first):
        time.sleep(600)
    if gold[0] == "x" or (gold[0] == "w" and is_first):
        os._exit(3)
    if gold[0] == "m":
        raise MemoryError
    if gold[0] == "n":
        BROKEN.touch()
        os._exit(3)
    return {"equal": True}
