"""Speed of lstm_fused compared with its alternatives; ``python -m benchmarks``."""
