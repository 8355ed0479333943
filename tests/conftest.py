"""What tests of several promises run within."""

from collections.abc import Iterator

import pytest

from schuss import _core


@pytest.fixture
def share_all() -> Iterator[None]:
    """Share steps of any size, a few elements at a time."""
    tile, least = _core.set_tile_elements(64), _core.set_worth_sharing(0)
    yield
    _core.set_tile_elements(tile)
    _core.set_worth_sharing(least)
