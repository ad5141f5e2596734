"""A linear-chain conditional random field (Lafferty, McCallum & Pereira 2001)."""

import torch
from torch import Tensor, nn

FORBIDDEN = -1e4  # a score whose exponential is 0; a true infinity would make gradients NaN


class LinearChainCRF(nn.Module):
    """The probability of a sequence of labels: ``p(y | x) ~ exp(sum_t emission[t, y_t] + transition[y_{t-1}, y_t])``.

    All is computed in float32 at least, in log space, and what lies past a sequence's end has no influence.

    Args:
        allowed: bool [K + 1, K + 1]: which of the K labels may follow which; row K is the beginning of a sequence,
            column K its end. The others have probability 0.
    """

    allowed: Tensor

    def __init__(self, allowed: Tensor) -> None:
        super().__init__()
        self.transitions = nn.Parameter(torch.empty(allowed.shape).uniform_(-0.1, 0.1))
        self.register_buffer("allowed", allowed, persistent=False)

    def forward(self, emissions: Tensor, labels: Tensor, lengths: Tensor) -> Tensor:
        """``-log p`` of the labels in nats, [B].

        Args:
            emissions: a score for each label, [T, B, K].
            labels: int64 [T, B]; any value past a sequence's end.
            lengths: [B], each at least 1.
        """
        emissions, (between, first, last) = self._scores(emissions)
        steps = torch.arange(len(emissions), device=emissions.device)[:, None]
        labels = labels.where(steps < lengths, 0)
        emitted = emissions.gather(-1, labels[..., None])[..., 0].where(steps < lengths, 0.0).sum(0)
        moved = between[labels[:-1], labels[1:]].where(steps[1:] < lengths, 0.0).sum(0)
        final = labels.gather(0, lengths[None] - 1)[0]
        return self.log_partition(emissions, lengths) - (first[labels[0]] + emitted + moved + last[final])

    def log_partition(self, emissions: Tensor, lengths: Tensor) -> Tensor:
        """``log sum_y exp(score(y))`` over all sequences of labels, [B]: the forward algorithm."""
        emissions, (between, first, last) = self._scores(emissions)
        alpha = first + emissions[0]
        for step in range(1, len(emissions)):
            after = torch.logsumexp(alpha[:, :, None] + between, 1) + emissions[step]
            alpha = after.where((step < lengths)[:, None], alpha)
        return torch.logsumexp(alpha + last, -1)

    @torch.no_grad()
    def decode(self, emissions: Tensor, lengths: Tensor) -> Tensor:
        """The likeliest labels, int64 [T, B], 0 past each end: the Viterbi algorithm."""
        emissions, (between, first, last) = self._scores(emissions)
        best = first + emissions[0]
        stay = torch.arange(emissions.shape[-1], device=emissions.device).expand_as(best)
        back = []  # the label before each label, by step
        for step in range(1, len(emissions)):
            inside = (step < lengths)[:, None]
            score, before = (best[:, :, None] + between).max(1)
            best = (score + emissions[step]).where(inside, best)
            back.append(before.where(inside, stay))
        path = [(best + last).argmax(-1)]
        for before in reversed(back):
            path.append(before.gather(1, path[-1][:, None])[:, 0])
        labels = torch.stack(path[::-1])
        return labels.where(torch.arange(len(labels), device=labels.device)[:, None] < lengths, 0)

    def _scores(self, emissions: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """The emissions, and the scores of transitions between labels [K, K], to the first [K] and from the last."""
        dtype = torch.promote_types(emissions.dtype, torch.float32)
        scores = self.transitions.to(dtype).masked_fill(~self.allowed, FORBIDDEN)
        return emissions.to(dtype), (scores[:-1, :-1], scores[-1, :-1], scores[:-1, -1])
