"""The kernels alone, with no torch: their test on every instruction set, in three builds.

    python tests/kernels/run.py [address] [thread] [arm64] [--case NAME]

All three builds when none is named; with --case the cases whose names begin with NAME (--list: all names).

In a fourth, the package's own, the quick tests run it: test_kernels_alone.py.

- address: under the address and undefined-behavior sanitizers;
- thread: under the thread sanitizer, the test's tasks being real threads;
- arm64: cross-compiled and run under an emulator (Debian: g++-aarch64-linux-gnu and qemu-user).

Needs a C++ compiler and nothing else.
"""

import argparse
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "build_backend"))
from lstm_fused_flags import FLAGS, ISAS  # noqa: E402

KERNELS = ROOT / "csrc" / "cpu" / "kernels.cpp"
NEEDS_TORCH = ROOT / "csrc" / "cpu" / "ops.cpp"
CXX = shlex.split(os.environ.get("CXX") or "c++")  # program and options
BUILDS = ("address", "thread", "arm64")
QUICK = ["-O1", "-g"]  # bearable to wait for, with line numbers
CROSS_CXX, EMULATOR = ["aarch64-linux-gnu-g++"], "qemu-aarch64"


def build(name: str, compiler: list[str], isas: dict[str, list[str]], flags: list[str], packaged: bool = False) -> str:
    """Compile and link the test, with the package's own flags and then ``flags``; returns the program's path.

    Unchanged sources, flags and compiler: the last one. ``packaged``: the kernels themselves as they are in the
    package, without ``flags``.
    """
    folder = ROOT / "build" / "kernels" / name
    folder.mkdir(parents=True, exist_ok=True)
    program, stamp = folder / "test_kernels", folder / "state"
    in_place = {isa: built_in_place(isa) if packaged else None for isa in isas}
    others = [*(ROOT / "csrc" / "cpu").glob("*.cpp"), *(ROOT / "tests" / "kernels").glob("*.cpp")]
    link = ["-pthread", "-Wl,--wrap=posix_memalign"]  # the test makes allocations fail
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=True).stdout
    state = hashlib.sha256(repr((compiler, version, FLAGS, isas, flags, packaged, link)).encode())
    headers = [*(ROOT / "csrc").rglob("*.h"), *(ROOT / "tests" / "kernels").glob("*.h")]
    for path in sorted([*others, *headers, *map(Path, filter(None, in_place.values()))]):
        state.update(str(path).encode() + path.read_bytes())
    if program.exists() and stamp.exists() and stamp.read_text() == state.hexdigest():
        return str(program)
    stamp.unlink(missing_ok=True)  # of a build that ends halfway nothing stays

    def compile_object(job: tuple[Path, str, list[str]]) -> str:
        source, stem, extra = job
        target = str(folder / f"{stem}.o")
        command = [*compiler, *FLAGS, *extra, f"-I{ROOT / 'csrc'}", "-c", source, "-o", target]
        subprocess.run(command, check=True)
        return target

    def compile_kernels(isa: str) -> str:
        extra = [*([] if packaged else flags), *isas[isa], f"-DLSTM_FUSED_ISA_NAME={isa}"]
        return in_place[isa] or compile_object((KERNELS, f"kernels-{isa}", extra))

    have = [f"-DLSTM_FUSED_HAVE_{isa.upper()}" for isa in isas]
    jobs = [(source, source.stem, [*flags, *have]) for source in others if source not in (KERNELS, NEEDS_TORCH)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        kernels, rest = pool.map(compile_kernels, isas), pool.map(compile_object, jobs)
        objects = [*kernels, *rest]
    subprocess.run([*compiler, *flags, *objects, *link, "-o", str(program)], check=True)
    stamp.write_text(state.hexdigest())
    return str(program)


def built_in_place(isa: str) -> str | None:
    """The very object that is in the package, which an editable install leaves; None where it is older than a source.

    It takes half a minute of a core to compile.
    """
    path = ROOT / "build" / "editable" / "lstm_fused._ops" / isa / KERNELS.relative_to(ROOT).with_suffix(".o")
    sources = [*(ROOT / "csrc").rglob("*.h"), KERNELS, ROOT / "build_backend" / "lstm_fused_flags.py"]
    newest = max(source.stat().st_mtime for source in sources)
    return str(path) if path.exists() and path.stat().st_mtime > newest else None


def run(name: str, isas: dict[str, list[str]], command: list[str]) -> list[str]:
    """Run the test with each instruction set; returns what failed."""
    failed = []
    for isa in isas:
        print(f"-- {name}, {isa}", flush=True)
        done = subprocess.run(command, env=os.environ | {"LSTM_FUSED_ISA": isa}, stderr=subprocess.PIPE, text=True)
        if "LSTM_FUSED_ISA is" in done.stderr:  # not a failure of the kernels
            print(f"not run: this CPU has no {isa}")
        elif done.returncode:
            print(done.stderr)
            failed.append(f"{name}, {isa}")
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("builds", nargs="*", metavar="BUILD", help=f"of {', '.join(BUILDS)}; all when none is named")
    parser.add_argument("--case", metavar="NAME", help="the cases whose names begin with NAME")
    parser.add_argument("--list", action="store_true", help="the names of all cases, instead of running them")
    chosen = parser.parse_args()
    if unknown := set(chosen.builds) - set(BUILDS):
        parser.error(f"BUILD must be one of {', '.join(BUILDS)}, got {', '.join(sorted(unknown))}")
    wanted = chosen.builds or BUILDS
    cases = ["--case", chosen.case] if chosen.case else []
    if chosen.list:
        return subprocess.run([build("list", CXX, {"baseline": []}, QUICK), "--list"], check=False).returncode
    failed = []
    for name, sanitizers in (("address", "address,undefined"), ("thread", "thread")):
        if name in wanted:
            flags = [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
            failed += run(name, ISAS, [build(name, CXX, ISAS, [*QUICK, *flags]), *cases])
    if "arm64" in wanted:
        missing = [tool for tool in (*CROSS_CXX, EMULATOR) if not shutil.which(tool)]
        if missing:
            print(f"-- arm64\nnot run: {' and '.join(missing)} not found")
        else:
            isas = {"baseline": []}
            program = build("arm64", CROSS_CXX, isas, [*QUICK, "-static"])
            failed += run("arm64", isas, [EMULATOR, program, *cases])
    print(f"the kernels alone: {'failed on ' + '; '.join(failed) if failed else 'passed'}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
