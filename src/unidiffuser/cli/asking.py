"""The verbs that ask a model of search and recommendation: top, suggest, demand, audience. No maths.

unidiffuser recommend top --run runs/u --user 17 --query "3 14" -k 10 --json     p(item | user, query)
unidiffuser recommend suggest --run runs/u --user 17                             p(query | user)
unidiffuser recommend demand --run runs/u --user 17 --item 203                   p(query | user, item)
unidiffuser recommend audience --run runs/j --item 203                           p(user | item)
"""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from unidiffuser.cli import flags
from unidiffuser.cli.flags import Parser
from unidiffuser.cli.recommend import add_asked, add_run, settings_of
from unidiffuser.cli.terminal import Terminal, Verb

if TYPE_CHECKING:
    from unidiffuser.recommend.recommender import Answer


def top(args: argparse.Namespace, terminal: Terminal) -> int:
    """Name the best items for a user, for a user and a query, or for a query of nobody in particular."""
    from unidiffuser.recommend.recommender import Recommender

    words = (args.query or "").split()
    if args.user is None and not words:
        raise ValueError("nobody asks for nothing; give --user ID, --query WORDS, or both")
    model = Recommender.load(args.run, **settings_of(args.set))
    answer = model.search(args.user, words, args.k, again=args.again)
    if args.user is not None and not answer.known_user:
        terminal.say(f"user {args.user!r} was never seen: this is the list of the average user")
    if answer.unknown_words:
        terminal.say(f"never seen and left out: {', '.join(answer.unknown_words)}")
    if words and not answer.query:
        terminal.say("no word of the query is known: this is a recommendation")
    if answer.shortlist:
        terminal.say(
            f"the best of a shortlist of {answer.shortlist} of {len(model.names.items)} items; "
            "--set shortlist=0 compares all"
        )
    items = [{"rank": rank, **row} for rank, row in enumerate(_rows("item", answer), 1)]
    found = {
        "user": args.user,
        "known_user": answer.known_user,
        "query": list(answer.query),
        "unknown_words": list(answer.unknown_words),
        "shortlist": answer.shortlist,
        "items": items,
    }
    terminal.answer(found, [f"{row['rank']}\t{row['item']}\t{row['score']:.4f}" for row in items])
    return 0


def suggest(args: argparse.Namespace, terminal: Terminal) -> int:
    """Name the words that a user is most likely to search for."""
    from unidiffuser.recommend.recommender import Recommender

    answer = Recommender.load(args.run).suggest(args.user, args.k)
    terminal.answer({"user": args.user, **_words(args.user, answer, terminal)}, list(answer.labels))
    return 0


def demand(args: argparse.Namespace, terminal: Terminal) -> int:
    """Name the words that most likely say why a user takes an item."""
    from unidiffuser.recommend.recommender import Recommender

    answer = Recommender.load(args.run).demand(args.user, args.item, args.k)
    found = {"user": args.user, "item": args.item, **_words(args.user, answer, terminal)}
    terminal.answer(found, list(answer.labels))
    return 0


def audience(args: argparse.Namespace, terminal: Terminal) -> int:
    """Name the users that an item is most likely for."""
    from unidiffuser.recommend.recommender import Recommender

    answer = Recommender.load(args.run).audience(args.item, args.k, again=args.again)
    users = [{"rank": rank, **row} for rank, row in enumerate(_rows("user", answer), 1)]
    terminal.answer({"item": args.item, "users": users}, list(answer.labels))
    return 0


def _words(user: str, answer: "Answer", terminal: Terminal) -> dict[str, Any]:
    if not answer.known_user:
        terminal.say(f"user {user!r} was never seen: these are the words of the average user")
    return {"known_user": answer.known_user, "words": _rows("word", answer)}


def _rows(what: str, answer: "Answer") -> list[dict[str, Any]]:
    return [{what: label, "score": score} for label, score in zip(answer.labels, answer.scores, strict=True)]


def top_flags(parser: Parser) -> None:
    """The flags of top."""
    add_run(parser)
    parser.flag("--user", metavar="ID", help="for whom; without, for nobody in particular, and a query is needed")
    parser.flag("--query", metavar="WORDS", help="what they search for, words separated by blanks")
    parser.flag("-k", type=flags.whole, default=10, metavar="N", help="how many (default: 10)")
    parser.flag("--again", action="store_true", help="name also what the user has had")
    add_asked(parser)


def suggest_flags(parser: Parser) -> None:
    """The flags of suggest."""
    add_run(parser)
    parser.flag("--user", required=True, metavar="ID", help="for whom")
    parser.flag("-k", type=flags.whole, default=10, metavar="N", help="how many (default: 10)")


def demand_flags(parser: Parser) -> None:
    """The flags of demand."""
    suggest_flags(parser)
    parser.flag("--item", required=True, metavar="ID", help="what they take")


def audience_flags(parser: Parser) -> None:
    """The flags of audience."""
    add_run(parser)
    parser.flag("--item", required=True, metavar="ID", help="what it is that is offered")
    parser.flag("-k", type=flags.whole, default=10, metavar="N", help="how many (default: 10)")
    parser.flag("--again", action="store_true", help="name also who has had it")


VERBS: dict[str, tuple[Verb, Callable[[Parser], None] | None, bool]] = {
    "recommend top": (top, top_flags, False),
    "recommend suggest": (suggest, suggest_flags, False),
    "recommend demand": (demand, demand_flags, False),
    "recommend audience": (audience, audience_flags, False),
}
"""Verb -> what it does, its flags, whether it takes a model of the engine."""
