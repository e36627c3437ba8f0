"""What tests of the operator's parts share."""

import pytest

from tests.unit.operator.build import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()
