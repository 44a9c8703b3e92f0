"""Ranking metrics against worked examples, and against every order of the tied candidates written out."""

import math
from itertools import groupby, permutations, product

import pytest
import torch
from scipy.stats import mannwhitneyu

from unidiffuser.recommend import ranking
from unidiffuser.recommend.evaluation import Follow, cases_of, full_ranking, sampled_ranking
from unidiffuser.recommend.events import Events

CUTS = (1, 2, 3, 5)


def measured(scores: list[float], relevant: list[int], asked: list[int] | None = None) -> dict[str, float]:
    there = None if asked is None else torch.tensor([asked]).bool()
    found = ranking.ranks(torch.tensor([scores]), torch.tensor([relevant]).bool(), there)
    return {name: float(x) for name, x in ranking.metrics(found, CUTS).items()}


def plain(order: tuple[int, ...]) -> dict[str, float]:
    """The textbook metrics of relevances in the order of their ranks, without ties."""
    total = sum(order)
    values = {}
    for k in CUTS:
        values[f"hit@{k}"] = float(any(order[:k]))
        values[f"recall@{k}"] = sum(order[:k]) / total
        ideal = sum(1 / math.log2(j + 2) for j in range(min(total, k)))
        values[f"ndcg@{k}"] = sum(r / math.log2(j + 2) for j, r in enumerate(order[:k])) / ideal
    values["mrr"] = 1 / (order.index(1) + 1)
    wins = [a < b for a, b in product((i for i, r in enumerate(order) if r), (i for i, r in enumerate(order) if not r))]
    values["auc"] = sum(wins) / len(wins) if wins else math.nan
    return values


def over_all_orders(scores: list[float], relevant: list[int]) -> dict[str, float]:
    """The mean of the textbook metrics over every order of the tied."""
    ranked = sorted(range(len(scores)), key=lambda i: -scores[i])
    blocks = [list(block) for _, block in groupby(ranked, key=lambda i: scores[i])]
    orders = [sum(parts, ()) for parts in product(*(permutations(block) for block in blocks))]
    rows = [plain(tuple(relevant[i] for i in order)) for order in orders]
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def test_a_worked_example_without_ties() -> None:
    # ranks of the relevant: 2 and 4 of 5
    found = measured([5.0, 4.0, 3.0, 2.0, 1.0], [0, 1, 0, 1, 0])
    assert found["hit@1"] == 0 and found["hit@2"] == 1
    assert found["recall@2"] == 0.5 and found["recall@5"] == 1
    assert found["mrr"] == pytest.approx(0.5)
    assert found["ndcg@5"] == pytest.approx((1 / math.log2(3) + 1 / math.log2(5)) / (1 + 1 / math.log2(3)))
    assert found["auc"] == pytest.approx(3 / 6)  # the pairs (2, 3), (2, 5), (4, 5) are right


def test_a_worked_example_with_ties() -> None:
    # the relevant one shares ranks 2, 3 and 4
    found = measured([9.0, 7.0, 7.0, 7.0, 1.0], [0, 1, 0, 0, 0])
    assert found["hit@1"] == pytest.approx(0, abs=1e-12)
    assert found["hit@2"] == pytest.approx(1 / 3) and found["recall@2"] == pytest.approx(1 / 3)
    assert found["mrr"] == pytest.approx((1 / 2 + 1 / 3 + 1 / 4) / 3)
    assert found["ndcg@3"] == pytest.approx((1 / math.log2(3) + 1 / math.log2(4)) / 3)
    assert found["auc"] == pytest.approx((1 + 0.5 + 0.5) / 4)


def test_every_small_list_agrees_with_the_mean_over_all_orders_of_its_ties() -> None:
    g = torch.Generator().manual_seed(0)
    for size in (2, 4, 6, 6, 7, 7):
        for levels in (1, 2, 4):
            for _ in range(4):
                scores = torch.randint(levels, (size,), generator=g).double().tolist()
                relevant = (torch.rand(size, generator=g) < 0.4).int().tolist()
                if not any(relevant):
                    relevant[0] = 1
                expected, found = over_all_orders(scores, relevant), measured(scores, relevant)
                for name, value in expected.items():
                    assert found[name] == pytest.approx(value, abs=1e-9, nan_ok=True), (name, scores, relevant)


def test_lists_agree_with_torchmetrics() -> None:
    """All four metrics where nothing is tied, and NDCG, which is a mean over the tied there too, where something is."""
    pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")
    from torchmetrics.functional import retrieval

    theirs = {
        "hit": retrieval.retrieval_hit_rate,
        "recall": retrieval.retrieval_recall,
        "ndcg": retrieval.retrieval_normalized_dcg,
    }
    g = torch.Generator().manual_seed(5)
    for size in (3, 8, 40, 40, 40):
        for levels in (0, 4):
            scores = torch.randint(levels, (size,), generator=g) if levels else torch.randperm(size, generator=g)
            relevant = torch.rand(size, generator=g) < 0.2
            relevant[int(torch.randint(size, (1,), generator=g))] = True
            found = ranking.metrics(ranking.ranks(scores.float()[None], relevant[None]), CUTS)
            for k in CUTS:
                for name, other in theirs.items():
                    if name == "ndcg" or not levels:
                        expected = float(other(scores.float(), relevant, top_k=min(k, size)))
                        assert float(found[f"{name}@{k}"]) == pytest.approx(expected, abs=1e-6), (name, k, size)
            if not levels:
                expected = float(retrieval.retrieval_reciprocal_rank(scores.float(), relevant))
                assert float(found["mrr"]) == pytest.approx(expected, abs=1e-6)


def test_a_constant_score_is_worth_a_random_order_wherever_the_answer_stands() -> None:
    first, last = (measured([1.0] * 10, row) for row in ([1] + [0] * 9, [0] * 9 + [1]))
    assert first == last
    assert first["hit@5"] == pytest.approx(0.5) and first["auc"] == pytest.approx(0.5)


def test_what_is_not_asked_takes_no_part_even_beside_a_score_of_minus_infinity() -> None:
    scores = [9.0, 1.0, -math.inf, 8.0]
    assert measured(scores, [0, 1, 0, 0], [0, 1, 1, 0])["mrr"] == 1
    assert measured(scores, [0, 0, 1, 0], [0, 1, 1, 0])["mrr"] == 0.5


def test_several_lists_at_once_are_each_as_alone() -> None:
    g = torch.Generator().manual_seed(1)
    scores = torch.randint(3, (20, 8), generator=g).float()
    relevant = torch.rand(20, 8, generator=g) < 0.3
    relevant[:, 0] |= ~relevant.any(1)
    together = ranking.metrics(ranking.ranks(scores, relevant), CUTS)
    for row in range(20):
        alone = measured(scores[row].tolist(), relevant[row].int().tolist())
        assert {name: float(x[row]) for name, x in together.items()} == pytest.approx(alone, nan_ok=True)


def test_pooled_auc_counts_pairs_within_groups() -> None:
    g = torch.Generator().manual_seed(2)
    scores, relevant = torch.randint(5, (40,), generator=g).float(), torch.rand(40, generator=g) < 0.4
    group = torch.randint(4, (40,), generator=g)
    found, hits = ranking.pooled_auc(scores, relevant, group)
    for k in range(4):
        good = [float(s) for s, r, n in zip(scores, relevant, group, strict=True) if n == k and r]
        bad = [float(s) for s, r, n in zip(scores, relevant, group, strict=True) if n == k and not r]
        wins = sum((a > b) + 0.5 * (a == b) for a in good for b in bad)
        assert float(found[k]) == pytest.approx(wins / (len(good) * len(bad)))
        assert float(found[k]) == pytest.approx(mannwhitneyu(good, bad).statistic / (len(good) * len(bad)))
        assert int(hits[k]) == len(good)
    auc = torch.tensor([1.0, 0.5, math.nan])
    assert float(ranking.gauc(auc, torch.tensor([1, 3, 5]))) == pytest.approx((1 + 1.5) / 4)


def test_a_score_that_is_no_number_and_a_list_without_an_answer_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        measured([1.0, math.nan], [1, 0])
    with pytest.raises(ValueError, match="nothing relevant"):
        measured([1.0, 2.0], [0, 0])


class Fixed:
    """A scorer that has the same opinion of every user."""

    def __init__(self, table: list[float]) -> None:
        self.table = torch.tensor(table)

    def scores(self, users: torch.Tensor, words: torch.Tensor, items: torch.Tensor | None = None) -> torch.Tensor:
        table = self.table.expand(len(users), -1)
        return table if items is None else table.gather(1, items)

    def word_scores(self, users: torch.Tensor, items: torch.Tensor | None = None) -> torch.Tensor:
        raise NotImplementedError


def test_full_ranking_leaves_out_what_was_had_and_joins_the_answers_of_one_question() -> None:
    # user 0: had item 3 (the best), tested on 1 and 2; user 1: had nothing, tested on 0, the worst
    seen = Events(torch.tensor([0]), torch.tensor([3]), torch.zeros(1, 0, dtype=torch.int64))
    test = Events(torch.tensor([0, 0, 1]), torch.tensor([1, 2, 0]), torch.zeros(3, 0, dtype=torch.int64))
    assert len(cases_of(test).user) == 2
    report = full_ranking(Fixed([1.0, 2.0, 3.0, 4.0]), test, seen, 4, Follow(None, 3))
    assert report["hit@1"]["mean"] == pytest.approx(0.5)
    assert report["recall@1"]["mean"] == pytest.approx((0.5 + 0) / 2)
    assert report["mrr"]["mean"] == pytest.approx((1 + 1 / 4) / 2)
    assert report["gauc"]["mean"] == pytest.approx((1 * 2 + 0 * 1) / 3)


def test_sampled_ranking_compares_with_its_candidates_alone() -> None:
    events = Events(torch.tensor([0, 1, 2]), torch.tensor([1, 0, 2]), torch.zeros(3, 0, dtype=torch.int64))
    candidates = torch.tensor([[1, 0, 3], [0, 3, -1], [2, -1, -1]])
    report = sampled_ranking(Fixed([1.0, 2.0, 3.0, 4.0]), events, candidates, Follow(None, 3))
    assert (report["lists"], report["lists without negatives"]) == (2, 1)
    assert report["mrr"]["mean"] == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert report["auc"]["mean"] == pytest.approx(1.5 / 6)  # 2 and 1 against 1, 4, 4
