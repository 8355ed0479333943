"""What `dir` and completion by TAB show."""

import sys
from collections.abc import Callable


def public_names(module: str) -> Callable[[], list[str]]:
    """Return a `__dir__` for a module: the names in its ``__all__``."""

    def names() -> list[str]:
        return sorted(sys.modules[module].__all__)

    return names
