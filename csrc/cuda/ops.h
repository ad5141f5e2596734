// The ops of csrc/schema.cpp on a CUDA device.
#pragma once

#include <torch/csrc/stable/library.h>

namespace lstm_fused::cuda {

// Gives `library` an implementation of every op.
void implement_ops(torch::stable::detail::StableLibrary& library);

}  // namespace lstm_fused::cuda
