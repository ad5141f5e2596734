// The backward kernels: one step of all rows, last step first, and the gradient of the initial state.
//
//   d_h_t   = m_y * d_y_t + (what flows back from the step that ran after t)
//   d_h'    = (1 - k_h) * d_h_t                                                                      k: zoneout
//   d_n     = d_h' * o * (1 - tanh^2 n), in "carry" + (1 - k_c) * d_c_t
//   d_c'    = d_n through N_c, otherwise + (1 - k_c) * d_c_t
//   d_z     = the gates' derivatives;  d(W_ih x) and d(W_hh h~) = d_z through the layer norms
//   d_h_{t-1} = m_h * (d(W_hh h~) W_hh) + k_h * d_h_t,   d_c_{t-1} = f * d_c' + k_c * d_c_t
//
// One block takes one row, as in the forward pass. A row that has ended gives zeros, which the products after the loop
// may sum.
#include "cuda/reduce.h"
#include "cuda/units.h"

namespace lstm_fused::cuda {

namespace {

constexpr int kPlainThreads = 128;  // a block without sums over its row
constexpr int kPlainBlocks = 8;     // of a multiprocessor: left to itself ptxas aims at 16, and spills registers for it

// What flows back into the h that step t of row b started from: through the product, and `passed` by other ways.
template <typename T, int V, typename Step>
__device__ __forceinline__ Lanes<Accumulator<T>, V> flows_back(const Step& step, int64_t t, int64_t b, int64_t j,
                                                               int64_t n, bool aligned) {
  const int64_t P = step.sizes.projection_size;
  auto d_h = hidden_operand<T, V>(step.options, step.sequence, step.seed, t, b, j,
                                  load<V>(step.product + b * P, j, n, aligned));  // the derivative of h~ is its mask
  if (step.passed) {
    const auto passed = load<V>(step.passed + b * P, j, n, aligned);
#pragma unroll
    for (int lane = 0; lane < V; ++lane) d_h[lane] += passed[lane];
  }
  return d_h;
}

// d_h' of units [j, j + n) of row b; what zoneout passes on is stored.
template <typename T, int V>
__device__ __forceinline__ Lanes<Accumulator<T>, V> d_new_hidden(const BackwardStep<T>& step, int64_t b, int64_t j,
                                                                 int64_t n, bool aligned) {
  using A = Accumulator<T>;
  const LayerOptions& options = step.options;
  const Sequence& sequence = step.sequence;
  const int64_t P = step.sizes.projection_size, t = step.t;
  auto d_h = t == sequence.last(b) ? load<V>(step.d_h_n + b * P, j, n, aligned)
                                   : flows_back<T, V>(step, sequence.after(t), b, j, n, aligned);
  auto d_y = load<V>(step.d_output + b * P, j, n, aligned);
  if (options.training && options.dropout > 0) {
    const auto mask = dropout_mask<A, V>(step.seed, options.stream, MaskUse::output, options.dropout,
                                         options.variational ? 0 : t + options.first_step, b, j);
#pragma unroll
    for (int lane = 0; lane < V; ++lane) d_y[lane] *= mask[lane];
  }
#pragma unroll
  for (int lane = 0; lane < V; ++lane) d_h[lane] += d_y[lane];

  Lanes<A, V> passed{};
  if (options.zoneout_h > 0) {
    const auto keep = zoneout_mask<A, V>(step.seed, options.stream, MaskUse::zoneout_h, options.zoneout_h,
                                         options.training, t + options.first_step, b, j);
    const bool is_reset = sequence.is_reset(t, b);
#pragma unroll
    for (int lane = 0; lane < V; ++lane) {
      passed[lane] = is_reset ? A(0) : keep[lane] * d_h[lane];
      d_h[lane] *= 1 - keep[lane];
    }
  }
  if (step.passed) store<V>(step.passed + b * P, j, n, aligned, passed);
  return d_h;
}

// A row that has ended. In reverse such steps come after the row's first one, and `product` will not last until the
// end: what it holds is put by.
template <typename T, int V>
__device__ __forceinline__ void put_product_by(const BackwardStep<T>& step, int64_t b) {
  const Sequence& sequence = step.sequence;
  const int64_t P = step.sizes.projection_size, length = sequence.length(b);
  if (!sequence.reverse || step.t != length || length == 0) return;
  for_each_vector<V, false>(P, [&](int64_t j, int64_t n) {
    const bool aligned = step.aligned && n >= V;
    store<V>(step.passed + b * P, j, n, aligned, flows_back<T, V>(step, length - 1, b, j, n, aligned));
  });
}

template <typename T, int V>
__device__ __forceinline__ void zero_gates(const BackwardStep<T>& step, int64_t b) {
  using A = Accumulator<T>;
  const int64_t H = step.sizes.hidden_size;
  for_each_vector<V, false>(H, [&](int64_t j, int64_t n) {
    const bool aligned = step.aligned && n >= V;
#pragma unroll
    for (int gate = 0; gate < 4; ++gate) {
      const int64_t k = gate * H + j;
      store<V>(step.d_gates_ih + b * 4 * H, k, n, aligned, Lanes<A, V>{});
      store<V>(step.d_gates_hh + b * 4 * H, k, n, aligned, Lanes<A, V>{});
      if (step.d_z) store<V>(step.d_z + b * 4 * H, k, n, aligned, Lanes<A, V>{});
    }
    if (step.unprojected) store<V>(step.unprojected + b * H, j, n, aligned, Lanes<A, V>{});
  });
}

template <typename T>
__global__ void __launch_bounds__(kPlainThreads, kPlainBlocks)
    project_kernel(const __grid_constant__ BackwardStep<T> step) {
  constexpr int V = kLanes<T>;
  const int64_t b = blockIdx.x, P = step.sizes.projection_size;
  const bool is_real = step.sequence.is_real(step.t, b);
  if (!is_real) put_product_by<T, V>(step, b);
  for_each_vector<V, false>(P, [&](int64_t j, int64_t n) {
    const bool aligned = step.aligned && n >= V;
    store<V>(step.d_projected + b * P, j, n, aligned,
             is_real ? d_new_hidden<T, V>(step, b, j, n, aligned) : Lanes<Accumulator<T>, V>{});
  });
}

// d_c_t of units [j, j + n), split into what zoneout passes to c_{t-1} and the rest.
template <typename A, int V>
struct CellGradient {
  Lanes<A, V> passed, rest;
};

template <typename T, int V>
__device__ __forceinline__ CellGradient<Accumulator<T>, V> d_cell_of(const BackwardStep<T>& step, int64_t b, int64_t j,
                                                                     int64_t n, bool aligned) {
  using A = Accumulator<T>;
  const LayerOptions& options = step.options;
  const int64_t H = step.sizes.hidden_size;
  CellGradient<A, V> d_cell{{},
                            step.t == step.sequence.last(b) ? load<V>(step.d_c_n + b * H, j, n, aligned)
                                                            : load<V>(step.d_cell + b * H, j, n, aligned)};
  if (options.zoneout_c > 0) {
    const auto keep = zoneout_mask<A, V>(step.seed, options.stream, MaskUse::zoneout_c, options.zoneout_c,
                                         options.training, step.t + options.first_step, b, j);
#pragma unroll
    for (int lane = 0; lane < V; ++lane) {
      d_cell.passed[lane] = keep[lane] * d_cell.rest[lane];
      d_cell.rest[lane] *= 1 - keep[lane];
    }
  }
  return d_cell;
}

template <typename T, int V>
__device__ __forceinline__ Lanes<Accumulator<T>, V> previous_cell(const BackwardStep<T>& step, int64_t b, int64_t j,
                                                                  int64_t n, bool aligned) {
  const int64_t H = step.sizes.hidden_size;
  if (step.sequence.is_reset(step.t, b)) return {};
  if (step.t == step.sequence.first(b)) return load<V>(step.in.c_0 + b * H, j, n, aligned);
  return load<V>(step.cells + b * H, j, n, aligned);
}

template <typename T, int V>
__device__ __forceinline__ Lanes<Accumulator<T>, V> new_hidden_gradient(const BackwardStep<T>& step, int64_t b,
                                                                        int64_t j, int64_t n, bool aligned) {
  if (step.d_unprojected) return load<V>(step.d_unprojected + b * step.sizes.hidden_size, j, n, aligned);
  return d_new_hidden<T, V>(step, b, j, n, aligned);
}

// Stores d_c_{t-1}; a reset before step t cuts it off.
template <typename T, int V>
__device__ __forceinline__ void store_d_cell(const BackwardStep<T>& step, int64_t b, int64_t j, int64_t n, bool aligned,
                                             const Lanes<Accumulator<T>, V>& d_c_prev) {
  const bool is_reset = step.sequence.is_reset(step.t, b);
  store<V>(step.d_cell + b * step.sizes.hidden_size, j, n, aligned, is_reset ? Lanes<Accumulator<T>, V>{} : d_c_prev);
}

// unit_sums[which] += values.
template <typename T, int V>
__device__ __forceinline__ void add_to_sum(const BackwardStep<T>& step, int64_t which, int64_t b, int64_t j, int64_t n,
                                           bool aligned, const Lanes<Accumulator<T>, V>& values) {
  const int64_t H = step.sizes.hidden_size;
  Accumulator<T>* const row = step.unit_sums + (b * unit_sums(step.options) + which) * H;
  auto sum = load<V>(row, j, n, aligned);
#pragma unroll
  for (int lane = 0; lane < V; ++lane) sum[lane] += values[lane];
  store<V>(row, j, n, aligned, sum);
}

// Without layer norm: d_gates_ih and d_gates_hh are one.
template <typename T>
__global__ void __launch_bounds__(kPlainThreads) plain_kernel(const __grid_constant__ BackwardStep<T> step) {
  using A = Accumulator<T>;
  constexpr int V = kLanes<T>;
  const LayerOptions& options = step.options;
  const int64_t b = blockIdx.x, H = step.sizes.hidden_size;
  if (!step.sequence.is_real(step.t, b)) {
    if (!step.d_unprojected) put_product_by<T, V>(step, b);
    return zero_gates<T, V>(step, b);
  }
  for_each_vector<V, true>(H, [&](int64_t j, int64_t n) {
    const bool aligned = step.aligned && n >= V;
    const auto c_prev = previous_cell<T, V>(step, b, j, n, aligned);
    const Extras<T, V> extras(options, step.in, step.seed, step.t, b, j, n, aligned);
    const auto d_h = new_hidden_gradient<T, V>(step, b, j, n, aligned);
    const auto d_c = d_cell_of<T, V>(step, b, j, n, aligned);
    Lanes<A, V> gate_values[4], d_c_prev, cell, h;
#pragma unroll
    for (int gate = 0; gate < 4; ++gate) gate_values[gate] = load<V>(step.gates + b * 4 * H, gate * H + j, n, aligned);
#pragma unroll
    for (int lane = 0; lane < V; ++lane) {
      const CellExtras<A> own = extras.of(options, lane);
      const Gates<A> gates = {gate_values[0][lane], gate_values[1][lane], gate_values[2][lane], gate_values[3][lane]};
      cell[lane] = cell_with_mask(own, gates, c_prev[lane]);
      const A tanh_c = Math::tanh(cell[lane]);
      h[lane] = gates.o * tanh_c;
      const A d_z_o = d_output_gate(own, gates.o, d_h[lane], tanh_c);
      const A d_cell = d_c.rest[lane] + d_tanh(tanh_c, d_h[lane] * gates.o) + d_cell_of_output_gate(own, d_z_o);
      const Gates<A> d_z = d_cell_with_extras(own, gates, c_prev[lane], d_cell, d_c_prev[lane]);
      d_c_prev[lane] += d_c.passed[lane];
      gate_values[0][lane] = d_z.i;
      gate_values[1][lane] = d_z.f;
      gate_values[2][lane] = d_z.g;
      gate_values[3][lane] = d_z_o;
    }
    store_d_cell<T, V>(step, b, j, n, aligned, d_c_prev);
#pragma unroll
    for (int gate = 0; gate < 4; ++gate)
      store<V>(step.d_gates_ih + b * 4 * H, gate * H + j, n, aligned, gate_values[gate]);
    if (step.unprojected) store<V>(step.unprojected + b * H, j, n, aligned, h);
    if (options.peephole && step.unit_sums) {
      Lanes<A, V> d_ci, d_cf, d_co;
#pragma unroll
      for (int lane = 0; lane < V; ++lane) {
        d_ci[lane] = gate_values[0][lane] * c_prev[lane];
        d_cf[lane] = gate_values[1][lane] * c_prev[lane];
        d_co[lane] = gate_values[3][lane] * cell[lane];
      }
      add_to_sum<T, V>(step, 0, b, j, n, aligned, d_ci);
      add_to_sum<T, V>(step, 1, b, j, n, aligned, d_cf);
      add_to_sum<T, V>(step, 2, b, j, n, aligned, d_co);
    }
  });
}

// With layer norm: two sums over the row for the norm of c', four for those of the products.
template <typename T, bool kRegisters>
__global__ void __launch_bounds__(kThreads<T>) layer_norm_kernel(const __grid_constant__ BackwardStep<T> step) {
  using A = Accumulator<T>;
  // What is kept of a unit: W_ih x, W_hh h~, first the gates and then the gradients of the pre-activations; c', the
  // gradient of its normalized value, c_{t-1}, the candidate's mask, and the two parts of d_c_t.
  constexpr int V = kLanes<T>, kX = 0, kH = 4, kGates = 8, kCell = 12, kDCell = 13, kPrevious = 14, kMask = 15,
                kRest = 16, kPassed = 17;
  const LayerOptions& options = step.options;
  const int64_t b = blockIdx.x, H = step.sizes.hidden_size, padded = (H + V - 1) / V * V;
  if (!step.sequence.is_real(step.t, b)) {
    if (!step.d_unprojected) put_product_by<T, V>(step, b);
    return zero_gates<T, V>(step, b);
  }
  const bool carry = options.layer_norm == LayerNorm::carry;
  Kept<A, V, kBackwardSlots, kRegisters> kept(step.overflow + b * kBackwardSlots * padded, padded);
  A* const shared = shared_memory<A>();  // a part for each sum, see block_sum
  const int warps = blockDim.x / kWarp;
  A stats[6];
#pragma unroll
  for (int k = 0; k < 6; ++k) stats[k] = step.stats[b * 6 + k];

  // The gates and c' again, then the gradient of the normalized c' and its two sums.
  A cell_sums[2] = {};
  for_each_vector<V, kRegisters>(H, [&](int64_t j, int64_t n) {
    const bool aligned = step.aligned && n >= V;
    const auto c_prev = previous_cell<T, V>(step, b, j, n, aligned);
    const Extras<T, V> extras(options, step.in, step.seed, step.t, b, j, n, aligned);
    const auto d_h = new_hidden_gradient<T, V>(step, b, j, n, aligned);
    auto d_c = d_cell_of<T, V>(step, b, j, n, aligned);
    const auto gain = load<V>(step.in.weight_ln_c, j, n, aligned);
    const auto bias = load<V>(step.in.bias_ln_c, j, n, aligned);
    Lanes<A, V> z[4], cell, d_cell_hat, h, d_gain, d_bias;
#pragma unroll
    for (int gate = 0; gate < 4; ++gate) {
      const int64_t k = gate * H + j;
      const auto x_part = load<V>(step.gates + b * 4 * H, k, n, aligned);
      const auto h_part = load<V>(step.recurrent + b * 4 * H, k, n, aligned);
      z[gate] = pre_activation<T, V>(step.in, x_part, h_part, stats, k, n, aligned);
      kept.put(kX + gate, j, x_part);
      kept.put(kH + gate, j, h_part);
    }
#pragma unroll
    for (int lane = 0; lane < V; ++lane) {
      const CellExtras<A> own = extras.of(options, lane);
      Gates<A> gates{};
      cell[lane] =
          cell_with_extras<Math, A>(own, {z[0][lane], z[1][lane], z[2][lane], z[3][lane]}, c_prev[lane], gates);
      const A cell_hat = normalize(cell[lane], stats[4], stats[5]);
      const A tanh_n = Math::tanh(cell_hat * gain[lane] + bias[lane]);
      h[lane] = gates.o * tanh_n;
      const A d_z_o = d_output_gate(own, gates.o, d_h[lane], tanh_n);
      A d_n = d_tanh(tanh_n, d_h[lane] * gates.o);
      if (carry) {
        d_n += d_c.rest[lane];
        d_c.rest[lane] = 0;
      }
      d_c.rest[lane] += d_cell_of_output_gate(own, d_z_o);
      d_gain[lane] = d_n * cell_hat;
      d_bias[lane] = d_n;
      d_cell_hat[lane] = d_n * gain[lane];
      if (lane < n) {
        cell_sums[0] += d_cell_hat[lane];
        cell_sums[1] += d_cell_hat[lane] * cell_hat;
      }
      z[0][lane] = gates.i;
      z[1][lane] = gates.f;
      z[2][lane] = gates.g;
      z[3][lane] = d_z_o;
    }
    if (step.unit_sums) {
      add_to_sum<T, V>(step, 0, b, j, n, aligned, d_gain);
      add_to_sum<T, V>(step, 1, b, j, n, aligned, d_bias);
    }
    if (step.unprojected) store<V>(step.unprojected + b * H, j, n, aligned, h);
#pragma unroll
    for (int gate = 0; gate < 4; ++gate) kept.put(kGates + gate, j, z[gate]);
    kept.put(kCell, j, cell);
    kept.put(kDCell, j, d_cell_hat);
    kept.put(kPrevious, j, c_prev);
    kept.put(kMask, j, extras.mask);
    kept.put(kRest, j, d_c.rest);
    kept.put(kPassed, j, d_c.passed);
  });
  block_sum(cell_sums, shared);
  const A mean_d = cell_sums[0] / static_cast<A>(H), mean_d_cell = cell_sums[1] / static_cast<A>(H);

  // The gradients of the pre-activations, and the sums of the two norms over the 4H gates.
  A sums[4] = {};  // of d_x_hat, d_x_hat * x_hat, d_h_hat, d_h_hat * h_hat
  for_each_vector<V, kRegisters>(H, [&](int64_t j, int64_t n) {
    const bool aligned = step.aligned && n >= V;
    Extras<T, V> extras(options, step.in, j, n, aligned);
    extras.mask = kept.get(kMask, j);
    const auto cell = kept.get(kCell, j), c_prev = kept.get(kPrevious, j), d_cell_hat = kept.get(kDCell, j);
    const auto rest = kept.get(kRest, j), passed = kept.get(kPassed, j);
    Lanes<A, V> z[4], d_c_prev;
#pragma unroll
    for (int gate = 0; gate < 4; ++gate) z[gate] = kept.get(kGates + gate, j);
#pragma unroll
    for (int lane = 0; lane < V; ++lane) {
      const CellExtras<A> own = extras.of(options, lane);
      const Gates<A> gates = {z[0][lane], z[1][lane], z[2][lane], 0};
      const A d_cell = rest[lane] + d_normalize(d_cell_hat[lane], normalize(cell[lane], stats[4], stats[5]), mean_d,
                                                mean_d_cell, stats[5]);
      const Gates<A> d_z = d_cell_with_extras(own, gates, c_prev[lane], d_cell, d_c_prev[lane]);
      d_c_prev[lane] += passed[lane];
      z[0][lane] = d_z.i;
      z[1][lane] = d_z.f;
      z[2][lane] = d_z.g;
    }
    store_d_cell<T, V>(step, b, j, n, aligned, d_c_prev);
#pragma unroll
    for (int gate = 0; gate < 4; ++gate) {
      const int64_t k = gate * H + j;
      const auto gain_x = load<V>(step.in.weight_ln_ih, k, n, aligned);
      const auto gain_h = load<V>(step.in.weight_ln_hh, k, n, aligned);
      const auto x_part = kept.get(kX + gate, j), h_part = kept.get(kH + gate, j);
#pragma unroll
      for (int lane = 0; lane < V; ++lane)
        if (lane < n) {
          const A d_x = z[gate][lane] * gain_x[lane], d_h = z[gate][lane] * gain_h[lane];
          sums[0] += d_x;
          sums[1] += d_x * normalize(x_part[lane], stats[0], stats[1]);
          sums[2] += d_h;
          sums[3] += d_h * normalize(h_part[lane], stats[2], stats[3]);
        }
      if (step.d_z) store<V>(step.d_z + b * 4 * H, k, n, aligned, z[gate]);
      kept.put(kGates + gate, j, z[gate]);
    }
    if (options.peephole && step.unit_sums) {
      Lanes<A, V> d_ci, d_cf, d_co;
#pragma unroll
      for (int lane = 0; lane < V; ++lane) {
        d_ci[lane] = z[0][lane] * c_prev[lane];
        d_cf[lane] = z[1][lane] * c_prev[lane];
        d_co[lane] = z[3][lane] * cell[lane];
      }
      add_to_sum<T, V>(step, 2, b, j, n, aligned, d_ci);
      add_to_sum<T, V>(step, 3, b, j, n, aligned, d_cf);
      add_to_sum<T, V>(step, 4, b, j, n, aligned, d_co);
    }
  });
  block_sum(sums, shared + 2 * warps);
#pragma unroll
  for (int k = 0; k < 4; ++k) sums[k] /= static_cast<A>(4 * H);

  for_each_vector<V, kRegisters>(H, [&](int64_t j, int64_t n) {
    const bool aligned = step.aligned && n >= V;
#pragma unroll
    for (int gate = 0; gate < 4; ++gate) {
      const int64_t k = gate * H + j;
      const auto d_z = kept.get(kGates + gate, j);
      auto d_x = load<V>(step.in.weight_ln_ih, k, n, aligned), d_h = load<V>(step.in.weight_ln_hh, k, n, aligned);
      const auto x_part = kept.get(kX + gate, j), h_part = kept.get(kH + gate, j);
#pragma unroll
      for (int lane = 0; lane < V; ++lane) {
        d_x[lane] =
            d_normalize(d_z[lane] * d_x[lane], normalize(x_part[lane], stats[0], stats[1]), sums[0], sums[1], stats[1]);
        d_h[lane] =
            d_normalize(d_z[lane] * d_h[lane], normalize(h_part[lane], stats[2], stats[3]), sums[2], sums[3], stats[3]);
      }
      store<V>(step.d_gates_ih + b * 4 * H, k, n, aligned, d_x);
      store<V>(step.d_gates_hh + b * 4 * H, k, n, aligned, d_h);
    }
  });
}

template <typename T>
__global__ void __launch_bounds__(kPlainThreads) finish_kernel(const __grid_constant__ Finish<T> finish) {
  const int64_t b = blockIdx.x, H = finish.sizes.hidden_size, P = finish.sizes.projection_size;
  const Sequence& sequence = finish.sequence;
  const int64_t length = sequence.length(b);
  for_each_vector<1, false>(P, [&](int64_t j, int64_t) {
    Accumulator<T> d_h;
    if (length == 0)
      d_h = widen(finish.d_h_n[b * P + j]);
    else if (sequence.reverse && length < sequence.steps)
      d_h = finish.passed[b * P + j];  // put by, see put_product_by
    else
      d_h = flows_back<T, 1>(finish, sequence.first(b), b, j, 1, false)[0];
    finish.d_h_0[b * P + j] = Narrow<T>::from(d_h);
  });
  for_each_vector<1, false>(H, [&](int64_t j, int64_t) {
    finish.d_c_0[b * H + j] = Narrow<T>::from(length == 0 ? widen(finish.d_c_n[b * H + j]) : finish.d_cell[b * H + j]);
  });
}

}  // namespace

template <typename T>
cudaError_t backward_project_step(const BackwardStep<T>& step, cudaStream_t stream) {
  const unsigned threads = threads_for<T>(step.sizes.projection_size, kPlainThreads);
  return launch(project_kernel<T>, {step.sizes.batch}, threads, 0, stream, step);
}

template <typename T>
cudaError_t backward_step(const BackwardStep<T>& step, cudaStream_t stream) {
  const int64_t H = step.sizes.hidden_size, rows = step.sizes.batch;
  if (!has_layer_norm(step.options)) {
    const unsigned threads = threads_for<T>(H, kPlainThreads);
    const int64_t parts = (H + threads * kLanes<T> - 1) / (threads * kLanes<T>);
    return launch(plain_kernel<T>, {rows, parts}, threads, 0, stream, step);
  }
  const unsigned threads = threads_for<T>(H, kThreads<T>);
  const size_t shared = 6 * threads / kWarp * sizeof(Accumulator<T>);
  const auto kernel = step.overflow ? layer_norm_kernel<T, false> : layer_norm_kernel<T, true>;
  return launch(kernel, {rows}, threads, shared, stream, step);
}

template <typename T>
cudaError_t finish(const Finish<T>& finish, cudaStream_t stream) {
  return launch(finish_kernel<T>, {finish.sizes.batch}, kPlainThreads, 0, stream, finish);
}

#define LSTM_FUSED_INSTANTIATE(T)                                                      \
  template cudaError_t backward_project_step<T>(const BackwardStep<T>&, cudaStream_t); \
  template cudaError_t backward_step<T>(const BackwardStep<T>&, cudaStream_t);         \
  template cudaError_t finish<T>(const Finish<T>&, cudaStream_t);
LSTM_FUSED_INSTANTIATE(float)
LSTM_FUSED_INSTANTIATE(double)
LSTM_FUSED_INSTANTIATE(__half)
LSTM_FUSED_INSTANTIATE(__nv_bfloat16)
#undef LSTM_FUSED_INSTANTIATE

}  // namespace lstm_fused::cuda
