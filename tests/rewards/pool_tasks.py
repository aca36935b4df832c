"""Tasks for the pool's tests; imported by worker processes, so plain functions of JSON values."""

import os
import signal
import subprocess
import time


def misbehave(item):
    """Do what the item says: a name, or [name, argument]."""
    name, argument = item if isinstance(item, list) else (item, None)
    if name == "echo":
        return argument
    if name == "pid":
        return os.getpid()
    if name == "sleep":
        time.sleep(argument)
        return argument
    if name == "child":
        return subprocess.Popen(["sleep", "60"]).pid
    if name == "spin":
        while True:
            pass
    if name == "raise":
        raise ValueError(argument)
    if name == "exit":
        os._exit(3)
    if name == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if name == "deaf":
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
            signal.signal(number, signal.SIG_IGN)
        while True:
            pass
    if name == "hoard":
        return len(bytearray(argument))
    if name == "recurse":
        return misbehave(["recurse", argument])
    if name == "large":
        return "x" * argument
    if name == "unjsonable":
        return {1, 2}
    raise AssertionError(item)
