"""Run benchmarks and print their tables."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.harness import Rounds, Settings
from benchmarks.history import record_run
from benchmarks.report import FOOTNOTE, by_labels, environment, markdown_table, rich_table
from benchmarks.suite import BENCHMARKS

FILE_WIDTH = 160
STATE = "state"


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _sizes(text: str) -> list[int]:
    return [_positive(size) for size in text.split(",")]


def _parser() -> argparse.ArgumentParser:
    summary = "; ".join(f"{name}: {run.__doc__}" for name, run in BENCHMARKS.items())
    summary += f"; {STATE}, alone: trainings by the number format of state, with options of its own"
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__, epilog=summary)
    add = parser.add_argument
    names = [*BENCHMARKS, "all"]
    add("names", nargs="*", choices=names, default="all", metavar="name", help=", ".join(names))
    add("--json", type=Path, metavar="FILE", help="also write the figures to a file")
    add("--record", type=Path, metavar="FILE.jsonl", help="append to a history; see history.py")
    add("--markdown", action="store_true", help="print Markdown tables")
    add("--plot", type=Path, metavar="FILE.png", help="draw step and loop; needs matplotlib")
    add("--rounds", type=_positive, metavar="N", help="default: what fits in some seconds")
    add(
        "--sizes",
        type=_sizes,
        metavar="N,...",
        help="elements an array; for layout, rows and columns; for rows, rows of the table; "
        "for batches, examples; for train, epochs; for sklearn, the width of two layers",
    )
    add(
        "--only",
        default="",
        metavar="TEXT",
        help="only cases whose labels, with commas between them, contain this, such as 8bit; "
        "for step, rules, layout, rows, whole and dtypes",
    )
    add("--quick", action="store_true", help="--sizes 64 --rounds 3, unless given")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmarks that the command line names."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == [STATE]:  # not times: it has options of its own
        from benchmarks.state.command import main as state

        state(arguments[1:])
        return
    parser = _parser()
    options = parser.parse_args(arguments)
    names = list(BENCHMARKS) if "all" in options.names else options.names
    if options.plot and not {"step", "loop"} & set(names):
        parser.error("--plot draws step and loop: name one of them")
    count = options.rounds or (3 if options.quick else None)
    settings = Settings(
        sizes=options.sizes or ([64] if options.quick else []),
        rounds=Rounds(least=count, most=count) if count else Rounds(),
        only=options.only,
    )
    machine = environment()
    console = Console()
    if not console.is_terminal:
        console.width = FILE_WIDTH
    for name, value in machine.items():
        print(f"{'- ' * options.markdown}{name}: {value}")
    results = {}
    for name in names:
        results[name] = BENCHMARKS[name](settings)
        if not results[name]:
            print(f"\n{name}: no contender is installed, or no case has {options.only!r}")
            continue
        title = f"{name}: {BENCHMARKS[name].__doc__}"
        for records in by_labels(results[name]):
            if options.markdown:
                print(f"\n{markdown_table(title, records)}")
            else:
                console.print("", rich_table(title, records))
    print(f"\n{FOOTNOTE}")
    if options.json:
        figures = {"environment": machine, "benchmarks": results}
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    if options.record:
        record_run(options.record, machine, results)
    if options.plot:
        from benchmarks.plot import plot

        plot(results, options.plot)


if __name__ == "__main__":
    main()
