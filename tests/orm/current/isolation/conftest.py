""""""

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture
def hurried_switching() -> Iterator[None]:
    """Threads change places as often as the interpreter lets them."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)
