"""What the tools' command lines share."""

import argparse
import os
from collections.abc import Sequence
from typing import Any

from mmengine.config import DictAction

from slide_mm.engine.reporting import ConfigError


def make_parser(description: str, example: str) -> argparse.ArgumentParser:
    """Make a parser whose help ends in an example."""
    return argparse.ArgumentParser(
        description=description,
        epilog=example,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


class OptionAction(DictAction):
    """What ``--cfg-options`` does with its values; refuses what isn't ``KEY=VALUE``.

    Raises:
        ConfigError: If a value has no ``=``, or its brackets don't match.
    """

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Sequence[str],
        option_string: str | None = None,
    ) -> None:
        """Merge values such as ``'a.b=[1,2]'`` into the namespace's dict."""
        try:
            super().__call__(parser, namespace, values, option_string)
        except (ValueError, AssertionError) as error:
            given = " ".join(values)
            raise ConfigError(
                f"{option_string} {given} cannot be read: give KEY=VALUE, with brackets in pairs"
            ) from error


def add_cfg_options(parser: argparse.ArgumentParser, example: str) -> None:
    """Declare ``--cfg-options``; the help gives an example."""
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=OptionAction,
        metavar="KEY=VALUE",
        help=f"override config values, such as {example}",
    )


def parse_run(parser: argparse.ArgumentParser, run: str, example: str) -> dict[str, Any]:
    """Declare what training and testing share, and read the command line.

    Args:
        parser: The command's parser.
        run: ``'training'`` or ``'test'``.
        example: Of ``--cfg-options``.
    """
    add_cfg_options(parser, f"{example} or key='[a,b]'")
    parser.add_argument(
        "--launcher",
        choices=("none", "pytorch", "slurm", "mpi"),
        default="none",
        help=f"who started the processes of a distributed {run}",
    )
    # Older launchers hand the local rank over as an argument; MMEngine reads the environment.
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    args = vars(parser.parse_intermixed_args())  # "CONFIG --out X CHECKPOINT", too.
    local_rank = args.pop("local_rank")
    if local_rank is not None:
        os.environ.setdefault("LOCAL_RANK", str(local_rank))
    return args
