// A call as the kernels take it, shared by the forward and the backward pass.
#pragma once

#include <algorithm>
#include <initializer_list>

#include "cuda/kernels.h"
#include "cuda/products.h"

namespace lstm_fused::cuda {

inline void check(cudaError_t error) {
  if (error != cudaSuccess) fail("CUDA could not launch a kernel: ", cudaGetErrorString(error));
}

template <typename T>
T* pointer(const MaybeTensor& tensor) {
  return tensor && tensor->numel() ? static_cast<T*>(tensor->mutable_data_ptr()) : nullptr;
}

// The most units that a vector can have, if rows of P and of H units at these addresses are moved in them: kLanes, 2
// or 1.
template <typename T>
int width_of(const LayerSizes& sizes, std::initializer_list<const void*> addresses) {
  for (const int width : {kLanes<T>, 2}) {
    const auto fits = [&](const void* address) {
      return reinterpret_cast<uintptr_t>(address) % (width * sizeof(Accumulator<T>)) == 0;
    };
    if (sizes.hidden_size % width == 0 && sizes.projection_size % width == 0 &&
        std::all_of(addresses.begin(), addresses.end(), fits))
      return width;
  }
  return 1;
}

// Steps [begin, end) of those with one number, counted in the order in which they run; with `recompute` they are
// computed again together.
struct Segment {
  int64_t number, begin, end;
  int64_t first;  // the lowest t of these steps
  int64_t rows;   // steps * B
};

// What forward and backward share: the arguments as the kernels take them.
template <typename T>
struct Call {
  LayerSizes sizes;
  LayerOptions options;
  Sequence sequence;
  LayerInputs<T> in;
  const int64_t* seed;
  bool norm, drops_weight, drops_hidden;
  int64_t segments;  // with `recompute`; otherwise all steps are one
  int inputs_width;  // of the state and the weights
  const Arguments& arguments;
  Tensor weight_hh;  // [4H, P] as the steps use it: with weight dropout, in training, a masked copy

  Call(const Arguments& arguments, cudaStream_t stream)
      : sizes(arguments.sizes),
        options(arguments.options),
        sequence{sizes.steps, sizes.batch, options.reverse, pointer<int64_t>(arguments.lengths),
                 pointer<bool>(arguments.reset)},
        seed(pointer<int64_t>(arguments.seed)),
        norm(has_layer_norm(options)),
        drops_weight(options.training && options.weight_dropout > 0),
        drops_hidden(options.training && options.recurrent_dropout > 0),
        segments(options.recompute > 0 ? lstm_fused::segments(sizes, options) : sizes.steps > 0),
        arguments(arguments),
        weight_hh(*arguments.weight_hh) {
#define LSTM_FUSED_POINTER(name, ...) in.name = pointer<T>(arguments.name);
    in.input = pointer<T>(arguments.input);
    LSTM_FUSED_STATE(LSTM_FUSED_POINTER)
    LSTM_FUSED_WEIGHTS(LSTM_FUSED_POINTER, LSTM_FUSED_POINTER, LSTM_FUSED_NONE)
#undef LSTM_FUSED_POINTER
    in.lengths = sequence.lengths;
    in.reset = sequence.reset;
#define LSTM_FUSED_ADDRESS(name, ...) in.name,
    inputs_width = width_of<T>(sizes, {LSTM_FUSED_STATE(LSTM_FUSED_ADDRESS) LSTM_FUSED_WEIGHTS(
                                          LSTM_FUSED_ADDRESS, LSTM_FUSED_ADDRESS, LSTM_FUSED_NONE)});
#undef LSTM_FUSED_ADDRESS
    if (drops_weight && sizes.batch > 0) {
      weight_hh = arguments.empty({4 * sizes.hidden_size, sizes.projection_size});
      mask_weight_hh(in.weight_hh, weight_hh, stream);
    }
  }

  // Steps are counted in the order in which they run: where a segment begins, and the one before ends.
  int64_t begin_of(int64_t segment) const { return segment < segments ? segment * options.recompute : sizes.steps; }
  int64_t time_of(int64_t s) const { return options.reverse ? sizes.steps - 1 - s : s; }
  Segment segment(int64_t number) const {
    const int64_t begin = begin_of(number), end = begin_of(number + 1);
    return {number, begin, end, first_time(begin, end), (end - begin) * sizes.batch};
  }
  // Rows of the longest segment, which is the first.
  int64_t most_rows() const { return begin_of(1) * sizes.batch; }
  // The lowest t of steps [begin, end).
  int64_t first_time(int64_t begin, int64_t end) const { return options.reverse ? sizes.steps - end : begin; }

  void mask_weight_hh(const T* from, const Tensor& to, cudaStream_t stream) const {
    T* const out = static_cast<T*>(to.mutable_data_ptr());
    check(mask_weight<T>(
        {sizes, StepOptions<Accumulator<T>>(options), seed, width_of<T>(sizes, {from, out}), from, out}, stream));
  }

  // Where layer norm keeps rows that are too long for the registers of a block; `memory` is made when it is needed.
  Accumulator<T>* spill(int64_t register_units, int64_t slots, MaybeTensor& memory) const {
    if (!norm || sizes.hidden_size <= register_units) return nullptr;
    if (!memory) memory = arguments.empty_accumulators({sizes.batch, slots, sizes.hidden_size});
    return pointer<Accumulator<T>>(memory);
  }
};

}  // namespace lstm_fused::cuda
