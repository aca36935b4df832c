"""One server for the tests of this folder."""

import pytest

from serving import Running


@pytest.fixture(scope="session")
def server():
    with Running() as running:
        yield running
