"""The verbs of search and recommendation that make things: make-world, train, evaluate, convert. No maths.

unidiffuser recommend make-world --users 3000 --items 1500 --events 8 --seed 0 --out world/
unidiffuser recommend train --data world/ --model uditsr --run runs/u
unidiffuser recommend evaluate --run runs/u --json
"""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unidiffuser.cli import flags
from unidiffuser.cli.flags import Parser
from unidiffuser.cli.terminal import Terminal, Verb

if TYPE_CHECKING:
    from unidiffuser.recommend.evaluation import Scorer

SHOWN = ("hit@5", "ndcg@5", "recall@5", "recall@20", "ndcg@20", "mrr", "auc", "gauc", "accuracy")
"""The metrics that a person is shown; JSON has all of them."""


def make_world(args: argparse.Namespace, terminal: Terminal) -> int:
    """Make a world of users, items and queries whose probabilities are known exactly."""
    from unidiffuser.recommend.settings import with_settings
    from unidiffuser.recommend.truth import write_world
    from unidiffuser.recommend.world import WorldConfig

    sizes = {"users": args.users, "items": args.items, "events": args.events, "seed": args.seed}
    sizes = {name: value for name, value in sizes.items() if value is not None}
    config = with_settings(WorldConfig(), {**settings_of(args.set), **sizes}, "a world")
    folder = Path(args.out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not args.force:
        raise ValueError(f"{folder} is there already; use --force to write into it, or another --out")
    written = write_world(config, folder)
    answer = {"world": str(folder), "table": str(written), **asdict(config)}
    terminal.answer(
        answer, [f"{written}: {config.users} users, {config.items} items, {config.users * config.events} events"]
    )
    return 0


def train(args: argparse.Namespace, terminal: Terminal) -> int:
    """Train a model on a table of events, going on where an earlier run in the same folder stopped."""
    from unidiffuser.recommend.splits import Protocol
    from unidiffuser.recommend.store import read_interactions
    from unidiffuser.recommend.training import VALIDATION, Plan
    from unidiffuser.recommend.training import train as carry_out

    protocol = Protocol(seed=args.split_seed, negatives=args.negatives)
    changes = settings_of(args.set)
    if args.epochs is not None:
        changes["epochs"] = args.epochs
    plan = Plan.of(args.model, seed=args.seed, protocol=protocol, **changes)
    run = Path(args.run)
    with terminal.progress("training") as progress:

        def show(step: int, steps: int, figures: Mapping[str, float]) -> None:
            progress(step, steps)

        carry_out(Path(args.data), plan, run, progress=show)
    counts = read_interactions(run / "data").counts
    for what, count in counts.items():
        terminal.say(f"{what}: {count}")
    final = str(run / "final")
    answer: dict[str, Any] = {"model": final, "kind": plan.recipe.kind, "counts": dict(counts)}
    if (validation := run / "training" / VALIDATION).is_file():
        answer["validation"] = found = json.loads(validation.read_text(encoding="utf-8"))
        kept, value = found["kept"], found["epochs"][str(found["kept"])]
        terminal.say(f"kept epoch {kept}: {found['watched']} {value:.4f} on the validation part")
    terminal.answer(answer, [final])
    return 0


def evaluate(args: argparse.Namespace, terminal: Terminal) -> int:
    """Measure a model on searches and recommendations, with the oracle beside it where the data come from a world."""
    from unidiffuser.recommend.evaluation import evaluate as measure
    from unidiffuser.recommend.recommender import Recommender
    from unidiffuser.recommend.store import read_interactions
    from unidiffuser.recommend.truth import read_truth

    run = Path(args.run)
    model, data = Recommender.load(run, **settings_of(args.set)), read_interactions(run / "data")
    scorers: dict[str, Scorer] = {"model": model.model}
    truth = read_truth(run / "world", data.names)
    if truth is not None:
        scorers["oracle"] = truth.oracle
    answer: dict[str, Any] = {"run": str(run), "kind": model.model.kind, "part": args.part}
    for name, scorer in scorers.items():
        with terminal.progress(f"evaluating the {name}") as progress:
            answer[name] = measure(scorer, data, args.part, progress)
            if truth is not None:
                answer[name]["demand"] = truth.demand_accuracy(scorer, data.part(args.part))
    answer["counts"] = dict(data.counts)
    terminal.answer(answer, list(_table(answer, list(scorers))))
    return 0


def convert(args: argparse.Namespace, terminal: Terminal) -> int:
    """Write a table of any known format as RecBole's atomic files."""
    from unidiffuser.recommend.tables import convert as carry_out

    written, counts = carry_out(Path(args.data), Path(args.out), force=args.force)
    for what, count in counts.items():
        terminal.say(f"{what}: {count}")
    terminal.answer({"files": [str(file) for file in written], "counts": dict(counts)}, [str(file) for file in written])
    return 0


def make_world_flags(parser: Parser) -> None:
    """The flags of make-world."""
    parser.flag("--out", required=True, metavar="FOLDER", help="where its table and its truth go")
    parser.flag("--users", type=flags.whole, help="users (default: 3000)")
    parser.flag("--items", type=flags.whole, help="items (default: 1500)")
    parser.flag("--events", type=flags.whole, help="events of each user (default: 8)")
    parser.flag("--seed", type=flags.whole, help="another seed, another world (default: 0)")
    _add_set(parser, "any other number of the law, such as breadth=0.5")
    parser.flag("--force", action="store_true", help="write into a folder that is there")


def train_flags(parser: Parser) -> None:
    """The flags of train."""
    parser.flag(
        "--data", required=True, metavar="PATH", help="a table of events: a world, RecBole, MT-Small, KuaiSAR, plain"
    )
    parser.flag("--model", required=True, metavar="KIND", help="the model; an unknown name lists them")
    parser.flag(
        "--run", required=True, metavar="FOLDER", help="checkpoints, the split, and in the end the model: final/"
    )
    parser.flag("--seed", type=flags.whole, default=0, help="of the weights and the order (default: 0)")
    parser.flag("--split-seed", type=flags.whole, default=0, help="of the split and the negatives (default: 0)")
    parser.flag(
        "--negatives", type=flags.whole, default=99, help="listed beside each measured item, 0: none (default: 99)"
    )
    parser.flag("--epochs", type=flags.whole, help="passes over the events (default: the recipe's)")
    _add_set(parser, "a setting of the model or its recipe, such as dim=32, lr=0.003 or patience=5")


def evaluate_flags(parser: Parser) -> None:
    """The flags of evaluate."""
    add_run(parser)
    parser.flag("--part", default="test", help="what to measure on: train, valid or test (default: test)")
    add_asked(parser)


def convert_flags(parser: Parser) -> None:
    """The flags of convert."""
    parser.flag("--data", required=True, metavar="PATH", help="a table of events in any known format")
    parser.flag("--out", required=True, metavar="FOLDER", help="where NAME.inter goes, NAME being the folder's name")
    parser.flag("--force", action="store_true", help="write into a folder that is there")


def add_run(parser: Parser) -> None:
    """The flag of a run that answers."""
    parser.flag("--run", required=True, metavar="FOLDER", help="a run that was trained")


def add_asked(parser: Parser) -> None:
    """The flag of settings that may change after training."""
    _add_set(parser, "how the model is asked, such as samples=16 of a diffusion or shortlist=0 of uditsr")


def _add_set(parser: Parser, what: str) -> None:
    parser.flag("--set", metavar="NAME=VALUE", type=flags.pair, action="append", default=[], help=what)


def settings_of(pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """NAME=VALUE flags: a whole number, a number, true or false, or else a word."""
    values: dict[str, Any] = {}
    for name, text in pairs:
        if name in values:
            raise ValueError(f"--set is given twice for {name!r}; give it once")
        values[name] = _value(text)
    return values


def _value(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _table(answer: Mapping[str, Any], names: Sequence[str]) -> Iterator[str]:
    """The report for a person: one line a metric, one column a scorer."""
    yield f"{'':<36}" + "".join(f"{name:>18}" for name in names)
    for what in ("recommendation", "search"):
        for how in ("full", "sampled"):
            found = [answer[name].get(what, {}).get(how, {}) for name in names]
            for metric in (name for name in SHOWN if name in found[0]):
                yield f"{what} {how} {metric}".ljust(36) + "".join(map(_figure, (x[metric] for x in found)))
    for what in ("words", "demand"):
        found = [answer[name].get(what, {}) for name in names]
        for metric in (name for name in SHOWN if name in found[0]):
            yield f"{what} {metric}".ljust(36) + "".join(map(_figure, (x[metric] for x in found)))


def _figure(value: Mapping[str, float]) -> str:
    return (
        f"{value['mean']:.4f} ± {value['error']:.4f}".rjust(18)
        if "error" in value
        else f"{value['mean']:.4f}".rjust(18)
    )


VERBS: dict[str, tuple[Verb, Callable[[Parser], None] | None, bool]] = {
    "recommend make-world": (make_world, make_world_flags, False),
    "recommend train": (train, train_flags, False),
    "recommend evaluate": (evaluate, evaluate_flags, False),
    "recommend convert": (convert, convert_flags, False),
}
"""Verb -> what it does, its flags, whether it takes a model of the engine."""
