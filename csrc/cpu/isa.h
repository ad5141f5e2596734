// The instruction sets the kernels are compiled for, and the one this process uses. No torch, no Python.
#pragma once

namespace lstm_fused {

// In rising order of preference. avx512_bf16 is avx512 and, for products of bfloat16, their instruction.
enum class Isa { baseline, avx2, avx512, avx512_bf16 };

const char* isa_name(Isa isa);
bool isa_compiled(Isa isa);   // this build contains its kernels
bool isa_supported(Isa isa);  // this CPU and its operating system can run it

// The best instruction set that is compiled and supported, or the one that the environment variable LSTM_FUSED_ISA
// names. The variable is read once, at the first call. Throws std::runtime_error when it names one that cannot run.
Isa isa_in_use();

}  // namespace lstm_fused
