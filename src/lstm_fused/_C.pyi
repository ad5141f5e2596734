from typing import TypedDict

class BuildInfo(TypedDict):
    version: str  # of lstm_fused
    python: str  # the Python it was built with
    torch: str  # the torch it was built against; it runs on any torch >= 2.10
    pybind11: str  # "" in a wheel for every Python, which is without lstm_fused._C
    compiler: str
    cpp_standard: str  # "C++17"
    flags: str  # compiler flags shared by all sources
    isas: list[str]  # instruction sets the CPU kernels are compiled for
    isa: str  # the one in use: the best this CPU has, or the one LSTM_FUSED_ISA names
    cuda: bool  # whether the CUDA kernels are built
    cuda_reason: str  # why, or why not

def build_info() -> BuildInfo: ...
