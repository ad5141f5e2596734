"""The ops as torch's machinery sees them: opcheck, torch.compile, torch.export, checkpointing, meta tensors."""

import copy
import io
import warnings
from functools import partial

import pytest
import torch
from testing import (
    EVERYTHING,
    EVERYTHING_ELSE,
    NOT_OF_A_CELL,
    TOLERANCE,
    assert_close,
    assert_same_bits,
    cell_case,
    label,
    layer_case,
    of_peer,
    random,
    recorded,
)
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from lstm_fused import FusedLSTM, FusedLSTMCell, ops

OPS = torch.ops.lstm_fused
OPTION_SETS = [(), ("initial_state", "lengths", "reverse"), ("layer_norm", "dropout"), EVERYTHING, EVERYTHING_ELSE]
OPTION_SETS += [("recompute",), (*EVERYTHING_ELSE, "recompute")]
DEFAULTS = {
    "reverse": False,
    "dropout": 0.0,
    "variational": False,
    "recompute": 0,
    "recurrent_dropout": 0.0,
    "candidate_dropout": 0.0,
    "weight_dropout": 0.0,
    "zoneout_h": 0.0,
    "zoneout_c": 0.0,
    "open_gates": 0,
    "training": True,
    "eps": 1e-5,
    "stream": 0,
}
CELL_DEFAULTS = {"step": 0} | {name: value for name, value in DEFAULTS.items() if name not in NOT_OF_A_CELL}
TENSORS = (
    "input", "h_0", "c_0", "weight_ih", "weight_hh", "bias_ih", "bias_hh",
    "weight_ln_ih", "weight_ln_hh", "weight_ln_c", "bias_ln_c", "bias_ln_ih", "bias_ln_hh",
    "weight_hr", "weight_ci", "weight_cf", "weight_co", "lengths", "reset", "seed",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _nothing_compiled():
    torch.compiler.reset()


def layer_arguments(on, **sizes):
    """As the ops themselves take them: every tensor by position, every option by name."""
    tensors, options = layer_case(on, **sizes)
    return tuple(tensors.get(name) for name in TENSORS), DEFAULTS | options


def cell_arguments(on, **sizes):
    tensors, options = cell_case(set(on) - NOT_OF_A_CELL, **sizes)
    return tuple(tensors.get(name) for name in TENSORS if name != "lengths"), CELL_DEFAULTS | options


def detached(tensors):
    return tuple(x if x is None else x.detach() for x in tensors)


def test_every_op_is_checked_here():
    """A new op must come into these tests."""
    names = {s.name.split("::")[1] for s in torch._C._jit_get_all_schemas() if s.name.startswith("lstm_fused::")}
    forward = {"lstm_layer", "lstm_cell"}
    assert names == {f"{name}{kind}" for name in forward for kind in ("", "_inference", "_backward")} | {
        "lstm_cell_plain"
    }


@pytest.mark.parametrize("on", OPTION_SETS, ids=label)
@pytest.mark.parametrize("name", ["lstm_layer", "lstm_cell"])
def test_opcheck(name, on, device):
    """Schema, fake kernel, autograd registration, and AOT dispatch with dynamic shapes, of the three ops of a kind."""
    arguments = layer_arguments if name == "lstm_layer" else cell_arguments
    tensors, options = arguments(on, device=device)
    torch.library.opcheck(getattr(OPS, name), tensors, options)
    torch.library.opcheck(getattr(OPS, f"{name}_inference"), detached(tensors), options)
    results = getattr(OPS, name)(*detached(tensors), **options)
    count = 3 if name == "lstm_layer" else 2
    saved = (results[0], *results[count:]) if name == "lstm_layer" else results[count:]
    gradients = tuple(torch.ones_like(x) for x in results[:count])
    for want in ({"want_input": True, "want_weights": True}, {"want_input": False, "want_weights": False}):
        call = (*gradients, *detached(tensors), *saved)
        torch.library.opcheck(getattr(OPS, f"{name}_backward"), call, options | want)


@pytest.mark.parametrize("on", [(), ("no_bias", "initial_state")], ids=label)
def test_opcheck_of_the_plain_step(on, device):
    """The op of a step without options: checked as the others, and the same bits as the op with them."""
    tensors, options = cell_arguments(on, device=device)
    torch.library.opcheck(OPS.lstm_cell_plain, detached(tensors)[:7])
    assert_same_bits(
        OPS.lstm_cell_plain(*detached(tensors)[:7]), OPS.lstm_cell_inference(*detached(tensors), **options)
    )


def example(device, dtype=torch.float32, **options):
    module = FusedLSTM(3, 5, 2, bidirectional=True, dtype=dtype, device=device, **options)
    return module, random(6, 4, 3, seed=1).to(device, dtype)


OPTIONS = {
    "plain": {},
    "regularized": {"layer_norm": True, "dropout": 0.2, "recurrent_dropout": 0.2, "zoneout": 0.1},
    "others": {
        "layer_norm": "carry",
        "proj_size": 2,
        "dropout": 0.2,
        "variational": True,
        "recurrent_dropout": 0.2,
        "recurrent_dropout_on": "candidate",
        "zoneout": (0.0, 0.1),
        "weight_dropout": 0.3,
        "peephole": True,
        "open_gates": "i",
    },
    "recomputed": {"layer_norm": True, "dropout": 0.2, "recurrent_dropout": 0.2, "recompute": True},
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_compile_whole_graph(options, training, device):
    """One graph, no break; the same results and gradients for the same seed."""
    module, x = example(device, **options)
    module.train(training)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    given = {
        "lengths": torch.tensor([6, 2, 5, 0], device=device),
        "reset": (random(6, 4, seed=2) > 0.8).to(device),
        "seed": torch.tensor(5, device=device),
    }
    results = []
    for call in (compiled, module):
        output, (h_n, c_n) = call(x, **given)
        gradients = torch.autograd.grad(output.square().sum() + h_n.sum() + c_n.sum(), list(module.parameters()))
        results.append([output, h_n, c_n, *gradients])
    assert_close(*results)
    with torch.no_grad():
        assert_close(compiled(x, **given), module(x, **given))


def test_compile_draws_seeds(device):
    """Without a seed every call of the compiled module draws one, from torch's generator."""
    module, x = example(device, recurrent_dropout=0.5)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.manual_seed(1)
    first, second = compiled(x)[0], compiled(x)[0]
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    assert_close(compiled(x)[0], first)


def test_compile_with_dynamic_sizes(device):
    module, _ = example(device, **OPTIONS["regularized"])
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    for T, B in [(4, 3), (7, 2), (5, 6)]:
        x = random(T, B, 3, seed=1).float().to(device)
        seed = torch.tensor(T, device=device)
        assert_close(compiled(x, seed=seed), module(x, seed=seed))


GIVEN = {
    "input": lambda T, B: {},
    "state": lambda T, B: {"hx": (random(2, B, 5, seed=2).float(), random(2, B, 5, seed=3).float())},
    "lengths": lambda T, B: {"lengths": torch.arange(B) % T + 1},
    "reset": lambda T, B: {"reset": random(T, B, seed=2) > 0.8},
    "seed": lambda T, B: {"seed": 100 * T + B},
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN)
def test_new_sizes_hardly_ever_compile_anew(given, training, device):
    """20 different (T, B): the first as they are, the second with dynamic sizes, which serve all others."""
    module = FusedLSTM(3, 5, num_layers=2, device=device, **OPTIONS["regularized"]).train(training)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, fullgraph=True, backend=counter)
    for k in range(20):
        T, B = 2 + k, 2 + (7 * k) % 20
        arguments = {"input": random(T, B, 3, seed=1).float()} | given(T, B)
        with torch.set_grad_enabled(training):
            output, _ = compiled(**tree_map_only(torch.Tensor, lambda x: x.to(device), arguments))
        assert output.shape == (T, B, 5)
        if training:
            output.sum().backward()
    assert counter.frame_count <= 3  # one compilation and at most two more


def test_new_steps_hardly_ever_compile_anew(device):
    cell = FusedLSTMCell(3, 5, zoneout=0.2, device=device)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(cell, fullgraph=True, backend=counter)
    state = expected = None
    for step, x in enumerate(random(20, 4, 3, seed=1).float().to(device)):
        state, expected = (call(x, hx, seed=3, step=step) for call, hx in ((compiled, state), (cell, expected)))
        assert_close(state, expected)
    assert counter.frame_count <= 3  # the first has no state


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_compile_with_inductor(options, device):
    module, x = example(device, **options)
    compiled = torch.compile(module, fullgraph=True)
    seed = torch.tensor(5, device=device)
    results = []
    for call in (compiled, module):
        output, _ = call(x, seed=seed)
        results.append([output, *torch.autograd.grad(output.square().sum(), list(module.parameters()))])
    assert_close(*results)


def test_compile_cell(device):
    cell = FusedLSTMCell(3, 5, layer_norm=True, zoneout=0.2, device=device)
    compiled = torch.compile(cell, fullgraph=True, backend="aot_eager")
    x, seed = random(4, 3, seed=1).float().to(device), torch.tensor(2, device=device)
    assert_close(compiled(x, seed=seed), cell(x, seed=seed))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_export_with_dynamic_sizes(options, device):
    module, x = example(device, **options)
    module.eval()
    T, B = torch.export.Dim("T", min=2, max=1000), torch.export.Dim("B", min=2, max=1000)
    program = torch.export.export(module, (x,), dynamic_shapes={"input": {0: T, 1: B}})
    longer = random(9, 2, 3, seed=2).float().to(device)
    assert_close(program.module()(longer), module(longer))


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_program_is_saved_and_trained(strict, device):
    """In training, too: the program draws masks, and its gradients are those of the module."""
    module, x = example(device, **OPTIONS["regularized"], batch_first=True)
    sizes = {"input": {0: torch.export.Dim("B", max=1000), 1: torch.export.Dim("T", max=1000)}}
    file = io.BytesIO()
    torch.export.save(torch.export.export(module, (x,), dynamic_shapes=sizes, strict=strict), file)
    file.seek(0)
    program = torch.export.load(file).module()
    for B, T in ((9, 2), (1, 1)):
        other, results = random(B, T, 3, seed=2).float().to(device), []
        for call in (program, module):
            torch.manual_seed(3)
            output, (h_n, _) = call(other)
            gradients = torch.autograd.grad(output.square().sum(), list(call.parameters()), materialize_grads=True)
            results.append([output, h_n, *gradients])
        assert_close(*results)


@pytest.mark.slow
def test_ahead_of_time_compilation(tmp_path):
    """AOTInductor: a package that calls the op, at any sizes."""
    module, x = example("cpu", **OPTIONS["regularized"])
    sizes = {"input": {0: torch.export.Dim("T", min=1, max=1000), 1: torch.export.Dim("B", min=1, max=1000)}}
    program = torch.export.export(module.eval(), (x,), dynamic_shapes=sizes)
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
    other = random(9, 2, 3, seed=2).float()
    with torch.no_grad():
        assert_close(torch._inductor.aoti_load_package(path)(other), module(other))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_jit_trace(options, training, device):
    """Traced, saved and read again: any sizes, new masks in every call, gradients; torch's own check finds no fault."""
    module, x = example(device, **options)
    module.train(training)
    random_masks = training and options != {}  # with which no two runs are the same
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and our checks look at sizes
        file = io.BytesIO()
        torch.jit.save(torch.jit.trace(module, x, check_trace=not random_masks), file)
        file.seek(0)
        traced = torch.jit.load(file)
    other = random(9, 2, 3, seed=2).float().to(device)
    results = []
    for call in (traced, module):
        torch.manual_seed(1)
        output, (h_n, _) = call(other)
        results.append([output, h_n, *torch.autograd.grad(output.square().sum(), list(call.parameters()))])
    assert_close(*results)


@pytest.mark.parametrize("kind", ["layer", "cell"])
def test_jit_trace_without_gradients(kind, device):
    """What was traced so can be trained all the same."""
    if kind == "layer":
        module, x = example(device)
        arguments = (x,)
    else:
        module = FusedLSTMCell(3, 5, device=device)
        arguments = (random(4, 3, seed=1).float().to(device), (torch.zeros(4, 5, device=device),) * 2)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(module, arguments)
    weight = next(module.parameters())
    assert_close(*([torch.autograd.grad(call(*arguments)[0].sum(), weight)[0]] for call in (traced, module)))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_recomputes_the_same_masks(use_reentrant, options, device):
    module, x = example(device, **options)
    x.requires_grad_()
    torch.manual_seed(4)
    output = checkpoint(lambda x: module(x)[0], x, use_reentrant=use_reentrant)
    actual = torch.autograd.grad(output.square().sum(), x) if not use_reentrant else None
    if use_reentrant:  # which works with backward() only
        output.square().sum().backward()
        actual = (x.grad,)
    torch.manual_seed(4)
    assert_same_bits(actual, torch.autograd.grad(module(x)[0].square().sum(), x))


def test_meta_tensors():
    """Shapes without numbers."""
    tensors, options = layer_case(EVERYTHING, T=3, B=2, H=5)
    output, h_n, c_n = ops.lstm_layer(**{name: x.to("meta") for name, x in tensors.items()}, **options)
    assert output.is_meta
    assert (output.shape, h_n.shape, c_n.shape) == ((3, 2, 5), (2, 5), (2, 5))


def test_selective_checkpointing():
    """What a policy keeps of the ops is not computed again."""
    module, x = example("cpu", **OPTIONS["regularized"])

    def policy(context, op, *arguments, **options):
        ours = op.namespace == "lstm_fused"
        return CheckpointPolicy.MUST_SAVE if ours else CheckpointPolicy.PREFER_RECOMPUTE

    contexts = partial(create_selective_checkpoint_contexts, policy)
    results = []
    with recorded() as calls:
        for call in (module, lambda x: checkpoint(module, x, use_reentrant=False, context_fn=contexts)):
            torch.manual_seed(4)
            output, _ = call(x)
            results.append(torch.autograd.grad(output.square().sum(), list(module.parameters())))
    assert_same_bits(*results)
    assert [name for name, _ in calls].count("lstm_layer") == 2 * 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_training_with_a_gradient_scaler(dtype):
    """Around the LSTM nothing but sums and products of elements, which torch has in half precision on every CPU."""
    lstm, head = FusedLSTM(3, 5, 2, layer_norm=True), torch.nn.Parameter(torch.ones(5))
    parameters = [*lstm.parameters(), head]
    optimizer, scaler = torch.optim.SGD(parameters, lr=0.1), torch.amp.GradScaler("cpu")
    x, losses = random(6, 4, 3, seed=1).float(), []
    for _ in range(40):  # the first few only lower the scale
        with torch.autocast("cpu", dtype):
            loss = ((lstm(x)[0] * head).float().sum(-1) - x.cumsum(0)[..., 0]).square().mean()
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("steps", [0, 1, 3, 7, 100])
@pytest.mark.parametrize("T", [0, 1, 7, 9])
def test_fake_tensors_of_what_is_kept(T, steps, dtype):
    """Shapes and types are those of the tensors that the kernel makes."""
    tensors, _ = layer_case(("projection", "dropout"), T=T, B=2, H=5, dtype=dtype)
    given = detached(tensors.get(name) for name in TENSORS)
    options = {"dropout": 0.3, "recompute": steps}
    real = OPS.lstm_layer(*given, **options)
    with FakeTensorMode() as mode:
        fake = OPS.lstm_layer(*(x if x is None else mode.from_tensor(x) for x in given), **options)
    assert [(x.shape, x.dtype) for x in fake] == [(x.shape, x.dtype) for x in real]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(options, dtype):
    """What a layer in autocast's dtype gives, to weights and inputs of whatever dtype; a cell's step is in float32."""
    lstm = FusedLSTM(5, 7, num_layers=2, **options).eval()
    half, step = copy.deepcopy(lstm).to(dtype), FusedLSTMCell(5, 7)
    x = random(4, 3, 5, seed=1).float()
    for given in (x, x.to(dtype), x.to(torch.bfloat16)):
        given = given.requires_grad_()
        lstm.zero_grad()
        half.zero_grad()
        with torch.autocast("cpu", dtype):
            got, state = lstm(given)
            cell = step(given[0])
            primal, _ = torch.func.jvp(step, (given.detach()[0],), (given.detach()[0],))
        want, _ = half(given.to(dtype))
        assert_same_bits(cell, step(given[0].float()))
        torch.testing.assert_close(primal, cell, rtol=1e-6, atol=1e-6)
        assert {y.dtype for y in (got, *state)} == {dtype}
        assert {y.dtype for y in cell} == {torch.float32}
        assert_same_bits([got], [want])
        got.sum().backward()
        want.sum().backward()
        for mine, theirs in zip(lstm.parameters(), half.parameters(), strict=True):
            assert mine.grad.dtype == torch.float32
            assert_same_bits([mine.grad.to(dtype)], [theirs.grad])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("ours", "theirs"), [(FusedLSTM, nn.LSTM), (FusedLSTMCell, nn.LSTMCell)], ids=["layer", "cell"]
)
def test_autocast_is_that_of_nn_lstm(ours, theirs, dtype):
    """The dtypes of the results; their numbers, of both, are those of float64. nn.LSTM's where it has autocast."""
    x = random(4, 3, 5, seed=1)
    x, kept = (x, dtype) if ours is FusedLSTM else (x[0], torch.float32)
    exact = theirs(5, 7, dtype=torch.float64)
    expected = [y.detach() for y in tree_leaves(exact(x))]

    def results(kind):
        module = kind(5, 7)
        module.load_state_dict(exact.state_dict())
        with torch.autocast("cpu", dtype):
            return tree_leaves(module(x.float()))

    mine, peer = results(ours), of_peer(lambda: results(theirs))
    assert [y.dtype for y in mine] == [kept] * len(mine)
    assert_close([y.detach().double() for y in mine], expected, TOLERANCE[dtype])
    if peer is None:
        pytest.skip(f"ours is right; {theirs.__name__} has no autocast to {dtype} on this CPU to compare it with")
    assert [y.dtype for y in mine] == [y.dtype for y in peer]
    assert_close([y.detach().double() for y in peer], expected, TOLERANCE[dtype])


def test_forward_mode_derivatives():
    lstm = FusedLSTM(3, 4, layer_norm=True, dtype=torch.float64)
    x, v = torch.randn(2, 5, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    _, got = torch.func.jvp(lambda x: lstm(x)[0], (x,), (v,))
    eps = 1e-6
    want = (lstm(x + eps * v)[0] - lstm(x - eps * v)[0]) / (2 * eps)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-8)


def test_what_is_kept_for_backward_is_not_differentiable():
    x, h, w = torch.randn(2, 1, 3), torch.zeros(1, 3), torch.randn(12, 3, requires_grad=True)
    results = torch.ops.lstm_fused.lstm_layer(x, h, h, w, w)
    assert [result.requires_grad for result in results] == [True] * 3 + [False] * 5
