"""Text from a trained language model."""

import torch
from torch import Tensor, nn

from lightning_modules.data.vocabulary import Vocabulary


def next_token_distribution(
    logits: Tensor, *, temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0
) -> Tensor:
    """The probabilities from which the next token is drawn.

    The logits are divided by the temperature; of their softmax the ``top_k`` most probable tokens are kept, and of
    these (renormalized) the smallest set of most probable ones that together reach ``top_p`` (nucleus sampling,
    Holtzman et al. 2020). Of equally probable tokens at the edge, those with lower ids are kept.

    Args:
        logits: [V].
        temperature: above 0; 0 itself is the limit, all weight on the most probable token.
        top_k: at least 1; ``None`` keeps all.
        top_p: in (0, 1]; 1 keeps all.

    Returns:
        Probabilities [V], float64, that sum to 1.

    Raises:
        ValueError: for an argument out of its range.
    """
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature must be at least 0, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must be in (0, 1], got {top_p}")
    ranked, order = logits.double().sort(descending=True, stable=True)
    if temperature == 0:
        top_k, temperature = 1, 1.0
    # The largest is 0 now: divided by the smallest number there is, it is not infinite.
    probabilities = ((ranked - ranked[0]) / temperature).softmax(0)
    if top_k is not None:
        probabilities[top_k:] = 0
        probabilities /= probabilities.sum()
    if top_p < 1:
        before = probabilities.cumsum(0) - probabilities  # what the more probable tokens reach without this one
        probabilities[before >= top_p] = 0
    return torch.zeros_like(probabilities).scatter_(0, order, probabilities / probabilities.sum())


def seeded_generator(seed: int | None) -> torch.Generator:
    """A generator of its own, which leaves torch's alone; ``None`` draws a seed.

    Raises ValueError for a seed that is no 64-bit number.
    """
    if seed is not None and not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed must be in [-2**63, 2**64), got {seed}")
    generator = torch.Generator()
    generator.seed() if seed is None else generator.manual_seed(seed)
    return generator


@torch.inference_mode()
def generate(
    net: nn.Module,
    vocabulary: Vocabulary,
    *,
    prompt: str = "",
    length: int = 500,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    seed: int | None = None,
) -> str:
    """The prompt and ``length`` tokens more, each drawn from the model's prediction after those before it.

    ``<unk>`` is never drawn. An empty prompt stands for a line break. torch's own generator is left alone.

    Args:
        net: maps tokens int64 [T, B] and a state to logits [T, B, V] and the next state.
        seed: the same seed gives the same text; ``None`` draws one.

    Raises:
        ValueError: a length below 0, a seed or a sampling argument out of its range, or predictions that are not
            finite.
    """
    if length < 0:
        raise ValueError(f"length must be at least 0, got {length}")
    generator = seeded_generator(seed)
    device = next(net.parameters()).device
    was_training = net.training
    net.eval()
    try:
        start = _prompt_tokens(prompt, vocabulary)
        logits, state = net(start[:, None].to(device))
        drawn: list[int] = []
        for _ in range(length):
            scores = logits[-1, 0].double().cpu()
            if not scores.isfinite().all():
                raise ValueError("the model's predictions are not finite: its training has diverged")
            scores[0] = -torch.inf
            weights = next_token_distribution(scores, temperature=temperature, top_k=top_k, top_p=top_p)
            drawn.append(int(torch.multinomial(weights, 1, generator=generator)))
            logits, state = net(torch.tensor([[drawn[-1]]], device=device), state)
    finally:
        net.train(was_training)
    if vocabulary.level == "char" or not prompt:
        return prompt + vocabulary.decode(drawn)
    return f"{prompt} {vocabulary.decode(drawn)}"


def _prompt_tokens(prompt: str, vocabulary: Vocabulary) -> Tensor:
    """The prompt's ids, int64 [N], N >= 1; a prompt of words goes on, so its last line does not end."""
    if vocabulary.level == "word":
        start = vocabulary.encode(prompt)[:-1] if prompt.strip() else vocabulary.encode("\n")
        return start if len(start) else vocabulary.encode("\n")
    if prompt:
        return vocabulary.encode(prompt)
    return torch.tensor([vocabulary.ids.get("\n", len(vocabulary) - 1 and 1)])
