"""The wheel of `make wheel` on the oldest and the newest supported torch, with no compiler; and the sources there.

    python tests/compat/run.py WHEEL

The oldest torch runs on the oldest Python found here, the newest on the newest. Each torch gets an environment of its
own beside the project (.venv-compat-*), kept for the next time; the first time fetches about 1.5 GB. A torch built for
CUDA is installed without its CUDA libraries, with stand-ins in their place. Where there is nvcc, another wheel has the
CUDA module, for every architecture, and imports it on either torch.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from cuda_stand_ins import make_stand_ins

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT / "build_backend"))
from lstm_fused_build import cuda_toolkit  # noqa: E402

PYTHONS = ["python3.10", "python3.11", "python3.12", "python3.13", "python3.14"]
TORCHES = {"oldest": "torch==2.10.*", "newest": "torch"}


def run(*command: str | Path, folder: Path = ROOT, **environment: str) -> str:
    """Standard output; stops the program, showing what the command printed, when it fails."""
    result = subprocess.run(command, cwd=folder, env=os.environ | environment, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"failed: {' '.join(map(str, command))}\n{result.stdout}{result.stderr}")
    return result.stdout


def pythons() -> list[str]:
    """The interpreters on PATH that run, by their version; at least this one."""
    on_path = [name for name in PYTHONS if shutil.which(name)]
    return [name for name in on_path if subprocess.run([name, "-c", ""], capture_output=True).returncode == 0] or [
        sys.executable
    ]


def environment_with(torch: str, name: str, interpreter: str) -> Path:
    """An interpreter that can import this torch."""
    folder = ROOT / f".venv-compat-{name}"
    python = folder / "bin" / "python"
    if not python.exists():
        run(interpreter, "-m", "venv", folder)
    run(python, "-m", "pip", "install", "--upgrade", "--no-deps", torch)
    requires = run(python, "-c", "from importlib.metadata import requires; print(*requires('torch'), sep='\\n')")
    wanted = [line for line in requires.splitlines() if line and not re.match(r"nvidia|cuda|triton", line)]
    run(python, "-m", "pip", "install", *wanted)
    if subprocess.run([python, "-c", "import torch"], capture_output=True).returncode:
        libraries = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
        make_stand_ins(Path(libraries, "torch", "lib"))
    return python


def install_and_test(python: Path, package: Path, elsewhere: Path, cuda: bool = False, **environment: str) -> None:
    run(python, "-m", "pip", "install", "--force-reinstall", "--no-deps", package, LSTM_FUSED_CUDA="0", **environment)
    print(run(python, HERE / "smoke.py", *["--cuda"] * cuda, folder=elsewhere, **environment).strip(), flush=True)


def install_as_a_user(python: Path, wheel: Path, elsewhere: Path) -> None:
    """With nothing on PATH but the environment's programs: the wheel needs no compiler, and neither does training."""
    path = str(python.parent)
    run(python, "-m", "pip", "install", f"{wheel}[train]", PATH=path)
    install_and_test(python, wheel, elsewhere, PATH=path)
    assert run(python, "-c", "import lstm_fused; print(lstm_fused.build_info()['pybind11'])", folder=elsewhere) == "\n"
    command = (python.with_name("lstm-fused"), "fit", "-c", "char_lm", "--trainer.max_steps=2", "--runs", "runs")
    run(*command, folder=elsewhere, PATH=path)
    print(f"lstm-fused fit with {wheel.name} on {run(python, '-VV').strip()}", flush=True)


def main() -> None:
    wheel = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as scratch:
        elsewhere = Path(scratch)  # away from the sources, so that the installed package is what is imported
        source = elsewhere / "source"
        ignored = shutil.ignore_patterns(".*", "build", "dist", "runs", "*.so", "*.egg-info", "__pycache__")
        shutil.copytree(ROOT, source, ignore=ignored)
        toolkit, version = cuda_toolkit()
        if toolkit:
            option = "-C=--build-option=--py-limited-api=cp310"
            command = (sys.executable, "-m", "build", "--wheel", "--no-isolation", option, "--outdir", scratch, source)
            run(*command, LSTM_FUSED_CUDA="1")
        else:
            print(f"no wheel with the CUDA module: {version}", flush=True)
        for (name, torch), interpreter in zip(TORCHES.items(), (pythons()[0], pythons()[-1]), strict=True):
            python = environment_with(torch, name, interpreter)
            install_as_a_user(python, wheel, elsewhere)
            for with_cuda in elsewhere.glob("*.whl"):
                install_and_test(python, with_cuda, elsewhere, cuda=True)
            install_and_test(python, source, elsewhere)


if __name__ == "__main__":
    main()
