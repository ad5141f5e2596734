"""What code written for nn.LSTM does to a module, done to both: hooks, tying, freezing, clipping, saving, moving."""

import copy
import io
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from testing import assert_close, assert_same_bits, random, recorded
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.rnn import pack_padded_sequence
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lstm_fused import LSTM, FusedLSTM, FusedLSTMCell, LSTMCell

T, B, I, H = 5, 4, 3, 3  # noqa: E741


@pytest.fixture(params=[FusedLSTM, LSTM], ids=lambda kind: kind.__name__)
def pair(request):
    """An nn.LSTM, and ours with the same weights: the class with options, and that which is an nn.LSTM."""

    def make(num_layers=2, **options):
        theirs = nn.LSTM(I, H, num_layers, dtype=torch.float64, **options)
        return theirs, request.param.from_torch(theirs)

    return make


def x(requires_grad=False):
    return random(T, B, I, seed=1).requires_grad_(requires_grad)


def test_weight_tying(pair):
    """Two layers with one weight: one gradient, the sum of both; one tensor in a copy and after a move."""
    results = []
    for module in pair():
        module.weight_hh_l1 = module.weight_hh_l0
        module.weight_ih_l1 = module.weight_ih_l0
        module = copy.deepcopy(module)
        assert module.weight_hh_l1 is module.weight_hh_l0
        output, _ = module(x())
        output.square().sum().backward()
        results.append([output, module.weight_hh_l0.grad, module.weight_ih_l0.grad])
        assert len(list(module.parameters())) == 6
    assert_close(results[1], results[0])


def test_a_weight_may_be_replaced(pair):
    """By another parameter, or by a tensor made from one, as code that drops or normalizes weights does."""
    results = []
    for module in pair(1):
        module.weight_hh_l0 = nn.Parameter(2 * module.weight_hh_l0.detach())
        first = module(x())[0]
        raw = module.weight_hh_l0
        del module.weight_hh_l0
        module.weight_hh_l0 = raw * 0.5
        second = module(x())[0]
        results.append([first, second, *torch.autograd.grad(second.sum(), raw)])
    assert_close(results[1], results[0])


def forgetting(module):
    for names in module._all_weights:
        for name in (name for name in names if "bias" in name):
            bias = getattr(module, name)
            bias.data[len(bias) // 4 : len(bias) // 2].fill_(1)


def test_biases_are_found_as_much_code_finds_them(pair):
    """The forget gate's, through names that are private in nn.LSTM."""
    states = []
    for module in (*pair(bidirectional=True), *pair(bias=False)):
        forgetting(module)
        states.append(module.state_dict())
    assert_same_bits(states[1], states[0])
    assert_same_bits(states[3], states[2])


@pytest.mark.parametrize("options", [{"layer_norm": True, "peephole": True}, {"layer_norm": "carry", "proj_size": 2}])
def test_no_norm_and_no_peephole_is_found_so(options):
    """Those that nn.LSTM has, or that stand in their place: a norm's bias [H] has no forget gate."""
    module = FusedLSTM(I, H, 2, bidirectional=True, forget_bias=0.5, **options)
    untouched = {name: p.clone() for name, p in module.named_parameters() if not name.startswith("bias_ln_ih")}
    carry = options["layer_norm"] == "carry"
    biases = ("bias_ln_ih", "bias_ln_hh") if carry else ("bias_ih", "bias_hh")
    kinds = ("weight_ih", "weight_hh", *biases, *(["weight_hr"] if "proj_size" in options else []))
    suffixes = ("_l0", "_l0_reverse", "_l1", "_l1_reverse")
    assert module._all_weights == [[kind + suffix for kind in kinds] for suffix in suffixes]
    assert module._flat_weights_names == [name for names in module._all_weights for name in names]
    for parameter, name in zip(module._flat_weights, module._flat_weights_names, strict=True):
        assert parameter is module.get_parameter(name)
    assert [list(map(id, of_one)) for of_one in module.all_weights] == [
        [id(module.get_parameter(name)) for name in names] for names in module._all_weights
    ]
    forgetting(module)
    for suffix in suffixes:
        for bias in biases:
            assert (getattr(module, bias + suffix)[H : 2 * H] == 1).all()
        assert not module.get_parameter(f"bias_ln_c{suffix}").any()
    for name, before in untouched.items():
        if not name.startswith(biases):
            assert_same_bits([module.get_parameter(name).detach()], [before])


def test_hooks(pair):
    results = []
    for module in pair():
        seen = []
        module.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
        module.register_forward_hook(lambda module, args, output: (output[0] + 1, output[1]))
        module.register_full_backward_hook(lambda module, into, out: seen.extend([*into, out[0]]))  # noqa: B023
        handle = module.weight_hh_l0.register_hook(lambda gradient: gradient * 3)
        leaf = x(requires_grad=True)
        output, _ = module(leaf)
        output.square().sum().backward()
        handle.remove()
        results.append([output, leaf.grad, module.weight_hh_l0.grad, *seen])
    assert len(results[0]) == 5
    assert_close(results[1], results[0])


def test_gradients_are_clipped_and_applied(pair):
    results = []
    for module in pair():
        optimizer = torch.optim.SGD(module.parameters(), lr=0.5, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            module(x())[0].square().sum().backward()
            norm = nn.utils.clip_grad_norm_(module.parameters(), 0.1)
            optimizer.step()
        results.append([norm, *module.parameters()])
    assert_close(results[1], results[0])


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("options", [{}, {"layer_norm": "carry", "peephole": True}, {"proj_size": 2}], ids=str)
def test_no_two_gradients_are_one_tensor(options, compiled):
    """Scaled in place, each is scaled once."""
    module = FusedLSTM(I, H, 2, **options)
    cell = FusedLSTMCell(I, H, **{name: value for name, value in options.items() if name != "proj_size"})
    for each, input in ((module, x().float()), (cell, x()[0].float())):
        torch.compiler.reset()
        call = torch.compile(each, backend="aot_eager") if compiled else each
        gradients = torch.autograd.grad(call(input.requires_grad_())[0].sum(), [input, *each.parameters()])
        assert len({gradient.untyped_storage().data_ptr() for gradient in gradients}) == len(gradients)


def test_gradients_that_nobody_wants_are_not_computed():
    module = FusedLSTM(I, H, 2, dtype=torch.float64)

    def calls(input):
        with recorded() as record:
            module.zero_grad()
            output, _ = module(input)
            if output.requires_grad:
                output.sum().backward()
        return [
            name + "".join(f" {k}" for k in ("want_input", "want_weights") if options.get(k))
            for name, options in record
        ]

    forward, backward = ["lstm_layer"] * 2, "lstm_layer_backward"
    assert calls(x()) == [*forward, f"{backward} want_input want_weights", f"{backward} want_weights"]
    assert calls(x(True)) == [*forward, *[f"{backward} want_input want_weights"] * 2]
    module.requires_grad_(False)
    assert calls(x()) == ["lstm_layer_inference"] * 2
    assert calls(x(True)) == [*forward, *[f"{backward} want_input"] * 2]
    for name, parameter in module.named_parameters():  # a first layer that stays as it was trained
        parameter.requires_grad_(name.endswith("l1"))
    assert calls(x()) == ["lstm_layer_inference", "lstm_layer", f"{backward} want_weights"]


@pytest.mark.parametrize("frozen", ["weight_hh_l0", "bias_ih_l1", "weight_ih"])
def test_frozen_parameters(frozen, pair):
    results = []
    for module in pair():
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(frozen not in name)
        module(x())[0].square().sum().backward()
        assert all((p.grad is None) == (frozen in name) for name, p in module.named_parameters())
        results.append([p.grad for p in module.parameters() if p.requires_grad])
    assert_close(results[1], results[0])


def test_copies():
    """Pickled, copied, saved: the same numbers, nothing shared, options and mode kept."""
    module = FusedLSTM(I, H, 2, layer_norm=True, zoneout=(0.1, 0.2), recurrent_dropout=0.3, dropout=0.2)
    cell = FusedLSTMCell(I, H, layer_norm=True, zoneout=0.1, dtype=torch.float64).eval()
    drop_ins = (LSTM(I, H, 2, dropout=0.2), x().float()), (LSTMCell(I, H, dtype=torch.float64), x()[0])
    for original, input in ((module, x().float()), (cell, x()[0]), *drop_ins):
        file = io.BytesIO()
        torch.save(original, file)
        file.seek(0)
        copies = [pickle.loads(pickle.dumps(original)), copy.deepcopy(original), torch.load(file, weights_only=False)]
        for made in copies:
            assert repr(made) == repr(original)
            assert made.training == original.training
            assert_same_bits([made(input, seed=3)[0]], [original(input, seed=3)[0]])
            next(made.parameters()).data.zero_()
        assert all(p.abs().sum() > 0 for name, p in original.named_parameters() if name.startswith("weight"))


def test_state_dicts_on_disk(pair):
    """Read back by either, also with weights_only; keys that fit nothing are an error."""
    theirs, ours = pair(bidirectional=True)
    for source, target in ((theirs, ours), (ours, theirs)):
        nn.init.normal_(source.weight_ih_l0)
        file = io.BytesIO()
        torch.save(source.state_dict(), file)
        file.seek(0)
        target.load_state_dict(torch.load(file, weights_only=True))
        assert_close(target(x()), source(x()))
    with pytest.raises(RuntimeError, match="Unexpected key"):
        FusedLSTM(I, H).load_state_dict(ours.state_dict())


def test_moves():
    """to(), double(), half-built on meta and filled in later; gradients and buffers go along."""
    module = FusedLSTM(I, H, 2, layer_norm=True)
    expected = module(x().float())[0]
    assert_close(copy.deepcopy(module).to(torch.float64)(x())[0].float(), expected)
    with torch.device("meta"):
        empty = FusedLSTM(I, H, 2, layer_norm=True)
    shapes, _ = empty(torch.empty(T, B, I, device="meta"))
    assert (shapes.shape, shapes.device.type) == ((T, B, H), "meta")
    filled = empty.to_empty(device="cpu")
    filled.load_state_dict(module.state_dict())
    assert_same_bits([filled(x().float())[0]], [expected])
    assigned = FusedLSTM(I, H, 2, layer_norm=True, device="meta")
    assigned.load_state_dict(module.state_dict(), assign=True)
    assert_same_bits([assigned(x().float())[0]], [expected])


def spectral_and_weight_norm(module):
    nn.utils.parametrizations.spectral_norm(module, "weight_hh_l0")
    nn.utils.parametrizations.weight_norm(module, "weight_ih_l0")


def orthogonal(module):
    nn.utils.parametrizations.orthogonal(module, "weight_hh_l0")


def weight_norm_of_old(module):
    nn.utils.weight_norm(module, "weight_hh_l0")


def pruned(module):
    prune.l1_unstructured(module, "weight_hh_l0", 0.5)
    prune.random_unstructured(module, "bias_ih_l0", 2)


def pruned_for_good(module):
    prune.ln_structured(module, "weight_ih_l0", 0.5, n=2, dim=1)
    prune.remove(module, "weight_ih_l0")
    matrices = [(module, name) for name in module._flat_weights_names if "weight" in name]
    prune.global_unstructured(matrices, prune.L1Unstructured, amount=0.25)
    for _, name in matrices:
        prune.remove(module, name)


class Doubled(nn.Module):
    def forward(self, x):
        return 2 * x

    def right_inverse(self, x):
        return x / 2


def parametrized_for_a_while(module):
    nn.utils.parametrize.register_parametrization(module, "weight_hh_l0", Doubled())
    with nn.utils.parametrize.cached():
        module(x())
    module.weight_hh_l0 = module.weight_hh_l0.detach() * 3
    nn.utils.parametrize.remove_parametrizations(module, "weight_hh_l0")


def swapped(module):
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        before = module.weight_hh_l0
        module.float().double()
        if isinstance(module, FusedLSTM):  # nn.LSTM, with weak references of its own, does not swap what it loads
            module.load_state_dict(module.state_dict())
        assert module.weight_hh_l0 is before
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def a_vector_and_back(module):
    vector = nn.utils.parameters_to_vector(module.parameters())
    nn.utils.vector_to_parameters(vector.detach() * 0.5, module.parameters())


def shared_and_cast(module):
    module.share_memory().half().type(torch.float32).requires_grad_(False).to(torch.float64).requires_grad_(True)


def emptied_and_filled(module):
    state = copy.deepcopy(module.state_dict())
    module.to("meta").to_empty(device="cpu").load_state_dict(state)


def averaged(module):
    average = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    for parameter in module.parameters():
        parameter.data.mul_(1.5)
    average.update_parameters(module)
    module.load_state_dict(average.module.state_dict())


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "change",
    [
        spectral_and_weight_norm,
        orthogonal,
        weight_norm_of_old,
        pruned,
        pruned_for_good,
        parametrized_for_a_while,
        swapped,
        a_vector_and_back,
        shared_and_cast,
        emptied_and_filled,
        averaged,
    ],
)
def test_what_torch_does_to_parameters(change, pair):
    results = []
    for module in pair(1):
        torch.manual_seed(0)
        change(module)
        output, _ = module.eval()(x())
        output.square().sum().backward()
        results.append([output, *(p.grad for p in module.parameters())])
    assert_close(results[1], results[0])


def test_initialization_is_skipped():
    """By torch's own function, which nn.LSTM is too old for."""
    for kind in (FusedLSTM, LSTM, FusedLSTMCell, LSTMCell):
        before = torch.get_rng_state()
        module = nn.utils.skip_init(kind, I, H, dtype=torch.float64)
        assert torch.equal(torch.get_rng_state(), before)
        assert module.bias_ih_l0.shape == (4 * H,) if hasattr(module, "num_layers") else module.bias_ih.is_cpu


def test_functional_call(pair):
    """With other weights, differentiated with respect to them, and with a parameter that is tied."""
    results = []
    for module in pair():
        weights = {name: (2 * p).detach().requires_grad_() for name, p in module.named_parameters()}
        before = copy.deepcopy(module.state_dict())
        output, _ = torch.func.functional_call(module, weights, (x(),))
        results.append([output, *torch.autograd.grad(output.square().sum(), list(weights.values()))])
        assert_same_bits(module.state_dict(), before)
    assert_close(results[1], results[0])


def test_backward_in_eval(pair):
    """Gradients need no training mode (cuDNN's do); zoneout then is its expected value."""
    results = []
    for module in pair():
        module.eval()
        leaf = x(requires_grad=True)
        results.append(torch.autograd.grad(module(leaf)[0].square().sum(), [leaf, *module.parameters()]))
    assert_close(results[1], results[0])


def test_deterministic_algorithms():
    """Everything is deterministic already: the mode changes no bit and refuses nothing."""
    module = FusedLSTM(I, H, 2, layer_norm=True, dropout=0.3, recurrent_dropout=0.2, bidirectional=True)

    def step():
        packed = pack_padded_sequence(x().float(), [5, 2, 1, 3], enforce_sorted=False)
        output, _ = module(packed, seed=5)
        return [output.data, *torch.autograd.grad(output.data.square().sum(), list(module.parameters()))]

    expected = step()
    torch.use_deterministic_algorithms(True)
    try:
        assert_same_bits(step(), expected)
    finally:
        torch.use_deterministic_algorithms(False)


def test_inference_mode(pair):
    """States made in it carry on in it; outside they are refused as by any module."""
    theirs, ours = pair()
    with torch.inference_mode():
        output, state = ours(x())
        assert output.is_inference()
        assert_close(ours(x(), state), theirs(x(), theirs(x())[1]))
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
        ours(x(), state)


def test_threads_of_the_caller():
    """One module called by many at a time, as a server does."""
    module = FusedLSTM(32, 64, 2, layer_norm=True, recurrent_dropout=0.2)
    inputs = [random(20, 8, 32, seed=k).float() for k in range(4)]

    def step(input):
        output, _ = module(input, seed=1)
        return [output, *torch.autograd.grad(output.square().sum(), list(module.parameters()))]

    expected = [step(input) for input in inputs]
    with ThreadPoolExecutor(4) as pool:
        for got, want in zip(pool.map(step, inputs * 5), expected * 5, strict=True):
            assert_same_bits([g.detach() for g in got], [w.detach() for w in want])


def test_a_subclass_of_tensor_goes_through(pair):
    class Labeled(torch.Tensor):
        pass

    for module in pair():
        assert type(module(x().as_subclass(Labeled))[0]) is Labeled


def test_subclasses():
    """Which call the constructor and forward of what they extend, and initialize in their own way."""
    results = []
    for kind in (nn.LSTM, FusedLSTM, LSTM):

        class Extended(kind):
            def __init__(self, *arguments, **options):
                super().__init__(*arguments, **options)
                self.head = nn.Linear(self.hidden_size, 2, dtype=torch.float64)
                nn.init.ones_(self.head.weight)
                nn.init.zeros_(self.head.bias)

            def reset_parameters(self):
                for name, parameter in self.named_parameters():
                    nn.init.constant_(parameter, 0.3 if "ih" in name else -0.2)

            def forward(self, input, hx=None):
                output, state = super().forward(input, hx)
                return self.head(output), state

        results.append(Extended(I, H, num_layers=2, dtype=torch.float64)(x()))
    assert_close(results[1], results[0])
    assert_close(results[2], results[0])


def test_a_container_can_hold_it():
    """apply(), named_modules(), requires_grad_(), half of a Sequential."""

    class First(nn.Module):
        def forward(self, pair):
            return pair[0]

    model = nn.Sequential(FusedLSTM(I, H), First(), nn.Linear(H, 2)).double()
    model.apply(lambda module: module.reset_parameters() if isinstance(module, FusedLSTM) else None)
    assert model(x()).shape == (T, B, 2)
    assert next(name for name, _ in model.named_parameters()) == "0.weight_ih_l0"


@pytest.mark.parametrize("kind", [FusedLSTM, LSTM], ids=lambda kind: kind.__name__)
def test_a_module_pickled_with_an_attribute_per_option(kind):
    """As of before the options had a dataclass."""
    options = {"layer_norm": True, "zoneout": (0.1, 0.2)} if kind is FusedLSTM else {}
    module = kind(3, 5, **options).eval()
    state = dict(module.__dict__)
    for name in ("_options", "_op_arguments", "_has_masks"):
        del state[name]
    again = kind.__new__(kind)
    again.__setstate__(state | options)
    assert repr(again) == repr(module)
    x = torch.randn(4, 2, 3)
    assert_same_bits(again(x)[:1], module(x)[:1])
