"""The compiler flags, for setup.py and for the tests that compile the kernels by themselves."""

import sysconfig

# -fno-math-errno and -fno-trapping-math let GCC vectorize the activations. Never -ffast-math: linking with it switches
# the whole process to flush-to-zero. -g0: some Pythons add -g, which makes the wheel twenty times larger.
FLAGS = [
    *("-O3", "-g0", "-std=c++17", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
    *("-fvisibility=hidden", "-fvisibility-inlines-hidden"),
]
STABLE = ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-DPy_LIMITED_API=0x030A0000"]  # torch 2.10, Python 3.10
PLATFORM = sysconfig.get_platform()  # linux-x86_64, ...
ISAS = {"baseline": []}
if PLATFORM.endswith("x86_64"):
    ISAS["avx2"] = ["-mavx2", "-mfma"]
    ISAS["avx512"] = [
        *("-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw", "-mavx2", "-mfma"),
        "-mprefer-vector-width=512",
    ]
    ISAS["avx512_bf16"] = [*ISAS["avx512"], "-mavx512bf16"]
HAVE = [f"-DLSTM_FUSED_HAVE_{isa.upper()}" for isa in ISAS]  # read by csrc/cpu/isa.cpp

# --threads: as many architectures of a file at a time. -Xptxas -v: the registers of every kernel, and whether any was
# spilled; a test reads it.
CUDA_FLAGS = ["-O3", "-std=c++17", "--threads=3", "-Xptxas=-v", "-Xcompiler=-fvisibility=hidden", "-DUSE_CUDA"]
CUDA_ARCHITECTURES = "8.0;9.0;10.0+PTX"  # A100, H100, B200 and what comes after; where no GPU says otherwise
