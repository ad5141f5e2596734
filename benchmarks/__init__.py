"""Speed of lstm_fused against what users would otherwise run; ``python -m benchmarks``."""
