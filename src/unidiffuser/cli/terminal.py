"""How a command line behaves: stdout and stderr, progress bars, errors of one sentence, exit codes.

    0 done    1 failed    2 wrong use or bad input    130 interrupted    143 terminated

It does not know any verb.
"""

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any


@dataclass(frozen=True)
class Terminal:
    """What is said, and where."""

    json: bool
    quiet: bool

    def say(self, text: str) -> None:
        """Tell the person something, on stderr."""
        if not self.quiet:
            sys.stderr.write(f"{text}\n")

    def answer(self, value: Mapping[str, Any], lines: Sequence[str]) -> None:
        """The result on stdout: one JSON object, or lines for a person."""
        text = json.dumps(value, ensure_ascii=False, allow_nan=False) if self.json else "\n".join(lines)
        sys.stdout.write(f"{text}\n")

    @contextmanager
    def progress(self, what: str) -> Iterator[Callable[[int, int], None]]:
        """A bar for (done, total) on stderr, when a person is there to see it."""
        from tqdm import tqdm

        with tqdm(desc=what, disable=self.quiet or not sys.stderr.isatty(), leave=False) as bar:

            def show(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            yield show


Verb = Callable[[argparse.Namespace, Terminal], int]
"""A verb takes its arguments and a terminal, and returns the exit code."""


class Terminated(BaseException):
    """SIGTERM came."""


def guarded(run: Verb, args: argparse.Namespace) -> int:
    """Run a verb; whatever goes wrong is one sentence on stderr and an exit code."""
    try:
        with _terminable():
            code = run(args, Terminal(args.json, args.quiet))
            sys.stdout.flush()
            return code
    except BrokenPipeError:
        # Nobody reads any more; what is left in the buffer must not complain at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except BaseException as error:
        code, sentence = verdict(error)
        if args.debug:
            raise
        sys.stderr.write(f"unidiffuser: {sentence}\n")
        return code


def verdict(error: BaseException) -> tuple[int, str]:
    """The exit code and the sentence for what went wrong."""
    sentence = " ".join(str(error).split())
    if isinstance(error, KeyboardInterrupt):
        return 130, "interrupted"
    if isinstance(error, Terminated) or (isinstance(error, SystemExit) and error.code == 143):
        return 143, "terminated"
    if isinstance(error, ValueError):
        # A broken model and lost data are no mistake of the user. Known by name here: importing them would load torch.
        return (1 if type(error).__name__ in ("ModelError", "DataLost") else 2), sentence
    if type(error).__name__ in ("TrainingError", "CannotServeError", "WorkFailedError"):
        return 1, sentence
    if isinstance(error, OSError) and error.strerror:
        return 1, f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return 1, f"unexpected {type(error).__name__}: {sentence[:200]}; --debug shows where it came from"


@contextmanager
def _terminable() -> Iterator[None]:
    """Turn SIGTERM into an exception, so that nothing half-written is left."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
