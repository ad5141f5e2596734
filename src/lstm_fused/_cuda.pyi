# Compiled, where there is a CUDA compiler: importing it registers torch.ops.lstm_fused for CUDA, and nothing else.
