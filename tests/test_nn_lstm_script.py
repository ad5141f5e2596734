"""A script written for nn.LSTM, with its import changed and nothing else, on the checkpoint that it trained."""

import pytest
import torch
from testing import assert_close

IMPORT, OURS = "from torch.nn import LSTM", "from lstm_fused import FusedLSTM as LSTM"
SCRIPT = """
import torch
from torch import nn
from torch.nn import LSTM
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class Tagger(nn.Module):
    def __init__(self, num_layers, bidirectional, proj_size):
        super().__init__()
        self.embedding = nn.Embedding(20, 16)
        self.lstm = LSTM(
            16, 24, num_layers, batch_first=True, dropout=0.0, bidirectional=bidirectional, proj_size=proj_size,
            device="cpu", dtype=torch.float32,
        )
        self.directions = 2 if self.lstm.bidirectional else 1
        self.head = nn.Linear(self.directions * (self.lstm.proj_size or self.lstm.hidden_size), 20)
        for name, parameter in self.lstm.named_parameters():
            if name.startswith("weight_hh"):
                nn.init.orthogonal_(parameter)

    def forward(self, tokens, lengths):
        self.lstm.flatten_parameters()
        rows = self.lstm.num_layers * self.directions
        h_0 = torch.zeros(rows, len(tokens), self.lstm.proj_size or self.lstm.hidden_size)
        c_0 = torch.zeros(rows, len(tokens), self.lstm.hidden_size)
        packed = pack_padded_sequence(self.embedding(tokens), lengths, batch_first=True, enforce_sorted=False)
        packed, (h_n, c_n) = self.lstm(packed, hx=(h_0, c_0))
        output, _ = pad_packed_sequence(packed, batch_first=True, total_length=tokens.shape[1])
        return self.head(output), h_n, c_n


def batch():
    lengths = torch.randint(1, 13, (8,))
    tokens = torch.randint(1, 20, (8, 12))
    return tokens * (torch.arange(12) < lengths.unsqueeze(1)), lengths


def train(model, steps):
    # Predict the token before: it has to be remembered.
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(steps):
        tokens, lengths = batch()
        logits, _, _ = model.train()(tokens, lengths)
        before = torch.cat((torch.zeros_like(tokens[:, :1]), tokens[:, :-1]), dim=1)
        loss = nn.functional.cross_entropy(logits[tokens > 0], before[tokens > 0])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.lstm.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses
"""


def script(source):
    names = {"__name__": "script"}
    exec(source, names)
    return names


@pytest.mark.parametrize("proj_size", [0, 10])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_the_import_is_all_that_changes(num_layers, bidirectional, proj_size, tmp_path):
    theirs, ours = script(SCRIPT), script(SCRIPT.replace(IMPORT, OURS))
    arguments = (num_layers, bidirectional, proj_size)
    trained = theirs["Tagger"](*arguments)
    steps, falls_to = (40, 0.9) if arguments == (1, False, 0) else (8, 1.0)
    losses = theirs["train"](trained, steps)
    assert losses[-1] < falls_to * losses[0]
    torch.save({"model": trained.state_dict()}, tmp_path / "checkpoint.pt")

    loaded = ours["Tagger"](*arguments)
    loaded.load_state_dict(torch.load(tmp_path / "checkpoint.pt")["model"])
    assert type(loaded.lstm).__name__ == "FusedLSTM"
    with torch.no_grad():
        for _ in range(4):
            tokens, lengths = theirs["batch"]()
            for got, want in zip(loaded.eval()(tokens, lengths), trained.eval()(tokens, lengths), strict=True):
                torch.testing.assert_close(got, want, rtol=0, atol=1e-5)

    further = []
    for module, model in ((ours, loaded), (theirs, trained)):  # training continues identically
        torch.manual_seed(1)
        further.append(torch.tensor(module["train"](model, 5)))
    assert_close(further[0], further[1], 1e-3)
