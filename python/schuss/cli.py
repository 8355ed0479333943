"""The command line: ``schuss``, or ``python -m schuss``."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryFile

from schuss._core import __version__
from schuss._interrupts import Deferred

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    Parameters
    ----------
    arguments : sequence of str, optional
        The arguments after the program's name; by default those of this process.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 0
    return _run(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="schuss", description="Optimizer steps at the speed of memory, for NumPy arrays."
    )
    parser.add_argument("--version", action="version", version=f"schuss {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="train a network on handwritten digits, and draw what the library does",
        description="Train a network on scikit-learn's digits with SGD, Momentum, RMSprop and "
        "Adam, and with the NumPy reference; print a table, and draw batch sizes, optimizers, "
        "averages, learning-rate decay and landscapes.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    demo.add_argument("--epochs", type=_integer(1), default=30, metavar="N", help="epochs to train")
    embeddings = commands.add_parser(
        "embeddings",
        help="learn word vectors by steps of rows, and draw them",
        description="Learn word vectors from the source of installed packages, by skip-gram with "
        "negative sampling: with dense steps of Adam, exact steps of rows and lazy ones. Print "
        "tables, and draw the losses and the cosines between words. Takes about a minute.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    embeddings.add_argument(
        "--steps", type=_integer(1), default=3000, metavar="N", help="steps of each training"
    )
    for command in (demo, embeddings):
        command.add_argument(
            "--out",
            type=Path,
            default="schuss-demo",
            metavar="FOLDER",
            help="where the pictures go",
        )
        command.add_argument(
            "--seed",
            type=_integer(0, 2**32 - 1),
            default=0,
            metavar="N",
            help="random seed for the data, the initial weights and the batches",
        )
    return parser


def _run(options: argparse.Namespace) -> int:
    name = f"schuss {options.command}"
    try:
        from schuss import demo
    except ModuleNotFoundError as error:
        return _failed(
            f"{name} needs {error.name}, which is missing; from the checkout of schuss: "
            'pip install ".[demo]"'
        )
    refusal = _refusal_to_write(options.out)  # before the training, which takes long
    if refusal is not None:
        return _failed(
            f"{name}: --out is {str(options.out)!r}, expected a folder to write to: "
            f"{refusal.strerror}"
        )
    if options.command == "embeddings":
        return demo.embeddings.run(out=options.out, steps=options.steps, seed=options.seed)
    return demo.run(out=options.out, epochs=options.epochs, seed=options.seed)


def _failed(message: str) -> int:
    print(message, file=sys.stderr)
    return 2


def _refusal_to_write(folder: Path) -> OSError | None:
    """Return the error of creating a folder and writing to it, or None."""
    with Deferred():  # an OSError that a signal handler raises is not the folder's
        try:
            folder.mkdir(parents=True, exist_ok=True)
            TemporaryFile(dir=folder).close()
        except OSError as error:
            return error
    return None


def _integer(low: int, high: int = sys.maxsize) -> Callable[[str], int]:
    def integer(text: str) -> int:
        if text.isascii() and text.isdigit() and low <= int(text) <= high:
            return int(text)
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer from {low} to {high}")

    return integer
