"""Which packages are installed."""

from functools import cache
from importlib.util import find_spec


@cache
def installed(*packages: str) -> bool:
    return all(map(find_spec, packages))
