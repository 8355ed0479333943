"""Which packages are installed and work."""

import sys
import warnings
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec


@cache
def installed(*packages: str) -> bool:
    return all(map(find_spec, packages))


def works(name: str, attempt: Callable[[], object], *packages: str) -> bool:
    """Whether the packages are installed and the attempt succeeds; if it fails, print why."""
    if not installed(*packages):
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the package about itself
            attempt()
    except Exception as error:  # of many kinds: a missing compiler, header or package
        print(f"{name} stays out: {error}", file=sys.stderr)
        return False
    return True
