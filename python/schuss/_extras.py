"""Packages that only some functions need."""


def missing(call: str, package: str) -> ImportError:
    """Return the error that names a package to install."""
    return ImportError(
        f"{call}: {package} is not installed, expected it to be (pip install 'schuss[demo]')"
    )
