// What the kernels of one instruction set offer to the rest of the CPU backend. Plain pointers and no templates of the
// standard library: the same source is compiled once per instruction set, and nothing in it may be shared by accident.
#pragma once

#include <cstdint>

#include "cpu/isa.h"
#include "lstm/problem.h"

namespace lstm_fused::cpu {

// The threads that work on a task. The one that runs it calls `parallel_for`, which calls body(closure, member, first,
// last) for chunks of [0, count), never two at a time for a member, and returns when all are done. A member gets the
// same chunks of the same count each time, from the last one on if `reverse`. A body must not throw.
struct Team {
  using Body = void (*)(const void* closure, int64_t member, int64_t first, int64_t last);
  int64_t members;
  void* work;
  void (*parallel_for)(void* work, int64_t count, bool reverse, Body body, const void* closure);
};
constexpr Team kAlone = {1, nullptr, nullptr};

// The sequences in the order of decreasing length, so that those still running at a step are a prefix.
struct SequenceOrder {
  const int64_t* batch_index;  // [B] of the r-th row
  const int64_t* length;       // [B] its number of steps, decreasing
};

// Rows [first, last) of the order, steps [step_begin, step_end) counted in the order in which they run: from in.h_0
// and in.c_0, the state before step_begin, to out.h_n and out.c_n.
template <typename T>
struct ForwardTask {
  LayerSizes sizes;
  LayerOptions options;
  LayerInputs<T> in;
  LayerOutputs<T> out;  // output, h_n and c_n, or null: not wanted
  int64_t saved_steps;  // that there is room for in out.saved: step t is at t % saved_steps
  SequenceOrder order;
  int64_t first, last;
  int64_t step_begin, step_end;
  // Gate panels of [W_ih W_hh], each [I + P, 4 vectors]. Null where packing costs more than it saves: the weights stay
  // unpacked.
  const void* packed;
  bool merged;            // both products of a step in one tile; otherwise W_ih x of many steps first
  const void* packed_hr;  // plain panels of W_hr^T, projection only; or null with packed
  const T* bias;          // [4H], both biases together
  Team team;
  char* scratch;  // forward_scratch() bytes
};

// Rows [first, last) of the order, steps [step_begin, step_end) counted in the order in which they ran. in.h_0 and
// in.c_0 are the state before saved_begin, the first step that is in out.saved.
template <typename T>
struct BackwardTask {
  LayerSizes sizes;
  LayerOptions options;
  LayerInputs<T> in;
  LayerSaved<T> saved;
  int64_t saved_steps, saved_begin;
  LayerGradients<T> grad;
  SequenceOrder order;
  int64_t first, last;
  int64_t step_begin, step_end;
  bool first_chunk;              // the first to run: it holds the last steps
  const int64_t* chunk_offset;   // [step_end - step_begin] index of a step's first row in the chunk
  const void* packed_ih;         // plain panels of W_ih [4H, I], or null: no input gradient wanted
  const void* packed_hh;         // plain panels of W_hh [4H, P]
  const void* packed_hr;         // plain panels of W_hr [P, H], projection only, like the next two
  T* d_hidden;                   // [rows of the chunk, gradient_stride(P)] gradient of h_t
  T* unprojected;                // [rows of the chunk, H] h', or null: no weight gradients wanted
  const T* bias;                 // [4H], layer norm only
  T* d_gates_ih;                 // [rows of the chunk, gradient_stride] gradient of W_ih x
  T* d_gates_hh;                 // gradient of W_hh h~; the same buffer without layer norm
  T* parameter_sums;             // [reduction blocks, parameter_sums_size]
  int64_t reduction_block_rows;  // rows that share one entry of parameter_sums: fixed by B, not by the threads
  T* hidden_mask;                // [B, scratch_stride] by schedule order, or null: no recurrent dropout
  Team team;
  char* scratch;  // backward_scratch() bytes, kept from chunk to chunk
};

// Weight gradients, transposed: panels [first, last) of the columns of
//   [x | h~]^T [I + P, rows of the chunk]  times  d_gates [rows of the chunk, 4H]
// or, for the projection, with h' in the place of x, nothing in that of h~, and d_h_t [rows of the chunk, P].
template <typename T>
struct WeightGradientTask {
  int64_t input_columns, hidden_columns;
  int64_t stride;  // of the gradients: gradient_stride
  int64_t rows;    // of the chunk
  int64_t first, last;
  const void* packed_input;  // by pack_transposed
  const void* packed_hidden;
  const T* d_gates_ih;
  const T* d_gates_hh;  // the same without layer norm
  void* scratch;        // gradient_scratch operands
  T* sums;              // of x, then from input_columns * stride on of h~: see weight_gradient.h; over the chunks
  bool first_chunk;
};

// Parameter gradients that are sums over rows, one entry a reduction block; all parts padded to whole vectors.
struct ParameterSums {
  int64_t padded_hidden, bias, ln_ih, ln_hh, ln_c_weight, ln_c_bias, peepholes, size;
};

// The kernels of one instruction set and one kind of operands. An operand is what a product takes in at a time: `group`
// numbers, in as many bytes as a T has. What is packed holds operands: void.
template <typename T>
struct Kernels {
  int64_t group;
  int64_t (*forward_scratch)(const LayerSizes&, const LayerOptions&, bool saves, bool merged, int64_t rows,
                             int64_t members);
  void (*forward)(const ForwardTask<T>&);
  int64_t (*backward_scratch)(const LayerSizes&, const LayerOptions&, int64_t rows, int64_t members);
  void (*backward)(const BackwardTask<T>&);
  void (*finish_backward)(const BackwardTask<T>&);  // writes d_h_0 and d_c_0

  int64_t (*gate_panels)(int64_t hidden_size);
  int64_t (*plain_panels)(int64_t columns);
  int64_t panel_columns;
  void (*pack_gates)(const T* weight, int64_t hidden_size, int64_t depth, int64_t first, int64_t last, void* packed,
                     int64_t panel_size, int64_t row);
  void (*pack_plain_weight)(const T* weight, int64_t columns, int64_t depth, int64_t first, int64_t last, void* packed);
  void (*pack_plain)(const T* matrix, int64_t depth, int64_t columns, int64_t first, int64_t last, void* packed);

  void (*drop_weights)(const LayerOptions&, const T* from, int64_t columns, int64_t first, int64_t last, T* to);
  int64_t (*scratch_stride)(const LayerSizes&);
  int64_t max_chunk_rows;  // steps x rows whose gate gradients are kept at a time, at most
  int64_t gradient_block;  // rows of a chunk that are packed together
  int64_t (*gradient_stride)(int64_t columns);
  ParameterSums (*parameter_sums)(int64_t hidden_size, const LayerOptions&);
  // Rows [first, first + count) given by pointer, each times its mask where there is one, packed as the transposed left
  // operand; first is a multiple of gradient_block.
  void (*pack_transposed)(const T* const* rows, const T* const* masks, int64_t first, int64_t count, int64_t columns,
                          void* packed);
  int64_t gradient_scratch;  // operands that a task of weight_gradient needs
  void (*weight_gradient)(const WeightGradientTask<T>&);
  // d_weight [rows, columns], its rows of panels [first, last), from the sums of weight_gradient.
  void (*unpack_gradient)(const T* sums, int64_t rows, int64_t columns, int64_t first, int64_t last, T* d_weight);

  // For tests of the mathematics alone.
  void (*sigmoid)(const T* x, T* y, int64_t n);
  void (*tanh)(const T* x, T* y, int64_t n);
};

template <typename T>
const Kernels<T>& kernels(Isa isa);

// Those whose operands are pairs of bfloat16; null where the instruction set cannot multiply them.
const Kernels<float>* bfloat16_kernels(Isa isa);

}  // namespace lstm_fused::cpu
