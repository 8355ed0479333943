"""Errors that several modules raise."""


def wrong_type(call: str, name: str, value: object, expected: str) -> TypeError:
    """Return the error of an argument of a wrong type."""
    return TypeError(f"{call}: {name} is a {type(value).__name__}, expected {expected}")


def missing_package(call: str, package: str) -> ImportError:
    """Return the error of an optional package that is not installed."""
    return ImportError(
        f"{call}: {package} is not installed, expected it to be (pip install 'schuss[demo]')"
    )
