"""One wheel, built here, on the oldest and the newest supported torch, and rebuilt against each.

    python tests/compat/run.py

Each torch gets an environment of its own beside the project (.venv-compat-*), kept for the next time; the first time
fetches about 1.5 GB. A torch built for CUDA is installed without its CUDA libraries, with stand-ins in their place.
Where there is nvcc the wheel has the CUDA module, for every architecture, and imports it on either torch.
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

TORCHES = {"oldest": "torch==2.10.*", "newest": "torch"}


def run(*command: str | Path, folder: Path = ROOT, **environment: str) -> str:
    """Standard output; stops the program, showing what the command printed, when it fails."""
    result = subprocess.run(command, cwd=folder, env=os.environ | environment, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"failed: {' '.join(map(str, command))}\n{result.stdout}{result.stderr}")
    return result.stdout


def environment_with(torch: str, name: str) -> Path:
    """An interpreter that can import this torch."""
    folder = ROOT / f".venv-compat-{name}"
    python = folder / "bin" / "python"
    if not python.exists():
        run(sys.executable, "-m", "venv", folder)
    run(python, "-m", "pip", "install", "--upgrade", "--no-deps", torch)
    requires = run(python, "-c", "from importlib.metadata import requires; print(*requires('torch'), sep='\\n')")
    wanted = [line for line in requires.splitlines() if line and not re.match(r"nvidia|cuda|triton", line)]
    run(python, "-m", "pip", "install", *wanted)
    if subprocess.run([python, "-c", "import torch"], capture_output=True).returncode:
        libraries = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
        make_stand_ins(Path(libraries, "torch", "lib"))
    return python


def install_and_test(python: Path, package: Path, elsewhere: Path, cuda: bool) -> None:
    run(python, "-m", "pip", "install", "--force-reinstall", "--no-deps", package, LSTM_FUSED_CUDA=str(int(cuda)))
    print(run(python, HERE / "smoke.py", *["--cuda"] * cuda, folder=elsewhere).strip(), flush=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        elsewhere = Path(scratch)  # away from the sources, so that the installed package is what is imported
        source = elsewhere / "source"
        ignored = shutil.ignore_patterns(".*", "build", "dist", "runs", "*.so", "*.egg-info", "__pycache__")
        shutil.copytree(ROOT, source, ignore=ignored)
        toolkit, version = cuda_toolkit()
        cuda = toolkit is not None
        print("" if cuda else f"the wheel has no CUDA module: {version}", flush=True)
        command = (sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", scratch, source)
        run(*command, LSTM_FUSED_CUDA=str(int(cuda)))
        (wheel,) = elsewhere.glob("*.whl")
        for name, torch in TORCHES.items():
            python = environment_with(torch, name)
            install_and_test(python, wheel, elsewhere, cuda)
            install_and_test(python, source, elsewhere, False)


if __name__ == "__main__":
    main()
