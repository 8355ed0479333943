"""The command line: ``schuss``, or ``python -m schuss``."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from schuss._core import __version__

__all__ = ["main"]

PICTURES = (".pdf", ".png", ".svg")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    Parameters
    ----------
    arguments : sequence of str, optional
        What follows the program's name; None means those of this process.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 0
    return _demo(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="schuss", description="Optimizer steps at the speed of memory, for NumPy arrays."
    )
    parser.add_argument("--version", action="version", version=f"schuss {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="train a network on handwritten digits with each optimizer",
        description="Train a network on scikit-learn's digits with SGD, Momentum, RMSprop and "
        "Adam, and with their NumPy twins; print a table and draw the cost curves.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    demo.add_argument(
        "--out", type=_picture, default="schuss-demo.png", metavar="PATH", help="the picture"
    )
    demo.add_argument("--epochs", type=_integer(1), default=30, metavar="N", help="epochs to train")
    demo.add_argument(
        "--seed",
        type=_integer(0, 2**32 - 1),
        default=0,
        metavar="N",
        help="of the split, the first weights and the batches",
    )
    return parser


def _demo(options: argparse.Namespace) -> int:
    try:
        from schuss import demo
    except ModuleNotFoundError as error:
        print(
            f"schuss demo needs {error.name}, which is missing; from the checkout of schuss: "
            f'pip install ".[demo]"',
            file=sys.stderr,
        )
        return 2
    return demo.run(out=options.out, epochs=options.epochs, seed=options.seed)


def _picture(text: str) -> Path:
    """Return the path of a picture that can be written, so that no training is in vain."""
    path = Path(text)
    if path.suffix.lower() not in PICTURES:
        raise argparse.ArgumentTypeError(f"{text!r} does not end in {', '.join(PICTURES)}")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{str(path.parent)!r} is no directory to write to")
    return path


def _integer(low: int, high: int = sys.maxsize) -> Callable[[str], int]:
    def integer(text: str) -> int:
        if text.isascii() and text.isdigit() and low <= int(text) <= high:
            return int(text)
        raise argparse.ArgumentTypeError(f"{text!r} is no integer from {low} to {high}")

    return integer
