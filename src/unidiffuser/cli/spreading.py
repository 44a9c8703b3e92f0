"""The flags --ray and --workers, for verbs whose work can be spread over many machines, and what they mean."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from unidiffuser.cli import flags
from unidiffuser.cli.extras import need
from unidiffuser.cli.flags import Parser


def add_spreading(parser: Parser) -> None:
    """The flags."""
    parser.flag("--ray", action="store_true", help="on the Ray cluster of RAY_ADDRESS, or on a local one")
    parser.flag("--workers", type=flags.whole, metavar="N", help="with --ray: processes (default: one a CPU or GPU)")


def check_spreading(args: argparse.Namespace) -> None:
    """ValueError, before anything else is done, if the extra is missing or the flags make no sense."""
    if args.workers is not None and not args.ray:
        raise ValueError("--workers goes with --ray; without it there is this process alone")
    if args.ray:
        need("ray", "pandas", "pyarrow")


@contextmanager
def carrying(args: argparse.Namespace) -> Iterator[Callable[..., Any]]:
    """What carries work out, as the flags say: `map`, or a Ray cluster."""
    if not args.ray:
        yield map
        return
    from unidiffuser.cluster import cluster

    with cluster(args.workers, gpus=args.device.startswith("cuda")) as carry:
        yield carry
