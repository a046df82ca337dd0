"""Parse the command line, run the command, and turn this package's errors into one clear line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from recsys_budget import __version__
from recsys_budget.data import BUNDLED, BUNDLED_SEED, DATASETS, load_dataset, make_interactions
from recsys_budget.data.synthetic import LARGE
from recsys_budget.errors import RecsysBudgetError

_EDITIONS = {"bundled": BUNDLED, "large": LARGE}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: Words after the program's name; None takes them from the process.

    Returns:
        0 when done; 1 when this package refused, with the reason on standard error. Wrong usage exits with 2.
    """
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except RecsysBudgetError as error:
        print(f"recsys-budget: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="recsys-budget", description="Recommenders under a privacy budget and hard rules."
    )
    parser.add_argument("--version", action="version", version=f"recsys-budget {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="train under a cap, re-rank under hard rules, write a report")
    demo.add_argument("--data", choices=DATASETS, default="bundled", help="dataset (default: %(default)s)")
    demo.add_argument("--data-home", type=Path, help="folder with published datasets")
    demo.add_argument("--epsilon", type=float, default=4.0, help="privacy cap (default: %(default)s)")
    demo.add_argument(
        "--out", type=Path, default=Path("out/demo"), help="where to write (default: %(default)s)"
    )
    demo.add_argument("--quiet", action="store_true", help="no progress bars")
    demo.set_defaults(run=_demo)

    data = commands.add_parser("data", help="list, fetch or generate data").add_subparsers(
        required=True, metavar="ACTION"
    )
    listing = data.add_parser("list", help="the datasets known by name")
    listing.set_defaults(run=_list)
    fetch = data.add_parser("fetch", help="fetch a published dataset from its publisher, with a hash check")
    fetch.add_argument("name", choices=[name for name, dataset in DATASETS.items() if dataset.url])
    fetch.add_argument("--data-home", type=Path, help="where to keep it (default: the user's cache folder)")
    fetch.add_argument("--sha256", help="hash that the archive must have, where none is known")
    fetch.set_defaults(run=_fetch)
    generate = data.add_parser("generate", help="write invented data with known ground truth")
    generate.add_argument("--edition", choices=_EDITIONS, default="bundled", help="default: %(default)s")
    generate.add_argument("--seed", type=int, default=BUNDLED_SEED, help="default: %(default)s")
    generate.add_argument("--out", type=Path, required=True, help="folder to write to")
    generate.set_defaults(run=_generate)
    return parser


def _demo(options: argparse.Namespace) -> None:
    from recsys_budget.cli.demo import run_demo

    result = run_demo(
        options.data,
        data_home=options.data_home,
        epsilon=options.epsilon,
        out=options.out,
        progress=not options.quiet,
    )
    print(result.summary())
    print(f"\nReport: {options.out / 'report.html'}")


def _list(options: argparse.Namespace) -> None:
    for name, dataset in DATASETS.items():
        print(f"{name:<16} {dataset.licence}")


def _fetch(options: argparse.Namespace) -> None:
    print(load_dataset(options.name, data_home=options.data_home, download=True, sha256=options.sha256))


def _generate(options: argparse.Namespace) -> None:
    data = make_interactions(_EDITIONS[options.edition], options.seed)
    data.to_csv(options.out)
    print(f"{data.interactions} written to {options.out}")
