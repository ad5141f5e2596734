"""The LSTM and LSTMCell cases that torch ships for the tests of its own modules, run on ours: every one must pass.

The checks are those that torch runs over every module with these cases. One thing is not held to the letter: an error
has torch's type, but its sentence is ours, which names the argument, what it got and what it wanted.
"""

import io

import pytest
import torch
from testing import TOLERANCE, assert_close, assert_same_bits, strided
from torch import nn

from lstm_fused import FusedLSTM, FusedLSTMCell

pytest.importorskip("expecttest", reason="torch's own test helpers import expecttest")
from torch.testing._internal.common_modules import ModuleErrorEnum, module_db

OURS = {nn.LSTM: FusedLSTM, nn.LSTMCell: FusedLSTMCell}
INFOS = {info.module_cls: info for info in module_db if info.module_cls in OURS}
KINDS = pytest.mark.parametrize("kind", INFOS, ids=lambda kind: kind.__name__)


def cases(kind, device, dtype=torch.float64, training=True, requires_grad=True):
    """Their module, ours with the same weights, and the case, for every case."""
    info = INFOS[kind]
    inputs = info.module_inputs_func(info, device=device, dtype=dtype, requires_grad=requires_grad, training=training)
    assert inputs
    for case in inputs:
        arguments, options = case.constructor_input.args, case.constructor_input.kwargs
        theirs, ours = (
            module(*arguments, **options, device=device, dtype=dtype).train(training) for module in (kind, OURS[kind])
        )
        ours.load_state_dict(theirs.state_dict())
        yield theirs, ours, case


def flat(results):
    """The tensors of nested tuples."""
    return [results] if isinstance(results, torch.Tensor) else [x for part in results for x in flat(part)]


def call(module, case):
    return flat(module(*case.forward_input.args, **case.forward_input.kwargs))


def differentiated(case):
    return [x for x in flat(case.forward_input.args) if x.requires_grad]


def test_there_are_cases_of_both():
    assert INFOS.keys() == OURS.keys()


@KINDS
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_forward(kind, dtype, training, device):
    for theirs, ours, case in cases(kind, device, dtype, training):
        results = call(ours, case)
        assert_close(results, call(theirs, case))
        forward = case.forward_input
        expected = case.reference_fn(ours, *forward.args, **forward.kwargs)
        assert_close(results, flat(expected))


@KINDS
def test_factory_arguments(kind, device):
    """A device and a dtype in the constructor are those of every parameter, also the meta device."""
    for where in (device, "meta"):
        for _, ours, _ in cases(kind, where, torch.float32):
            assert {(p.device.type, p.dtype) for p in ours.parameters()} == {(where, torch.float32)}


@KINDS
def test_first_and_second_derivatives(kind, device):
    for _, ours, case in cases(kind, device):
        leaves, parameters = differentiated(case), dict(ours.named_parameters())

        def function(*values, ours=ours, case=case, parameters=parameters):
            given = iter(values)
            arguments = nested(case.forward_input.args, given)
            weights = dict(zip(parameters, given, strict=True))
            return tuple(flat(torch.func.functional_call(ours, weights, arguments)))

        values = [*leaves, *parameters.values()]
        assert torch.autograd.gradcheck(function, values, fast_mode=True)
        if not getattr(ours, "batch_first", False):  # a mere transpose; half of the time of this test
            assert torch.autograd.gradgradcheck(function, values, fast_mode=True)


def nested(structure, values):
    """``structure`` with its tensors replaced in order."""
    if isinstance(structure, torch.Tensor):
        return next(values)
    return tuple(nested(part, values) for part in structure)


@KINDS
def test_strided_inputs(kind, device):
    """The same results and gradients from inputs that are not contiguous."""
    for _, ours, case in cases(kind, device):
        results = []
        for make in (torch.clone, strided):
            leaves = [make(x.detach()).requires_grad_() for x in differentiated(case)]
            outputs = flat(ours(*nested(case.forward_input.args, iter(leaves))))
            gradients = torch.autograd.grad(sum(x.sum() for x in outputs), [*leaves, *ours.parameters()])
            results.append([*outputs, *gradients])
        assert_close(*results)


@KINDS
def test_saving_and_conversion(kind, device):
    """Pickled whole and as a state dict; to another dtype and back; something to print."""
    for theirs, ours, case in cases(kind, device):
        expected = call(ours, case)
        file = io.BytesIO()
        torch.save((ours, ours.state_dict()), file)
        file.seek(0)
        copy, state = torch.load(file, weights_only=False)
        assert_same_bits(call(copy, case), expected)
        theirs.load_state_dict(state)
        assert_close(call(theirs, case), expected)
        assert_close([x.float() for x in call(ours.float().double(), case)], [x.float() for x in expected], 1e-4)
        assert repr(ours) == repr(theirs).replace(kind.__name__, OURS[kind].__name__)


@KINDS
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_errors(kind, dtype, device):
    info = INFOS[kind]
    errors = info.module_error_inputs_func(info, device=device, dtype=dtype, requires_grad=False, training=True)
    assert errors
    for error in errors:
        constructor, forward = error.module_error_input.constructor_input, error.module_error_input.forward_input
        for module in (kind, OURS[kind]):
            if error.error_on == ModuleErrorEnum.CONSTRUCTION_ERROR:
                with pytest.raises(error.error_type):
                    module(*constructor.args, **constructor.kwargs)
            else:
                made = module(*constructor.args, **{"device": device, "dtype": dtype} | constructor.kwargs)
                with pytest.raises(error.error_type):
                    made(*forward.args, **forward.kwargs)
