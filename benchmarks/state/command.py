"""Run the experiments, print their tables, and draw them.

    python -m benchmarks state                       everything, about ten minutes on two cores
    python -m benchmarks state --only fall words --seeds 2
    python -m benchmarks state --json figures.json --plot python/docs/images
    python -m benchmarks state --from figures.json more.json --plot python/docs/images

A run is one way to keep the state, and one seed. Each runs on one thread, on as many processes as
there are cores. Those of another library, or that need one, are left out where it is absent.
"""

import argparse
import json
import logging
import multiprocessing
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import schuss
from benchmarks.harness import tracked
from benchmarks.peers import installed
from benchmarks.report import environment
from benchmarks.state.courses import Course
from benchmarks.state.tables import markdown, summary
from benchmarks.state.ways import OF_STATE, TRAINED, WAYS, Way

SEEDS = 5
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Part:
    """An experiment: a module of this package, with `run` and `LENGTH`."""

    title: str
    ways: Sequence[Way]
    packages: Sequence[str] = ()


PARTS = {
    "fall": Part("v after the gradients fell, over what it should become", OF_STATE),
    "updates": Part("Updates along a training of word vectors, next to float32's", OF_STATE),
    "digits": Part("The demo's network learns digits", TRAINED, ["sklearn"]),
    "mlp": Part("scikit-learn's MLPClassifier, 50,000 examples", TRAINED, ["sklearn"]),
    "words": Part("Word vectors, in NumPy", TRAINED),
    "text": Part("A small transformer on text, in PyTorch", TRAINED, ["torch"]),
}


def run(part: str, way: str, seed: int, length: int | None) -> Course:
    """Run one experiment once."""
    module = import_module(f"benchmarks.state.{part}")
    course: Course = module.run(WAYS[way], seed, length or module.LENGTH)
    return course


def begin() -> None:
    """Prepare a process: one thread, and no warnings of other libraries."""
    schuss.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable()


def run_all(
    names: Sequence[str], seeds: int, length: int | None, processes: int
) -> dict[str, dict[str, list[Course]]]:
    """Return the courses of each part and way, one for each seed."""
    for variable in THREAD_VARIABLES:  # read when a process imports its libraries
        os.environ[variable] = "1"
    jobs = [
        (name, way.name, seed)
        for name in names
        if installed(*PARTS[name].packages)
        for way in PARTS[name].ways
        if way.present()
        for seed in range(seeds)
    ]
    results: dict[str, dict[str, list[Course]]] = {}
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=spawn, initializer=begin) as pool:
        futures = [pool.submit(run, *job, length) for job in jobs]
        for (name, way, _), future in tracked("state", [*zip(jobs, futures, strict=True)]):
            results.setdefault(name, {}).setdefault(way, []).append(future.result())
    return results


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _parser() -> argparse.ArgumentParser:
    summary = "; ".join(f"{name}: {part.title}" for name, part in PARTS.items())
    parser = argparse.ArgumentParser("python -m benchmarks state", epilog=summary)
    add = parser.add_argument
    add("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help="some parts")
    add("--seeds", type=_positive, default=SEEDS, metavar="N", help="runs of each way")
    add("--length", type=_positive, metavar="N", help="steps of a run, or epochs")
    add("--processes", type=_positive, default=os.cpu_count(), metavar="N", help="default: cores")
    add("--json", type=Path, metavar="FILE", help="also write the figures to a file")
    add("--from", type=Path, nargs="+", metavar="FILE", dest="files", help="read them, run nothing")
    add("--plot", type=Path, metavar="FOLDER", help="draw them; needs matplotlib")
    return parser


def main(arguments: Sequence[str]) -> None:
    """Run what the command line asks for."""
    options = _parser().parse_args(arguments)
    figures: dict[str, Any] = {"environment": {}, "state": {}}
    for path in options.files or ():
        for key, value in json.loads(path.read_text()).items():
            figures[key] |= value
    if not options.files:
        figures["environment"] = environment()
        ran = run_all(options.only, options.seeds, options.length, options.processes)
        figures["state"] = {
            name: {way: [asdict(course) for course in courses] for way, courses in ways.items()}
            for name, ways in ran.items()
        }
    results = {
        name: {way: [Course(**course) for course in courses] for way, courses in ways.items()}
        for name, ways in figures["state"].items()
    }
    for name, value in figures["environment"].items():
        print(f"- {name}: {value}")
    for name, ways in results.items():
        print(f"\n### {name}: {PARTS[name].title}\n\n{markdown(ways)}")
    print(f"\n### Losses of float32, and the others' less these\n\n{summary(results)}")
    if options.json:
        options.json.write_text(json.dumps(figures) + "\n")
    if options.plot:
        from benchmarks.state.pictures import plot

        plot(results, options.plot)
