// What the kernels of the CUDA backend take, and how they are launched. The matrix products between them are torch's.
//
// Every launcher queues one kernel on `stream` and returns what CUDA says about the launch; none waits for the device.
// Shapes stand beside the pointers; T is the type of the tensors, A = Accumulator<T> that of statistics and cell state.
#pragma once

#include <cstdint>

#include "cuda/masks.h"
#include "cuda/types.h"
#include "lstm/problem.h"

namespace lstm_fused::cuda {

// Where a step stands in its sequence. A length past T means T; the host never reads it.
struct Sequence {
  int64_t steps;           // T
  int64_t batch;           // B
  bool reverse;            // from the last real step to step 0
  const int64_t* lengths;  // [B] or null
  const bool* reset;       // [T, B] or null: the state is zero before that step

  __device__ __forceinline__ int64_t length(int64_t b) const {
    if (!lengths) return steps;
    const int64_t length = lengths[b];
    return length < 0 ? 0 : length > steps ? steps : length;
  }
  __device__ __forceinline__ bool is_real(int64_t t, int64_t b) const { return t < length(b); }
  // The first and the last step of row b, in the order in which they run; of a row that has steps.
  __device__ __forceinline__ int64_t first(int64_t b) const { return reverse ? length(b) - 1 : 0; }
  __device__ __forceinline__ int64_t last(int64_t b) const { return reverse ? 0 : length(b) - 1; }
  __device__ __forceinline__ int64_t before(int64_t t) const { return reverse ? t + 1 : t - 1; }
  __device__ __forceinline__ int64_t after(int64_t t) const { return reverse ? t - 1 : t + 1; }
  __device__ __forceinline__ bool is_reset(int64_t t, int64_t b) const { return reset && reset[t * batch + b]; }
};

// LayerOptions as the kernels take them.
template <typename A>
struct StepOptions {
  LayerNorm layer_norm = LayerNorm::none;
  bool training = false, variational = false, peephole = false;
  CellChoices choices;
  int64_t stream = 0, first_step = 0;
  A eps = 0;
  Mask<A> output, hidden, candidate, weight, zoneout_h, zoneout_c;

  StepOptions() = default;
  explicit StepOptions(const LayerOptions& options)
      : layer_norm(options.layer_norm),
        training(options.training),
        variational(options.variational),
        peephole(options.peephole),
        choices(cell_choices(options)),
        stream(options.stream),
        first_step(options.first_step),
        eps(static_cast<A>(options.eps)),
        output(dropout<A>(options.dropout, options.training)),
        hidden(dropout<A>(options.recurrent_dropout, options.training)),
        candidate(dropout<A>(options.candidate_dropout, options.training)),
        weight(dropout<A>(options.weight_dropout, options.training)),
        zoneout_h(zoneout<A>(options.zoneout_h)),
        zoneout_c(zoneout<A>(options.zoneout_c)) {}
};

// The state before a step.
template <typename T>
struct Start {
  LayerSizes sizes;
  StepOptions<Accumulator<T>> options;
  Sequence sequence;
  int64_t t;             // of that step; rows that begin later take that for their first
  const int64_t* seed;   // [] or null: nothing is random
  const T* h_0;          // [B, P]
  const T* c_0;          // [B, H]
  T* h;                  // [B, P] out: h_0
  T* operand;            // [B, P] out: h~, the left operand of the first product; null: it is h itself
  Accumulator<T>* cell;  // [B, H] out: c_0
};

// One step of all rows, after its product with W_hh.
template <typename T>
struct ForwardStep {
  LayerSizes sizes;
  StepOptions<Accumulator<T>> options;
  Sequence sequence;
  int64_t t;
  int width;            // units of the vectors in which every row can be read and written, see with_width
  const int64_t* seed;  // [] or null
  LayerInputs<T> in;
  T* gates;               // [B, 4H] in: W_ih x; out, without layer norm and where `saves`: the activations
  const T* recurrent;     // [B, 4H] W_hh h~
  bool saves;             // whether a backward pass may follow
  Accumulator<T>* stats;  // [B, 6] out, or null
  Accumulator<T>* cells;  // [B, H] out: c_t, or null
  T* hidden;              // [B, P] out: h_t, or null
  T* output;              // [B, P] out: y_t
  T* h;                   // [B, P] in: h_{t-1}, out: h_t; rows that have ended keep theirs
  T* operand;             // [B, P] out: h~ of the next step, or null
  Accumulator<T>* cell;   // [B, H] in: c_{t-1}, out: c_t
  T* unprojected;         // [B, H] out: h' before W_hr; with a projection only, and then h_t and y_t are ...
  const T* projected;     // [B, P] ... made by a kernel of their own, from W_hr h'
  Accumulator<T>* spill;  // [B, forward_slots, H] for rows that do not fit into registers, or null
};

// One step of all rows, backward: from the gradients of h_t and c_t to those of the pre-activations and of c_{t-1}.
template <typename T>
struct BackwardStep {
  LayerSizes sizes;
  StepOptions<Accumulator<T>> options;
  Sequence sequence;
  int64_t t;
  int width;
  const int64_t* seed;
  LayerInputs<T> in;
  const T* gates;               // [B, 4H] of the forward pass
  const T* recurrent;           // [B, 4H], layer norm only
  const Accumulator<T>* stats;  // [B, 6], layer norm only
  const Accumulator<T>* cells;  // [B, H] c_{t-1}; not read at a row's first step
  const T* d_output;            // [B, P] of step t
  const T* d_h_n;               // [B, P]
  const T* d_c_n;               // [B, H]
  const T* product;             // [B, P] (gradient of W_hh h~ at the step that ran after t) W_hh
  Accumulator<T>* d_h_carry;    // [B, P] in and out: what reaches h_{t-1} by other ways, or null: nothing does
  Accumulator<T>* d_cell;       // [B, H] in: of c_t, out: of c_{t-1}
  T* d_gates_ih;                // [B, 4H] out: gradient of W_ih x
  T* d_gates_hh;                // [B, 4H] out: gradient of W_hh h~; the same as d_gates_ih without layer norm
  T* d_z;                       // [B, 4H] out: of the pre-activations; layer norm only, or null: no weight's is wanted
  Accumulator<T>* unit_sums;    // [B, unit_sums, H] sums over the steps, or null: no gradient of a weight is wanted
  T* d_projected;               // [B, P] with a projection only: gradient of W_hr h', by a kernel of its own;
  const T* d_unprojected;       // [B, H] in: d_projected W_hr;
  T* unprojected;               // [B, H] out: h' again, for the gradient of W_hr
  Accumulator<T>* spill;        // [B, backward_slots, H], or null
};

// The gradients that are summed over the steps row by row: of weight_ln_c and bias_ln_c, then of the peepholes.
LSTM_FUSED_FN int64_t unit_sums(bool norm, bool peephole) { return (norm ? 2 : 0) + (peephole ? 3 : 0); }

// Gradient of the initial state, after the last product.
template <typename T>
struct Finish {
  LayerSizes sizes;
  StepOptions<Accumulator<T>> options;
  Sequence sequence;
  const int64_t* seed;
  const T* d_h_n;                   // [B, P]
  const T* d_c_n;                   // [B, H]
  const T* product;                 // [B, P]
  const Accumulator<T>* d_h_carry;  // [B, P] or null
  const Accumulator<T>* d_cell;     // [B, H]
  T* d_h_0;                         // [B, P] out
  T* d_c_0;                         // [B, H] out
};

// The right operands of the weight gradients: rows [steps, B, columns] from step `first` on, zero past the lengths.
template <typename T>
struct Operand {
  LayerSizes sizes;
  StepOptions<Accumulator<T>> options;
  Sequence sequence;
  int64_t first;  // t of the first row
  int64_t rows;   // steps * B
  const int64_t* seed;
  const T* input;   // [steps, B, I]
  const T* h_0;     // [B, P]
  const T* hidden;  // [steps, B, P] h_t; where the first of these is not a row's first, there is the one before too
  int width;
  T* out;  // [steps, B, I] the input, or [steps, B, P] h~_{t-1}
};

// W_hh or its gradient times the mask of weight dropout: [4H, P].
template <typename T>
struct WeightMask {
  LayerSizes sizes;
  StepOptions<Accumulator<T>> options;
  const int64_t* seed;
  int width;
  const T* weight;
  T* out;  // may be `weight`
};

// Sums over rows, with the norms' factors where they are given: for each column k of `values`,
//   sums[0][k] = sum v,   sums[1][k] = sum v x_hat,   sums[2][k] = sum v h_hat
template <typename T>
struct ColumnSums {
  Sequence sequence;      // rows [steps, B] that are not real are left out
  int64_t first;          // t of the first row
  int64_t rows, columns;  // rows = steps * B, or B with `sequence.steps` 1
  int width;
  bool norms;                   // otherwise the first sum alone
  const T* values;              // [rows, columns]
  const T* gates;               // [rows, columns] W_ih x, for the norms, as the next two
  const T* recurrent;           // [rows, columns] W_hh h~
  const Accumulator<T>* stats;  // [rows, 6]
  Accumulator<T>* partial;      // [chunks, sums, columns]

  static constexpr int64_t kRows = 256;  // of a chunk: fixed, so that the order of the sums is
  __host__ __device__ __forceinline__ int64_t chunks() const { return (rows + kRows - 1) / kRows; }
  __host__ __device__ __forceinline__ int64_t sums() const { return norms ? 3 : 1; }
};

// Adds the chunks up: sum s of the partial sums to `out[s]`, [columns] each.
template <typename T>
struct ChunkSums {
  int64_t chunks, sums, columns;
  const Accumulator<T>* partial;
  T* out[5];
};

// The most threads of a block that sums over a row, each with V units of it, as their registers allow.
template <typename T, int V, bool kRegisters = true>
constexpr int kThreads = !kRegisters      ? 256
                         : sizeof(T) == 8 ? 512 / V
                         : V == 4         ? 512
                                          : 768;

// Longer rows than this do not stay in the registers of a block, with vectors of this width.
template <typename T>
int64_t register_units(int width) {
  return width == kLanes<T> ? kLanes<T> * kThreads<T, kLanes<T>> : width == 2 ? 2 * kThreads<T, 2> : kThreads<T, 1>;
}
// The same in the backward pass, where a thread keeps more: of float32 two units at most.
template <typename T>
int64_t backward_register_units(int width) {
  return register_units<T>(sizeof(T) == 4 && width > 2 ? 2 : width);
}
constexpr int kForwardSlots = 2, kBackwardSlots = 10;  // values kept of each unit; layer norm only

template <typename T>
cudaError_t start(const Start<T>&, cudaStream_t);
template <typename T>
cudaError_t forward_step(const ForwardStep<T>&, cudaStream_t);
template <typename T>
cudaError_t project_step(const ForwardStep<T>&, cudaStream_t);
template <typename T>
cudaError_t backward_project_step(const BackwardStep<T>&, cudaStream_t);
template <typename T>
cudaError_t backward_step(const BackwardStep<T>&, cudaStream_t);
template <typename T>
cudaError_t finish(const Finish<T>&, cudaStream_t);
template <typename T>
cudaError_t real_input(const Operand<T>&, cudaStream_t);
template <typename T>
cudaError_t previous_hidden(const Operand<T>&, cudaStream_t);
template <typename T>
cudaError_t mask_weight(const WeightMask<T>&, cudaStream_t);
template <typename T>
cudaError_t column_sums(const ColumnSums<T>&, cudaStream_t);
template <typename T>
cudaError_t chunk_sums(const ChunkSums<T>&, cudaStream_t);

}  // namespace lstm_fused::cuda
