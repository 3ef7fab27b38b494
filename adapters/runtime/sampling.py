"""The next token of each generating row: greedy or drawn, the same in any batch, with log-probabilities on demand.

Shape letters: G generating rows, S rows that draw, F rows that draw and filter, L rows that report log-probabilities,
V vocabulary, N largest logits looked at, B blocks of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from adapters.tasks.base import Sampling, TokenLogprob

BLOCK = 256  # tokens that one draw decides among; the draw before it decides among such blocks
NUM_CANDIDATES = 1024  # filters look at this many logits first, then at eight times as many
NUMBERS_AT_ONCE = 200_000  # logits that a CPU works on at a time, to stay in its cache
GREEDY_BELOW = 1e-5  # colder rows take the likeliest token: dividing by less would overflow


@dataclass(frozen=True, slots=True)
class Choice:
    """What one row asks for; ``position`` is the number of tokens that it has generated before this one."""

    sampling: Sampling
    position: int
    num_logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class Chosen:
    """A row's next token, and its log-probability if the row asked for it.

    Not ``is_finite``: the row's logits are not numbers, and its token means nothing.
    """

    token_id: int
    is_finite: bool = True
    logprob: TokenLogprob | None = None


def choose(logits_GV: Tensor, rows: Sequence[Choice]) -> list[Chosen]:
    """Return each row's next token. What a row does not ask for is not computed.

    Filters are those of transformers, in its order: temperature, top-k, top-p. Log-probabilities are of the
    logits as they come in, before all of these. A logit of minus infinity rules its token out; a row with NaN,
    with plus infinity or with nothing left to choose is not finite, and no other row notices.

    Args:
        logits_GV: fp32, on any device; left unchanged.
    """
    best_G = _argmax(logits_GV)
    # NaN counts as largest, so the largest logit alone tells whether the row can be used.
    is_finite = logits_GV.gather(1, best_G[:, None]).isfinite()[:, 0].tolist()
    tokens = best_G.tolist()
    usable = [i for i, good in enumerate(is_finite) if good]
    drawing = [i for i in usable if _draws(rows[i].sampling)]
    filtering = {i for i in drawing if _filters(rows[i].sampling, logits_GV.shape[1])}
    for some in (  # apart, as filters cost more than all the rest
        *_split(logits_GV, [i for i in drawing if i not in filtering]),
        *_split(logits_GV, sorted(filtering)),
    ):
        weights_SV = weigh(_pick(logits_GV, some), [rows[i].sampling for i in some])
        for i, token in zip(some, _race(weights_SV, [rows[i] for i in some]), strict=True):
            tokens[i] = token
    logprobs: dict[int, TokenLogprob] = {}
    for some in _split(logits_GV, [i for i in usable if rows[i].num_logprobs is not None]):
        nums = [rows[i].num_logprobs or 0 for i in some]
        found = _logprobs(_pick(logits_GV, some), [tokens[i] for i in some], nums)
        logprobs.update(zip(some, found, strict=True))
    return [Chosen(tokens[i], is_finite[i], logprobs.get(i)) for i in range(len(rows))]


def _draws(sampling: Sampling) -> bool:
    return sampling.temperature >= GREEDY_BELOW and sampling.top_k != 1


def _split(logits_GV: Tensor, rows: list[int]) -> Iterator[list[int]]:
    num = max(1, len(rows))
    if logits_GV.device.type == "cpu":
        num = max(1, NUMBERS_AT_ONCE // logits_GV.shape[1])
    for first in range(0, len(rows), num):
        yield rows[first : first + num]


def _pick(values: Tensor, rows: list[int]) -> Tensor:
    """Return some rows, in rising order, without a copy where they lie side by side."""
    if rows[-1] - rows[0] == len(rows) - 1:
        return values[rows[0] : rows[-1] + 1]
    return values[rows]


def weigh(logits_SV: Tensor, samplings: Sequence[Sampling]) -> Tensor:
    """Return what chance temperature and filters leave to each token; a row's likeliest one weighs 1."""
    temperature_S = torch.tensor([s.temperature for s in samplings]).to(logits_SV.device)
    scaled_SV = logits_SV / temperature_S[:, None]
    weights_SV = (scaled_SV - scaled_SV.gather(1, _argmax(scaled_SV)[:, None])).exp_()
    if any(_filters(sampling, logits_SV.shape[1]) for sampling in samplings):
        weights_SV *= _keep(scaled_SV, weights_SV.sum(dim=1), samplings)
    return weights_SV


def _race(weights_SV: Tensor, rows: Sequence[Choice]) -> list[int]:
    """Draw a token for each row in proportion to its weights.

    The winner is the largest of weight / noise with exponential noise (the Gumbel trick), first among blocks,
    then among the tokens of the winner. Two batches whose weights differ by a little choose differently
    about as seldom as two draws from such distributions must. One uniform number looked up in the running
    sum would not do: small differences add up along it, and sorted, two tokens of like weight change places.
    """
    num_blocks = -(-weights_SV.shape[1] // BLOCK)
    padding = num_blocks * BLOCK - weights_SV.shape[1]
    if padding:
        weights_SV = torch.nn.functional.pad(weights_SV, (0, padding))
    weights_SBT = weights_SV.view(len(rows), num_blocks, BLOCK)
    noise = np.stack([_noise(row, BLOCK + num_blocks) for row in rows])
    noise_S = torch.from_numpy(noise).to(weights_SV.device)
    block_S = _argmax(weights_SBT.sum(dim=2) / noise_S[:, BLOCK:])
    inside_ST = weights_SBT[torch.arange(len(rows), device=block_S.device), block_S]
    token_S = block_S * BLOCK + _argmax(inside_ST / noise_S[:, :BLOCK])
    return token_S.tolist()


def _noise(row: Choice, num: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Return exponential noise, above zero, that depends on the row's seed and position only."""
    key = np.array([row.sampling.seed % 2**64, row.position], dtype=np.uint64)
    raw = np.random.Philox(key=key).random_raw(num)
    uniform = ((raw >> np.uint64(12)) + 0.5) * 2.0**-52  # in (0, 1), without its ends
    return -np.log(uniform).astype(np.float32)


def _filters(sampling: Sampling, num_tokens: int) -> bool:
    return 0 < sampling.top_k < num_tokens or sampling.top_p < 1


def _keep(
    scaled_FV: Tensor, total_F: Tensor, samplings: Sequence[Sampling], num: int = NUM_CANDIDATES
) -> Tensor:
    """Return which tokens top-k and top-p leave to each row.

    Of tokens with equal logits, top-k keeps all or none; top-p keeps the first ones if not all are needed.

    Args:
        total_F: what a row's tokens weigh together, if its likeliest weighs one.
        num: how many of the largest logits to look at first.
    """
    num = min(num, scaled_FV.shape[1])
    lowest_F, surplus_F, is_certain_F = _cut(scaled_FV, total_F, samplings, num)
    keep_FV = scaled_FV >= lowest_F[:, None]
    for i in (surplus_F * is_certain_F).nonzero()[:, 0].tolist():
        equals = (scaled_FV[i] == lowest_F[i]).nonzero()[:, 0]
        keep_FV[i, equals[len(equals) - int(surplus_F[i]) :]] = False
    if unsure := (~is_certain_F).nonzero()[:, 0].tolist():
        some = [samplings[i] for i in unsure]
        keep_FV[unsure] = _keep(scaled_FV[unsure], total_F[unsure], some, 8 * num)
    return keep_FV


def _cut(
    scaled_FV: Tensor, total_F: Tensor, samplings: Sequence[Sampling], num: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Find where filters cut, looking at the ``num`` largest logits of each row.

    Returns:
        The lowest logit kept, how many equal to it are too many, and whether looking at more logits
        could not change these.
    """
    num_tokens, device = scaled_FV.shape[1], scaled_FV.device
    top_FN = _largest(scaled_FV, num)
    has_k = torch.tensor([0 < s.top_k < num_tokens for s in samplings]).to(device)
    last_F = torch.tensor([min(s.top_k or num, num) - 1 for s in samplings]).to(device)
    kth_F = top_FN.gather(1, last_F[:, None])[:, 0].masked_fill(~has_k, -torch.inf)

    weights_FN = (top_FN - top_FN[:, :1]).exp_() * (top_FN >= kth_F[:, None])
    running_FN = weights_FN.cumsum(dim=1, dtype=torch.float64)
    top_p_F = torch.tensor([s.top_p for s in samplings], dtype=torch.float64).to(device)
    has_p = top_p_F < 1
    mass_F = top_p_F * torch.where(has_k, running_FN[:, -1], total_F.double())
    # A token stays while those before it do not have the mass yet; the likeliest one always does.
    num_F = ((running_FN - weights_FN) < mass_F[:, None]).sum(dim=1).clamp(1, num)
    nth_F = top_FN.gather(1, num_F[:, None] - 1)[:, 0]

    lowest_F = torch.where(has_p, nth_F.maximum(kth_F), kth_F)
    surplus_F = ((top_FN >= lowest_F[:, None]).sum(dim=1) - num_F) * has_p
    is_certain_F = top_FN[:, -1] < torch.where(has_k, kth_F, lowest_F)
    is_certain_F |= ~(has_k | has_p) | (num == num_tokens)
    return lowest_F, surplus_F, is_certain_F


def _logprobs(logits_LV: Tensor, tokens: Sequence[int], nums: Sequence[int]) -> list[TokenLogprob]:
    """Return the log-probability of each row's token, and of its ``nums`` likeliest ones."""
    sum_L1 = logits_LV.logsumexp(dim=1, keepdim=True)
    token_L1 = torch.tensor(tokens).to(logits_LV.device)[:, None]
    logprobs = (logits_LV.gather(1, token_L1) - sum_L1)[:, 0].tolist()
    tops = _likeliest(logits_LV, sum_L1, nums) if any(nums) else [()] * len(nums)
    return [TokenLogprob(*entry) for entry in zip(tokens, logprobs, tops, strict=True)]


def _likeliest(
    logits_LV: Tensor, sum_L1: Tensor, nums: Sequence[int]
) -> list[tuple[tuple[int, float], ...]]:
    """Return each row's likeliest tokens with their log-probabilities; of equals, the first ones."""
    num = min(max(nums), logits_LV.shape[1])
    last_L1 = torch.tensor([[min(max(n, 1), num) - 1] for n in nums]).to(logits_LV.device)
    lowest_L1 = _largest(logits_LV, num).gather(1, last_L1)
    # Which of several equals topk finds depends on how many are asked for, and so on the other rows.
    found = ((logits_LV >= lowest_L1) & (logits_LV > -torch.inf)).nonzero(as_tuple=True)
    logprobs = logits_LV[found] - sum_L1[found[0], 0]
    pairs: list[list[tuple[int, float]]] = [[] for _ in nums]
    for i, token, logprob in zip(*(each.tolist() for each in (*found, logprobs)), strict=True):
        pairs[i].append((token, logprob))
    return [
        tuple(sorted(row, key=lambda pair: -pair[1])[:n])
        for row, n in zip(pairs, nums, strict=True)
    ]


def _argmax(values: Tensor) -> Tensor:
    """Return where each row's largest value, or its first NaN, is."""
    if values.device.type == "cpu":  # numpy takes a tenth of torch's time
        return torch.from_numpy(values.numpy().argmax(axis=1))
    return values.argmax(dim=1)


def _largest(values: Tensor, num: int) -> Tensor:
    """Return each row's ``num`` largest values, largest first."""
    if values.device.type == "cpu":  # numpy's vectorised sort takes a thirtieth of torch's time
        array, first = values.numpy(), values.shape[1] - num
        top = np.partition(array, first, axis=1)[:, first:] if first else array
        return torch.from_numpy(np.sort(top, axis=1)[:, ::-1].copy())
    return values.topk(num, dim=1).values
