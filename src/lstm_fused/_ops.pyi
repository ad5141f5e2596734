# Compiled: importing it registers torch.ops.lstm_fused, for the CPU.
from ._C import BuildInfo

def build_info() -> BuildInfo: ...
