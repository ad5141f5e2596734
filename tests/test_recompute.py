"""``recompute``: less is kept for the backward pass; on the CPU the results are the same bits."""

import math

import pytest
import torch
from testing import (
    DTYPES,
    EVERYTHING,
    EVERYTHING_ELSE,
    MODULE_SETS,
    assert_close,
    assert_same_bits,
    label,
    layer_case,
    named_results,
    op_arguments,
    option_sets,
    random,
    recorded,
    run,
)
from torch.nn.utils.rnn import pack_padded_sequence

from lstm_fused import FusedLSTM, ops

# T, B, I, H, and the steps of a segment.
SHAPES = [
    (1, 1, 1, 1, 1),
    (1, 3, 2, 5, 4),
    (5, 1, 3, 4, 1),
    (5, 1, 3, 4, 2),
    (6, 4, 3, 17, 3),
    (7, 4, 3, 8, 3),
    (7, 4, 3, 8, 7),
    (7, 20, 3, 8, 2**62),
    (0, 3, 2, 4, 2),
    (4, 0, 2, 4, 2),
    (0, 0, 2, 4, 1),
]
# Chunks of gate gradients are 256 rows or more: segments within one, across two, and with several chunks in them.
LONG = [(41, 20, 4, 9, 4), (41, 20, 4, 9, 11), (90, 9, 4, 5, 64), (40, 300, 2, 3, 7)]
ALONE = [on for on in option_sets() if len(on) != 2]
PAIRS = [on for on in option_sets() if len(on) == 2]


def both(on, shape, **kinds):
    """Results and gradients with all saved, and with segments."""
    *sizes, steps = shape
    tensors, options = layer_case(on, **dict(zip("TBIH", sizes, strict=True)), **kinds)
    return run(ops.lstm_layer, tensors, options), run(ops.lstm_layer, tensors, options | {"recompute": steps})


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("on", ALONE, ids=label)
def test_same_bits(on, dtype):
    for shape in SHAPES:
        assert_same_bits(*both(on, shape, dtype=dtype))


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("on", PAIRS, ids=label)
def test_same_bits_of_pairs(on):
    assert_same_bits(*both(on, (7, 4, 3, 9, 3)))


@pytest.mark.parametrize("shape", LONG, ids=str)
@pytest.mark.parametrize("on", [(), ("lengths", "reverse", "dropout"), EVERYTHING, EVERYTHING_ELSE], ids=label)
def test_same_bits_of_long_sequences(on, shape):
    assert_same_bits(*both(on, shape, dtype=torch.float32))


def test_same_bits_for_any_number_of_threads():
    tensors, options = layer_case(EVERYTHING, T=41, B=20, I=4, H=9, dtype=torch.float32)
    options |= {"recompute": 6}
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(run(ops.lstm_layer, tensors, options))
    finally:
        torch.set_num_threads(before)
    assert_same_bits(results[1], results[0])
    assert_same_bits(results[2], results[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("on", ALONE, ids=label)
def test_half_precision(on, dtype):
    """The same bits but for weight_hh: hidden states that are computed again were never rounded, as the output is."""
    kept, recomputed = both(on, (7, 4, 3, 17, 3), dtype=dtype)
    assert_close(recomputed.pop("d_weight_hh"), kept.pop("d_weight_hh"))
    assert_same_bits(recomputed, kept)


def test_frozen_inputs_and_weights():
    """Only the requested gradients: without those of the weights, nothing is gathered for them."""
    tensors, options = layer_case(EVERYTHING, T=7, B=4, I=3, H=8)
    for wanted in (("input",), ("h_0", "c_0"), ("weight_hh",)):
        some = {name: x.detach().requires_grad_(name in wanted) if x.is_floating_point() else x
                for name, x in tensors.items()}  # fmt: skip
        assert_same_bits(run(ops.lstm_layer, some, options | {"recompute": 3}), run(ops.lstm_layer, some, options))


def test_backward_twice():
    """What the first backward pass computed again is not needed by the second."""
    tensors, options = layer_case(EVERYTHING, T=7, B=4, I=3, H=8)
    output, *_ = ops.lstm_layer(**tensors, **options, recompute=3)
    first, second = (torch.autograd.grad(output.square().sum(), tensors["weight_hh"], retain_graph=k) for k in (1, 0))
    assert_same_bits(first, second)


def kept_elements(tensors, options):
    """Of the tensors that the op keeps beside its arguments and its output: float32, of half precision too.

    The output is among them only where it is all that is kept of the hidden states.
    """
    given = {x.data_ptr() for x in tensors.values()}
    kept = {}

    def keep(x):
        if x.numel() and x.data_ptr() not in given:
            kept[x.data_ptr()] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        output, *_ = ops.lstm_layer(**tensors, **options)
    kept_output = kept.pop(output.data_ptr(), None)
    assert (kept_output is None) == bool(options.get("recompute") or options.get("dropout"))
    assert {x.dtype for x in kept.values()} == {torch.float32}
    return sum(x.numel() for x in kept.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_kept(dtype):
    """The states between segments, those before the first and after the last too: nothing that a step keeps."""
    T, B, H, steps = 100, 3, 8, 10
    states = 11 * B * 2 * H
    for on, of_a_step in (((), 5 * H), (("layer_norm", "dropout"), 10 * H + 6)):
        tensors, options = layer_case(on, T=T, B=B, I=2, H=H, dtype=dtype)
        assert kept_elements(tensors, options) == T * B * of_a_step
        assert kept_elements(tensors, options | {"recompute": steps}) == states
        assert kept_elements(tensors, options | {"recompute": 2 * T}) == 2 * B * 2 * H


@pytest.mark.parametrize("T", [0, 1, 3, 4, 30, 36])
def test_the_module_keeps_every_kth_state(T, device):
    module = FusedLSTM(3, 5, 2, recompute=True, device=device)
    with recorded() as calls:
        module(torch.zeros(T, 2, 3, device=device))
    assert [options["recompute"] for _, options in calls] == [max(1, math.isqrt(T))] * 2


def test_compiled_the_module_keeps_every_32nd_state():
    """Whatever T: one graph for all."""
    module = FusedLSTM(3, 5, recompute=True)
    graphs = []

    def note(graph, inputs):
        graphs.append([node.kwargs["recompute"] for node in graph.graph.nodes if "recompute" in node.kwargs])
        return graph

    compiled = torch.compile(module, fullgraph=True, backend=note, dynamic=True)
    for T in (5, 40, 100):
        x = torch.randn(T, 2, 3)
        assert_close(compiled(x), module(x))
    assert graphs == [[32]]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", [name for name in MODULE_SETS if name != "recompute"])
def test_modules(name, packed):
    """The same weights with and without: the same bits, of a batch and of a PackedSequence."""
    options = MODULE_SETS[name] | {"num_layers": 2, "bidirectional": True}
    kept, recomputing = FusedLSTM(3, 7, **options), FusedLSTM(3, 7, recompute=True, **options)
    recomputing.load_state_dict(kept.state_dict())
    x = random(11, 4, 3, seed=1).float()
    results = []
    for module in (recomputing, kept):
        leaf = x.clone().requires_grad_()
        given = pack_padded_sequence(leaf, [3, 11, 7, 1], enforce_sorted=False) if packed else leaf
        output, (h_n, c_n) = module(given, seed=3)
        output = output.data if packed else output
        loss = output.square().sum() + h_n.sum() + c_n.sum()
        results.append([output, h_n, c_n, *torch.autograd.grad(loss, [leaf, *module.parameters()])])
    assert_same_bits(*results)


def test_trace_shows_every_step(device):
    module = FusedLSTM(3, 5, 2, dropout=0.3, recompute=True, device=device)
    x = random(9, 2, 3, seed=1).float().to(device)
    traced = module.trace(x, seed=3)
    module.recompute = False
    for got, want in zip(traced[2:], module.trace(x, seed=3)[2:], strict=True):
        assert_same_bits(got, want)
    assert_same_bits([traced.output], [module(x, seed=3)[0]])


def test_the_backward_op_checks_what_was_kept():
    tensors, _ = layer_case((), T=7, B=2, I=3, H=5)
    tensors = {name: x.detach() for name, x in tensors.items()}
    forward, backward = torch.ops.lstm_fused.lstm_layer, torch.ops.lstm_fused.lstm_layer_backward
    results = named_results("lstm_layer", forward(**tensors, recompute=3))
    assert results["hidden"].shape == results["cells"].shape == (4, 2, 5)
    given = tensors | results | {"recompute": 3, "want_input": True, "want_weights": True}
    given |= {f"d_{name}": results[name] for name in ("output", "h_n", "c_n")}

    def run_backward(changed):
        arguments, options = op_arguments("lstm_layer_backward", given | changed)
        return backward(*arguments, **options)

    run_backward({})
    with pytest.raises(RuntimeError, match=r"cells must have shape of the forward pass = \[4, 2, 5\], got \[3, 2, 5\]"):
        run_backward({"cells": results["cells"][1:]})
    with pytest.raises(
        RuntimeError, match=r"hidden must have shape of the forward pass = \[8, 2, 5\], got \[4, 2, 5\]"
    ):
        run_backward({"recompute": 1})


def test_repr():
    assert "recompute=True" in repr(FusedLSTM(3, 5, recompute=True))
    assert "recompute" not in repr(FusedLSTM(3, 5))
