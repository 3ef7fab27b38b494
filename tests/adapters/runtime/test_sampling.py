"""Tokens are drawn as transformers would filter them, as often as they should be, and the same in any batch."""

import dataclasses

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from adapters.runtime.sampling import Choice, choose, weigh
from adapters.tasks.base import Sampling


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Many small passes: a second thread only waits, and for long where others compute too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random_logits(num_rows, num_tokens, seed=0, spread=3.0):
    return torch.randn(num_rows, num_tokens, generator=torch.Generator().manual_seed(seed)) * spread


def stock_scores(logits, sampling):
    """Return what transformers leaves of the logits, with minus infinity where it leaves nothing."""
    scores = TemperatureLogitsWarper(sampling.temperature)(None, logits)
    if sampling.top_k:
        scores = TopKLogitsWarper(sampling.top_k)(None, scores)
    if sampling.top_p < 1:
        scores = TopPLogitsWarper(sampling.top_p)(None, scores)
    return scores


def tokens_of(logits, rows):
    return [chosen.token_id for chosen in choose(logits, rows)]


@pytest.mark.parametrize("num_tokens", [5, 1100, 20000])
@pytest.mark.parametrize("temperature", [0.4, 2.0])
@pytest.mark.parametrize("top_k", [0, 3, 50, 2000])
@pytest.mark.parametrize("top_p", [1e-9, 0.9, 0.999, 1.0])
def test_filters_leave_what_transformers_leaves(num_tokens, temperature, top_k, top_p):
    sampling = Sampling(temperature, top_p, top_k)
    logits = random_logits(3, num_tokens)
    weights = weigh(logits, [sampling] * 3)
    # In double, as transformers' own running sum of small probabilities is off by more than a token's share.
    expected = stock_scores(logits.double(), sampling).softmax(dim=1)
    assert torch.equal(weights > 0, expected > 0)
    torch.testing.assert_close(
        (weights / weights.sum(dim=1, keepdim=True)).double(), expected, atol=1e-6, rtol=1e-4
    )


def test_rows_of_one_batch_have_filters_of_their_own():
    logits = random_logits(12, 3000)
    samplings = [
        Sampling(temperature, top_p, top_k)
        for temperature in (0.5, 2.0)
        for top_p, top_k in [(1, 0), (0.9, 0), (1, 7), (0.5, 2500), (0.99, 40), (1, 3000)]
    ]
    for row, sampling, weights in zip(
        logits[:, None].double(), samplings, weigh(logits, samplings), strict=True
    ):
        assert torch.equal(weights > 0, stock_scores(row, sampling)[0] > -torch.inf)


@settings(deadline=None)
@given(
    st.lists(st.integers(-3, 3), min_size=1, max_size=40),
    st.integers(0, 40),
    st.floats(0.01, 1),
)
def test_equal_logits_are_kept_in_the_number_that_transformers_keeps(values, top_k, top_p):
    logits = torch.tensor([values], dtype=torch.float32)
    sampling = Sampling(1.0, top_p, top_k)
    ranked = stock_scores(logits.double(), Sampling(1.0, 1.0, top_k)).sort(descending=True)[0]
    assume((ranked.softmax(dim=1).cumsum(dim=1) - top_p).abs().min() > 1e-6)
    kept = logits[weigh(logits, [sampling]) > 0].sort()[0]
    expected = logits[stock_scores(logits, sampling) > -torch.inf].sort()[0]
    assert torch.equal(kept, expected)


def test_of_equal_logits_top_p_keeps_the_first():
    weights = weigh(torch.zeros(1, 3000), [Sampling(1.0, top_p=0.5)])
    assert weights[0].nonzero()[:, 0].tolist() == list(range(1500))


@pytest.mark.parametrize(
    "sampling",
    [Sampling(1.0), Sampling(0.7, top_k=60), Sampling(1.3, top_p=0.8), Sampling(1.0, 0.9, 50)],
)
@pytest.mark.parametrize("varying", ["position", "seed"])
def test_tokens_are_drawn_as_often_as_their_probability(sampling, varying):
    logits = random_logits(1, 700, spread=2.0)
    num = 10_000
    rows = [
        Choice(dataclasses.replace(sampling, seed=i), 5)
        if varying == "seed"
        else Choice(dataclasses.replace(sampling, seed=7), i)
        for i in range(num)
    ]
    counts = torch.bincount(
        torch.tensor(tokens_of(logits.expand(num, -1), rows)), minlength=700
    ).double()
    expected = stock_scores(logits.double(), sampling).softmax(dim=1)[0] * num
    assert counts[expected == 0].sum() == 0
    rare = (expected > 0) & (expected < 10)  # counted together, as the test wants
    observed = torch.cat([counts[expected >= 10], counts[rare].sum()[None]])
    wanted = torch.cat([expected[expected >= 10], expected[rare].sum()[None]])
    observed, wanted = observed[wanted > 0], wanted[wanted > 0]
    assert chisquare(observed.numpy(), wanted.numpy()).pvalue > 1e-3


LOGITS = random_logits(12, 2500, seed=3)
LOGITS[4, 100:] = -torch.inf
LOGITS[5] = LOGITS[5].round()
LOGITS[6, 17] = torch.nan
ROWS = [
    Choice(Sampling(*sampling, seed=i), 3 * i, num_logprobs)
    for i, (sampling, num_logprobs) in enumerate(
        [
            ((0.0,), None),
            ((1.0,), 0),
            ((2.0, 0.95), 3),
            ((1.0, 0.5, 40), None),
            ((1.5, 0.99), 2),
            ((3.0, 0.9, 1500), 8),
            ((1.0,), 2),
            ((0.0,), 5),
            ((5.0, 0.999), None),
            ((1.0, 1.0, 20), 20),
            ((0.3,), 1),
            ((4.0,), None),
        ]
    )
]
ALONE = [choose(LOGITS[i : i + 1], ROWS[i : i + 1])[0] for i in range(len(ROWS))]


@settings(deadline=None)
@given(st.lists(st.integers(0, len(ROWS) - 1), min_size=1, max_size=30))
def test_a_row_gets_the_same_in_any_batch(picked):
    for i, chosen in zip(picked, choose(LOGITS[picked], [ROWS[i] for i in picked]), strict=True):
        if ALONE[i].logprob is not None:
            assert chosen.logprob.logprob == pytest.approx(ALONE[i].logprob.logprob, abs=1e-5)
            assert [token for token, _ in chosen.logprob.top] == [
                token for token, _ in ALONE[i].logprob.top
            ]
        assert chosen.token_id == ALONE[i].token_id
        assert chosen.is_finite == (i != 6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_row_gets_the_same_on_a_gpu():
    chosen = choose(LOGITS.cuda(), ROWS)
    assert [c.token_id for c, _ in zip(chosen, ROWS, strict=True) if c.is_finite] == [
        c.token_id for c in ALONE if c.is_finite
    ]
    assert [c.is_finite for c in chosen] == [c.is_finite for c in ALONE]


def test_a_small_difference_in_logits_seldom_changes_a_draw():
    """As batches of other shape bring: about as seldom as the distributions differ, here by 0.04 %."""
    num = 2000
    logits = random_logits(1, 2000, spread=0.5).expand(num, -1)
    rows = [Choice(Sampling(1.0, seed=1), i) for i in range(num)]
    noisy = logits + random_logits(num, 2000, seed=9, spread=1e-3)
    changed = sum(
        a != b for a, b in zip(tokens_of(logits, rows), tokens_of(noisy, rows), strict=True)
    )
    assert changed < 10


def test_greedy_takes_the_likeliest_and_draws_nothing(monkeypatch):
    monkeypatch.setattr("adapters.runtime.sampling.weigh", None)
    monkeypatch.setattr("adapters.runtime.sampling._logprobs", None)
    logits = random_logits(5, 1000)
    samplings = [
        Sampling(),
        Sampling(seed=4),
        Sampling(1.0, top_k=1),
        Sampling(1e-9),
        Sampling(0, 0.5),
    ]
    assert tokens_of(logits, [Choice(s, 0) for s in samplings]) == logits.argmax(dim=1).tolist()


@pytest.mark.parametrize("top_p", [0.0, 1e-12, 1e-4])
def test_a_tiny_top_p_keeps_the_likeliest_token_only(top_p):
    logits = random_logits(4, 2000)
    logits[3, [5, 900]] = 50.0  # of two equals, the first
    rows = [Choice(Sampling(1.0, top_p, seed=i), i) for i in range(4)]
    assert tokens_of(logits, rows) == logits.argmax(dim=1).tolist()


def test_seeds_and_positions_give_draws_of_their_own():
    logits = torch.zeros(1, 50_000)
    pairs = [(0, 0), (0, 1), (1, 0), (1, 1), (-1, 0), (2**70 + 3, 0)]
    rows = [Choice(Sampling(1.0, seed=seed), position) for seed, position in pairs]
    assert len(set(tokens_of(logits.expand(len(rows), -1), rows))) == len(rows)


def test_the_same_seed_gives_the_same_tokens_for_ever():
    """A change here breaks the promise that a seed means the same answer after an upgrade."""
    logits = torch.arange(50_000).remainder(97).div(10)[None]
    rows = [Choice(Sampling(0.8, 0.95, 45_000, seed=42), i) for i in range(4)]
    assert tokens_of(logits.expand(4, -1), rows) == [29289, 20253, 30651, 16188]


def test_ruled_out_tokens_are_never_chosen():
    logits = torch.full((200, 600), -torch.inf)
    logits[:, [7, 300, 599]] = torch.tensor([1.0, 2.0, 3.0])
    rows = [Choice(Sampling(5.0, 0.999, 100), i, 5) for i in range(200)]
    chosen = choose(logits, rows)
    assert {c.token_id for c in chosen} == {7, 300, 599}
    assert all([token for token, _ in c.logprob.top] == [599, 300, 7] for c in chosen)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0), Sampling(1.0, 0.9, 20)])
@pytest.mark.parametrize("num_logprobs", [None, 3])
def test_rows_that_are_not_finite_are_reported_and_the_others_go_on(sampling, num_logprobs):
    logits = random_logits(8, 1500)
    rows = [Choice(dataclasses.replace(sampling, seed=i), 2, num_logprobs) for i in range(8)]
    expected = choose(logits, rows)
    logits[1, 1499] = torch.nan
    logits[4] = -torch.inf
    logits[6, 3] = torch.inf
    chosen = choose(logits, rows)
    assert [i for i, c in enumerate(chosen) if not c.is_finite] == [1, 4, 6]
    assert [c for c in chosen if c.is_finite] == [expected[i] for i in (0, 2, 3, 5, 7)]


def test_logprobs_are_of_the_logits_before_temperature_and_filters():
    logits = random_logits(3, 1200)
    rows = [Choice(Sampling(2.0, 0.5, 10, seed=i), 0, n) for i, n in enumerate([0, 4, 4000])]
    reference = logits.double().log_softmax(dim=1)
    for i, (chosen, num) in enumerate(zip(choose(logits, rows), [0, 4, 1200], strict=True)):
        assert chosen.logprob.token_id == chosen.token_id
        assert chosen.logprob.logprob == pytest.approx(
            reference[i, chosen.token_id].item(), abs=1e-5
        )
        values, tokens = reference[i].topk(num)
        assert [token for token, _ in chosen.logprob.top] == tokens.tolist()
        assert [value for _, value in chosen.logprob.top] == pytest.approx(
            values.tolist(), abs=1e-5
        )


def test_of_equally_likely_tokens_the_first_ones_are_reported():
    rows = [Choice(Sampling(), 0, n) for n in (2, 5)]
    for chosen, num in zip(choose(torch.zeros(2, 300), rows), (2, 5), strict=True):
        assert [token for token, _ in chosen.logprob.top] == list(range(num))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_logits_are_left_unchanged(seed):
    logits = random_logits(4, 600, seed)
    before = logits.clone()
    choose(logits, [Choice(Sampling(0.5, 0.9, 30, seed), i, 2) for i in range(4)])
    assert torch.equal(logits, before)
