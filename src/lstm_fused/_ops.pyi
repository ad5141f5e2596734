# Compiled: importing it registers torch.ops.lstm_fused, for the CPU, and nothing else.
