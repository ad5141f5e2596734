"""A tagger of sentences, word by word: a plain ``nn.Module`` that knows nothing of training."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lightning_modules.data.tagging import TaggingBatch
from lightning_modules.models.crf import LinearChainCRF
from lightning_modules.models.recurrent import last_outputs, new_dropout, num_directions, output_size, run_recurrent


class CharacterCNN(nn.Module):
    """A word's spelling as a vector: a convolution over its characters, and each filter's maximum (Ma & Hovy 2016).

    Args:
        num_characters: number of characters known.
        embedding_size: size of a character's embedding.
        hidden_size: number of filters, each three characters wide.
    """

    WIDTH = 3

    def __init__(self, num_characters: int, embedding_size: int, hidden_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_characters, embedding_size)
        self.convolution = nn.Conv1d(embedding_size, hidden_size, self.WIDTH, padding=self.WIDTH // 2)
        self.output_size = hidden_size

    def forward(self, characters: Tensor, lengths: Tensor) -> Tensor:
        """Of words' characters, int64 [L, U], with their lengths [U]: [U, H]."""
        inside = torch.arange(len(characters), device=characters.device)[:, None] < lengths
        embedded = self.embedding(characters) * inside[..., None]
        filtered: Tensor = self.convolution(embedded.permute(1, 2, 0))  # [U, H, L]
        return filtered.masked_fill(~inside.t()[:, None], -torch.inf).amax(-1)


class CharacterRNN(nn.Module):
    """A word's spelling as a vector: the last outputs of a recurrent layer over its characters (Lample et al. 2016).

    Args:
        num_characters: number of characters known.
        embedding_size: size of a character's embedding.
        new_layer: makes the recurrent layer for a given input size.
    """

    def __init__(self, num_characters: int, embedding_size: int, new_layer: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_characters, embedding_size)
        self.layer = new_layer(embedding_size)
        self.output_size = output_size(self.layer, embedding_size)

    def forward(self, characters: Tensor, lengths: Tensor) -> Tensor:
        """Of words' characters, int64 [L, U], with their lengths [U]: [U, H]."""
        output = run_recurrent(self.layer, self.embedding(characters), lengths)
        return last_outputs(output, lengths, num_directions(self.layer))


class Tagger(nn.Module):
    """Scores each label for each word: word embedding and spelling, recurrent layers, and a linear layer.

    Dropout acts on what goes into the recurrent layers and on what comes out; they bring their own.

    Args:
        vocab_size: number of words known, V. Word 0 is the unknown one.
        num_frequent_words: words from this id on were seen once in training.
        num_labels: number of labels, K.
        new_layer: makes the recurrent layer for a given input size.
        embedding_size: size of a word's embedding.
        characters: a :class:`CharacterCNN` or :class:`CharacterRNN`; ``None`` reads no spelling.
        dropout: rate of the dropout above.
        variational: its masks are locked over time.
        unknown_rate: in training, the rate at which a word seen once is taken for unknown, so that the unknown word
            is learned too (Lample et al. 2016).
        crf: scores sequences of labels by these scores; ``None`` takes each label for itself.
    """

    def __init__(
        self,
        vocab_size: int,
        num_frequent_words: int,
        num_labels: int,
        new_layer: Callable[[int], nn.Module],
        *,
        embedding_size: int = 100,
        characters: CharacterCNN | CharacterRNN | None = None,
        dropout: float = 0.5,
        variational: bool = False,
        unknown_rate: float = 0.5,
        crf: LinearChainCRF | None = None,
    ) -> None:
        super().__init__()
        self.num_frequent_words, self.unknown_rate = num_frequent_words, unknown_rate
        self.embedding = nn.Embedding(vocab_size, embedding_size)
        self.characters = characters
        size = embedding_size + (0 if characters is None else characters.output_size)
        self.dropout = new_dropout(dropout, variational)
        self.lstm = new_layer(size)
        self.linear = nn.Linear(output_size(self.lstm, size), num_labels)
        self.crf = crf
        bound = (3 / embedding_size) ** 0.5
        nn.init.uniform_(self.embedding.weight, -bound, bound)
        nn.init.zeros_(self.linear.bias)

    def forward(self, batch: TaggingBatch) -> Tensor:
        """The scores of the labels, [T, B, K]; of no meaning past a sentence's end."""
        words = batch.words
        if self.training and self.unknown_rate:
            seen_once = words >= self.num_frequent_words
            words = words.masked_fill(seen_once & (torch.rand(words.shape, device=words.device) < self.unknown_rate), 0)
        input = self.embedding(words)
        if self.characters is not None:
            spellings = self.characters(batch.characters, batch.character_lengths)
            input = torch.cat((input, spellings[batch.spellings]), -1)
        output = run_recurrent(self.lstm, self.dropout(input), batch.lengths)
        scores: Tensor = self.linear(self.dropout(output))
        return scores

    def decode(self, scores: Tensor, lengths: Tensor) -> list[list[int]]:
        """The likeliest labels of each sentence, of scores [T, B, K]."""
        labels = scores.argmax(-1) if self.crf is None else self.crf.decode(scores, lengths)
        return split_sentences(labels, lengths)


def split_sentences(labels: Tensor, lengths: Tensor) -> list[list[int]]:
    """The sentences of labels [T, B], without what lies past their ends."""
    return [column[:length] for column, length in zip(labels.t().tolist(), lengths.tolist(), strict=True)]
