"""Disks of a few kilobytes, for tests of what happens when one is full."""

import subprocess
from contextlib import contextmanager

import pytest


def _mount(place, options):
    words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    subprocess.run(words, check=True, capture_output=True)


@contextmanager
def mounted(place, kib):
    """A tmpfs of so many KiB at `place`; skips the test where this user may not mount one."""
    place.mkdir()
    try:
        _mount(place, f"size={kib}k")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this user may not mount a small disk")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def resize(place, kib):
    """Makes the disk larger, or smaller where less is used."""
    _mount(place, f"remount,size={kib}k")
