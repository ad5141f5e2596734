"""The extension modules; everything else about the package stands in pyproject.toml.

- lstm_fused._ops: the ops, on torch's stable C++ interface and Python's limited one, so that one binary serves every
  torch from 2.10 on and every Python from 3.10 on. The kernels in it are compiled once per instruction set.
- lstm_fused._cuda: the same ops on a GPU, likewise; built where LSTM_FUSED_CUDA says so (see cuda_build).
- lstm_fused._C: how the build was made (pybind11, no torch headers). It is for one Python, and therefore not in the
  wheel for all of them (`make wheel`, which passes --py-limited-api to bdist_wheel); lstm_fused._ops has the same.
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "build_backend"))
from lstm_fused_build import cuda_build, runtime_requirement, stop  # noqa: E402
from lstm_fused_flags import CUDA_ARCHITECTURES, CUDA_FLAGS, FLAGS, HAVE, ISAS, STABLE  # noqa: E402

KERNELS = "csrc/cpu/kernels.cpp"
BUILD_INFO = "csrc/build_info.cpp"
OLD_GLIBC = "csrc/old_glibc.cpp"
FOR_EVERY_PYTHON = any(argument.startswith("--py-limited-api") for argument in sys.argv)
COMPILE = [*FLAGS, f"-ffile-prefix-map={ROOT}/="]  # the same binary from whatever folder


def relative(paths) -> list[str]:
    return sorted(path.relative_to(ROOT).as_posix() for path in paths)


def cuda_extension(cpp_extension, headers: list[str]) -> Extension:
    """lstm_fused._cuda. Thanks to torch's stable interface it links with a torch for the CPU too."""
    sources = relative([*(ROOT / "csrc" / "cuda").glob("*.cpp"), *(ROOT / "csrc" / "cuda").glob("*.cu")])
    extension = cpp_extension.CUDAExtension(
        "lstm_fused._cuda",
        sources,
        include_dirs=[str(ROOT / "csrc")],
        depends=headers,
        extra_compile_args={"cxx": [*COMPILE, *STABLE, "-DUSE_CUDA"], "nvcc": CUDA_FLAGS},
        extra_link_args=["-Wl,--no-as-needed", "-ltorch"],
        py_limited_api=True,
    )
    absent = ("c10_cuda", "torch_cuda", "cudart")  # in a torch for the CPU; the first two come with libtorch
    extension.libraries = [name for name in extension.libraries if name not in absent] + ["cudart_static", "rt", "dl"]
    return extension


def build_arguments() -> dict:
    """The setup() arguments that need torch."""
    try:
        import pybind11
        import torch
        from torch.utils import cpp_extension
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError as error:
        stop(f"building needs torch and pybind11, but not both can be imported here ({error})")

    class Build(BuildExtension):
        def build_extensions(self):
            if self.editable_mode:  # a folder that stays, so that the next build compiles only what changed
                self.build_temp = str(ROOT / "build" / "editable")
            self.compiler.define_macro("LSTM_FUSED_VERSION", f'"{self.distribution.get_version()}"')
            super().build_extensions()

        def build_extension(self, extension):
            shared = self.build_temp
            self.build_temp = os.path.join(shared, extension.name)  # extensions share sources, but not their flags
            if KERNELS in extension.depends:
                jobs = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
                with ThreadPoolExecutor(jobs if self.use_ninja else 1) as pool:
                    extension.extra_objects = list(pool.map(self.compile_kernels, ISAS))
            super().build_extension(extension)
            self.build_temp = shared

        def compile_kernels(self, isa: str) -> str:
            """Compile the kernels for one instruction set; returns the object file."""
            (compiled,) = self.compiler.compile(
                [KERNELS],
                output_dir=os.path.join(self.build_temp, isa),
                include_dirs=[str(ROOT / "csrc")],
                extra_postargs=[*COMPILE, *ISAS[isa], f"-DLSTM_FUSED_ISA_NAME={isa}"],
            )
            return compiled

    headers = relative((ROOT / "csrc").rglob("*.h"))
    sources = relative([*(ROOT / "csrc").glob("*.cpp"), *(ROOT / "csrc" / "cpu").glob("*.cpp")])
    toolkit, cuda_reason = cuda_build(torch.version.cuda)
    if toolkit:
        cpp_extension.CUDA_HOME = str(toolkit)  # which torch for the CPU leaves out
        if not torch.cuda.device_count():  # otherwise torch compiles for the GPU that is there
            os.environ.setdefault("TORCH_CUDA_ARCH_LIST", CUDA_ARCHITECTURES)
        cuda_reason = f"nvcc {cuda_reason}, {os.environ.get('TORCH_CUDA_ARCH_LIST', 'the GPU of this machine')}"
    facts = {
        "TORCH": torch.__version__,
        "PYBIND11": "" if FOR_EVERY_PYTHON else pybind11.__version__,
        "FLAGS": " ".join(FLAGS),
        "CUDA_REASON": cuda_reason,
    }
    facts_macros = [(f"LSTM_FUSED_{name}", f'"{text}"') for name, text in facts.items()]
    facts_macros += [("LSTM_FUSED_HAVE_CUDA", str(int(toolkit is not None)))]
    left_out = {KERNELS, BUILD_INFO} | (set() if FOR_EVERY_PYTHON else {OLD_GLIBC})
    ops = CppExtension(
        "lstm_fused._ops",
        [source for source in sources if source not in left_out],
        include_dirs=[str(ROOT / "csrc")],
        depends=[*headers, KERNELS],
        define_macros=facts_macros,
        extra_compile_args=[*COMPILE, *STABLE, *HAVE],
        py_limited_api=True,
    )
    info = Extension(
        "lstm_fused._C",
        [BUILD_INFO, "csrc/cpu/isa.cpp"],
        include_dirs=[str(ROOT / "csrc"), pybind11.get_include()],
        depends=headers,
        define_macros=facts_macros,
        extra_compile_args=[*COMPILE, *HAVE],
        language="c++",
    )
    modules = [ops] if FOR_EVERY_PYTHON else [ops, info]
    if toolkit:
        modules.append(cuda_extension(cpp_extension, headers))
    return {"ext_modules": modules, "cmdclass": {"build_ext": Build}}


# An sdist and the metadata alone need no torch.
compiles = not {"sdist", "egg_info", "dist_info"} & set(sys.argv)
setup(install_requires=[runtime_requirement()], **(build_arguments() if compiles else {}))
