"""Empty stand-ins for the CUDA libraries that a CUDA build of torch is linked with, so that it imports without them.

Only for testing the CPU ops: torch for CUDA is up to one gigabyte, the libraries it asks for are three more. Every
function of a stand-in returns 100, cudaErrorNoDevice. Linux only; needs a C compiler, readelf and nm.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

CUDA_LIBRARY = re.compile(r"lib(cu|nv|nccl)")
CUDA_FUNCTION = re.compile(r"(__)?(cu|nv|nccl)", re.IGNORECASE)


def output_of(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def make_stand_ins(folder: Path) -> list[str]:
    """Write into torch's own library folder the CUDA libraries that its other libraries need; returns their names."""
    needed: set[str] = set()
    versions: dict[str, list[str]] = {}  # of the symbols, by library
    functions: set[str] = set()
    for library in folder.glob("*.so*"):
        if CUDA_LIBRARY.match(library.name):
            continue  # a stand-in
        needed.update(re.findall(r"\(NEEDED\).*\[(.+)\]", output_of("readelf", "-d", library)))
        asked = output_of("readelf", "-VW", library)
        for name, entries in re.findall(r"File: (\S+) .*\n((?: +0x\w+: +Name:.*\n)+)", asked):
            versions.setdefault(name, []).extend(re.findall(r"Name: (\S+)", entries))
        undefined = re.findall(r" U (\w+)", output_of("nm", "-D", library))
        functions.update(filter(CUDA_FUNCTION.match, undefined))
    names = sorted(filter(CUDA_LIBRARY.match, needed))
    with tempfile.TemporaryDirectory() as scratch:
        source, script = Path(scratch, "stand_in.c"), Path(scratch, "versions")
        source.write_text("".join(f"int {function}(void) {{ return 100; }}\n" for function in sorted(functions)))
        for name in names:
            version, *others = dict.fromkeys(versions.get(name, [name]))
            script.write_text(f"{version} {{ *; }};" + "".join(f"{other} {{ }};" for other in others))
            link = ["cc", "-w", "-shared", "-fPIC", f"-Wl,-soname,{name},--version-script={script}"]
            subprocess.run([*link, source, "-o", folder / name], check=True)
    return names


if __name__ == "__main__":
    make_stand_ins(Path(sys.argv[1]))
