"""A task whose nursery cannot fork at every other attempt, as on a machine short of processes."""

import errno
import itertools
import os


def warm_up():
    """Runs in the nursery alone: the second, fourth, ... fork fails."""
    fork, attempts = os.fork, itertools.count(1)

    def scarce():
        if next(attempts) % 2 == 0:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return fork()

    os.fork = scarce


def work(item):
    """Give the item back, or end the worker."""
    if item == "exit":
        os._exit(3)
    return item
