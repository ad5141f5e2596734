"""``lstm-fused export RUN``: a trained model as a file for other programs, checked, with an example that uses it."""

import copy
import importlib.util
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from lightning_modules.arguments import CommandParser
from lightning_modules.data.base import TaskDataModule
from lightning_modules.inspections.any_length import OfAnyLength
from lightning_modules.loading import load_run
from lightning_modules.runs import run_folder
from lightning_modules.tasks import RecurrentTask
from lightning_modules.tasks.exported import Exported
from lstm_fused import FusedLSTM
from lstm_fused.ops import decompositions

TOLERANCE = 1e-3  # of the largest output, between this program and the file: float32 sums in another order

BEGINNING = '''\
"""Uses the exported model with {needs}: python {script}"""

import json
import sys
from pathlib import Path

import numpy as np
{imports}

about = json.loads(Path(__file__).with_name("about.json").read_text(encoding="utf-8"))
{load}


def model(**inputs):
    return {call}


'''
WITH_ONNX = {
    "needs": "onnxruntime alone",
    "imports": "import onnxruntime",
    "load": 'session = onnxruntime.InferenceSession(Path(__file__).with_name("model.onnx"))',
    "call": "session.run(None, inputs)",
}
WITH_TORCH = {
    "needs": "torch and lstm_fused, without Lightning",
    "imports": "import torch\n\nimport lstm_fused  # noqa: F401  has the kernels that the program calls",
    "load": 'program = torch.export.load(Path(__file__).with_name("model.pt2")).module()',
    "call": "[x.numpy() for x in program(**{name: torch.tensor(x) for name, x in inputs.items()})]",
}
WITH_TORCH_ALONE = WITH_TORCH | {"needs": "torch alone", "imports": "import torch"}


def exportable(module: nn.Module) -> nn.Module:
    """A copy in float32 and eval whose recurrent layers take lengths without a ``PackedSequence``, of any number.

    Raises ValueError where one cannot be.
    """
    module = copy.deepcopy(module).float().eval()
    for parent in list(module.modules()):
        for name, layer in parent.named_children():
            if type(layer) is nn.LSTM:
                setattr(parent, name, FusedLSTM.from_torch(layer).eval())
            elif type(layer) in (nn.GRU, nn.RNN):
                assert isinstance(layer, (nn.GRU, nn.RNN))
                setattr(parent, name, OfAnyLength(layer))
            elif isinstance(layer, nn.RNNBase) and not isinstance(layer, FusedLSTM):
                raise ValueError(
                    f"recurrent must be FusedLSTM, torch's LSTM, GRU or RNN itself, or a layer that takes lengths, to "
                    f"be exported, got {type(layer).__name__}, a {type(layer).__mro__[1].__name__} of its own kind"
                )
    return module.requires_grad_(False)


def dynamic_shapes(found: Exported) -> dict[str, dict[int, Dim]]:
    """Which dimensions of each input may be of any size."""
    dims = {name: Dim(name) for _, names in found.inputs.values() for name in names if name is not None}
    return {
        name: {k: dims[dim] for k, dim in enumerate(names) if dim is not None}
        for name, (_, names) in found.inputs.items()
    }


def smaller(found: Exported) -> dict[str, Tensor]:
    """The inputs of a single sequence of half the length: what the file must also be able to take."""
    steps = {"T": 1, "B": 1}
    for x, names in found.inputs.values():
        if "T" in names:
            steps["T"] = max(1, x.shape[names.index("T")] // 2)
    cut = {}
    for name, (x, names) in found.inputs.items():
        for k, dim in enumerate(names):
            x = x.narrow(k, 0, steps[dim]) if dim in steps else x
        cut[name] = x.clamp(max=steps["T"]) if name == "lengths" else x.contiguous()
    return cut


def compare(found: Exported, run_file: Any) -> float:
    """The largest difference between the run's own net and the file on two batches, in shares of the largest output.

    Raises ValueError where it is more than rounding.
    """
    difference, module = 0.0, copy.deepcopy(found.module).float().eval()
    for inputs in ({name: x for name, (x, _) in found.inputs.items()}, smaller(found)):
        with torch.no_grad():
            wanted = module(**inputs)
        for want, got in zip(wanted, run_file(inputs), strict=True):
            largest = float(want.abs().max()) or 1.0
            difference = max(difference, float((want - got).abs().max()) / largest)
    if not difference < TOLERANCE:
        raise ValueError(f"the exported file must give what the run gives, and differs by {difference:.2g} of it")
    return difference


def write_onnx(module: nn.Module, found: Exported, path: Path) -> float:
    """Writes ``path``, runs it in onnxruntime at two sizes, and returns how far it is from the run."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(
                f"the export to ONNX needs the package '{package}': pip install 'lstm-fused[onnx]'"
            )
    import onnxruntime

    # Of operators that torch would translate, were another package installed.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    torch.onnx.export(
        module,
        (),
        str(path),
        kwargs={name: x for name, (x, _) in found.inputs.items()},
        dynamic_shapes=dynamic_shapes(found),
        input_names=list(found.inputs),
        output_names=found.outputs,
        external_data=False,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(path)

    def run_file(inputs: dict[str, Tensor]) -> list[Tensor]:
        return [torch.from_numpy(x) for x in session.run(None, {name: x.numpy() for name, x in inputs.items()})]

    return compare(found, run_file)


def export_program(module: nn.Module, found: Exported, decomposed: bool) -> ExportedProgram:
    """The module as an exported program: with the package's op, or in torch's own."""
    inputs = {name: x for name, (x, _) in found.inputs.items()}
    with torch.no_grad():
        program = torch.export.export(module, (), inputs, dynamic_shapes=dynamic_shapes(found))
        return program.run_decompositions(decompositions()) if decomposed else program


def write_program(module: nn.Module, found: Exported, path: Path, decomposed: bool) -> tuple[float, bool]:
    """Writes ``path``, loads and runs it at two sizes; how far it is from the run, and whether it has our op in it."""
    exported = export_program(module, found, decomposed)
    torch.export.save(exported, path)
    has_op = any("lstm_fused" in str(node.target) for node in exported.graph.nodes)
    program = torch.export.load(path).module()

    def run_file(inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        with torch.no_grad():
            results: tuple[Tensor, ...] = program(**inputs)
            return results

    return compare(found, run_file), has_op


def export(
    task: RecurrentTask, data: TaskDataModule, output: Path, form: str = "onnx", decomposed: bool = False
) -> str:
    """Writes the task's model, what it needs and an example into ``output``; says what was written.

    Args:
        task: trained.
        data: its data, of which the valid split is read.
        output: a folder.
        form: ``onnx`` or ``torch``.
        decomposed: of ``torch``: in torch's own ops.

    Raises:
        ValueError: the task's layer cannot be exported, or the file does not give what the task gives.
        NotImplementedError: the task does not say how it is exported.
    """
    data.setup("validate")
    found = task.to_export(data)
    module = exportable(found.module)
    output.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if form == "onnx":
            path, script, how = output / "model.onnx", output / "use_onnx.py", WITH_ONNX
            difference = write_onnx(module, found, path)
        else:
            path, script = output / "model.pt2", output / "use_torch.py"
            difference, has_op = write_program(module, found, path, decomposed)
            how = WITH_TORCH if has_op else WITH_TORCH_ALONE
    about = {"inputs": {name: list(names) for name, (_, names) in found.inputs.items()}, "outputs": found.outputs}
    text = json.dumps(about | found.about, ensure_ascii=False, indent=1)
    (output / "about.json").write_text(text + "\n", encoding="utf-8")
    script.write_text(BEGINNING.format(script=script.name, **how) + found.example, encoding="utf-8")
    return (
        f"{path} gives what the run gives, at two sizes, within {difference:.1e} of the largest output.\n"
        f"It needs {how['needs']}; what turns data into its inputs is {output / 'about.json'}, an example {script}"
    )


def run(command: str, arguments: list[str]) -> int:
    parser = CommandParser(
        command,
        "A run's model as a file for other programs, of any batch size and length: ONNX (model.onnx), or a "
        "program of torch.export (model.pt2). Beside it lie what turns data into its inputs (about.json) and an "
        "example that uses it (use_onnx.py, use_torch.py). The file is run and compared with the run at two sizes.",
    )
    parser.add_run()
    parser.add_argument("--format", default="onnx", choices=("onnx", "torch"))
    parser.add_argument(
        "--decompose", action="store_true",
        help="of --format torch: in torch's own ops, so that lstm_fused is not needed; slower",
    )  # fmt: skip
    parser.add_argument("--output", help="the folder to write to; 'export' in the run's if not given")
    options = parser.parse_args(arguments)
    if options.decompose and options.format != "torch":
        raise ValueError(f"format must be torch with decompose, got {options.format}")
    loaded = load_run(options.run, options.checkpoint)
    output = run_folder(loaded.checkpoint) / "export" if options.output is None else Path(options.output).expanduser()
    print(export(loaded.task, loaded.data, output, options.format, options.decompose))
    return 0
