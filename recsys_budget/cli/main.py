"""Parse the command line, run the command, and turn this package's errors into one clear line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from recsys_budget import __version__
from recsys_budget.cli import doctor
from recsys_budget.errors import InfeasibleError, RecsysBudgetError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: Words after the program's name; None takes them from the process.

    Returns:
        0 when done; 1 when this package refused and 3 when no slates satisfy the rules, with the reason on
        standard error. Wrong usage exits with 2.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words[:1] == ["doctor"]:
        # Before anything that needs a package: what is missing is what the doctor is there to say.
        return doctor.main(words[1:])
    options = _parser().parse_args(words)
    try:
        options.run(options)
    except InfeasibleError as error:
        print(f"recsys-budget: {error}", file=sys.stderr)
        return 3
    except RecsysBudgetError as error:
        print(f"recsys-budget: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    from recsys_budget.data import BUNDLED_SEED, DATASETS

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

    rerank = commands.add_parser(
        "rerank", help="choose slates from a file of candidates, under the rules of a policy"
    )
    rerank.add_argument("candidates", type=Path, help="csv, tsv or parquet: user, item, relevance")
    rerank.add_argument("--policy", type=Path, required=True, help="the rules, in YAML or JSON")
    rerank.add_argument("--catalogue", type=Path, required=True, help="csv, tsv or parquet: item and facts")
    rerank.add_argument("-o", "--output", type=Path, required=True, help="slates: csv or parquet")
    rerank.add_argument("--certificate", type=Path, help="where to write the certificate, in JSON")
    rerank.add_argument("--history", type=Path, help="csv, tsv or parquet: what users had used")
    rerank.add_argument(
        "--attribute",
        action="append",
        default=[],
        metavar="COLUMN",
        help="a column of numbers in the catalogue, for rules about it; may be repeated",
    )
    rerank.add_argument(
        "--objective",
        action="append",
        default=[],
        metavar="NAME=WEIGHT",
        help="engagement, diversity, coverage, history-match or novelty; may be repeated to add up "
        "(default: engagement)",
    )
    rerank.add_argument("--solver", help="a solver by its name in cvxpy (default: the fastest route)")
    rerank.add_argument("--gap", type=float, default=1e-3, help="relative gap (default: %(default)s)")
    rerank.add_argument("--time-limit", type=float, metavar="SECONDS", help="stop searching after this")
    rerank.add_argument("--quiet", action="store_true", help="no progress bar and no summary")
    rerank.set_defaults(run=_rerank, usage=rerank.error)

    commands.add_parser("doctor", help="say what this computer lacks, and what to do")  # see main
    board = commands.add_parser("dashboard", help="the explorer as a page, for this computer alone")
    board.add_argument("candidates", type=Path, nargs="?", help="as for rerank (default: bundled frontiers)")
    board.add_argument("--catalogue", type=Path, help="csv, tsv or parquet: item and facts")
    board.add_argument("--policy", type=Path, help="the rules, in YAML or JSON")
    board.add_argument("--slates", type=Path, help="slates in use today, to compare with: user, item, rank")
    board.add_argument("--frontiers", type=Path, help="a file of write_frontiers, in place of the others")
    board.add_argument("--host", default="127.0.0.1", help="others than this let others in, without password")
    board.add_argument("--port", type=int, default=8866, help="default: %(default)s")
    board.add_argument("--no-browser", action="store_true", help="open none")
    board.set_defaults(run=_dashboard)

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
    generate.add_argument(
        "--edition", choices=("bundled", "large"), default="bundled", help="default: %(default)s"
    )
    generate.add_argument("--seed", type=int, default=BUNDLED_SEED, help="default: %(default)s")
    generate.add_argument("--out", type=Path, required=True, help="folder to write to")
    generate.set_defaults(run=_generate)
    frontiers = data.add_parser("frontiers", help="write the frontiers that come with the package")
    frontiers.add_argument("--out", type=Path, required=True, help="file to write to")
    frontiers.add_argument("--quiet", action="store_true", help="no progress bars")
    frontiers.set_defaults(run=_frontiers)
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


def _rerank(options: argparse.Namespace) -> None:
    from recsys_budget.cli.rerank import rerank_file, weighted

    try:
        objective = [weighted(text) for text in options.objective]
    except argparse.ArgumentTypeError as error:
        options.usage(f"argument --objective: {error}")
    slates = rerank_file(
        options.candidates,
        policy=options.policy,
        catalogue=options.catalogue,
        output=options.output,
        certificate=options.certificate,
        history=options.history,
        attributes=options.attribute,
        objective=objective,
        solver=options.solver,
        gap=options.gap,
        time_limit=options.time_limit,
        progress=not options.quiet,
    )
    if not options.quiet:
        print(slates.certificate)


def _dashboard(options: argparse.Namespace) -> None:
    from recsys_budget.cli.dashboard import serve

    serve(
        candidates=options.candidates,
        catalogue=options.catalogue,
        policy=options.policy,
        slates=options.slates,
        frontiers=options.frontiers,
        host=options.host,
        port=options.port,
        browser=not options.no_browser,
    )


def _list(options: argparse.Namespace) -> None:
    from recsys_budget.data import DATASETS

    for name, dataset in DATASETS.items():
        print(f"{name:<16} {dataset.licence}")


def _fetch(options: argparse.Namespace) -> None:
    from recsys_budget.data import load_dataset

    print(load_dataset(options.name, data_home=options.data_home, download=True, sha256=options.sha256))


def _generate(options: argparse.Namespace) -> None:
    from recsys_budget.data import BUNDLED, make_interactions
    from recsys_budget.data.synthetic import LARGE

    edition = {"bundled": BUNDLED, "large": LARGE}[options.edition]
    data = make_interactions(edition, options.seed)
    data.to_csv(options.out)
    print(f"{data.interactions} written to {options.out}")


def _frontiers(options: argparse.Namespace) -> None:
    from recsys_budget.cli.shipped import ship

    ship(options.out, progress=not options.quiet)
    print(f"Frontiers of the bundled data written to {options.out}")
