// The forward kernels: the state before a step, and one step of all rows after its product with W_hh.
//
//   z   = N(W_ih x_t) + N(W_hh h~_{t-1}) + b          N: layer norm over 4H, or the identity
//   c'  = f * c_{t-1} + i * (m_g * g),  h' = o * Math::tanh(N_c(c'))
//   c_t = zoneout(c' or N_c(c'), c_{t-1}),  h_t = zoneout(h', h_{t-1})
//   y_t = m_y * h_t,                    h~_t = m_h * h_t
//
// One block takes one row (sequence); without layer norm, which needs no sum over the row, several blocks share one.
// A row that has ended keeps its state, and gives zeros.
#include "cuda/reduce.h"
#include "cuda/units.h"

namespace lstm_fused::cuda {

namespace {

constexpr int kPlainThreads = 128;  // a block without sums over its row
constexpr int kPlainBlocks = 8;     // of a multiprocessor: left to itself ptxas aims at 16, and spills registers for it

template <typename T>
__global__ void start_kernel(const __grid_constant__ Start<T> start) {
  using A = Accumulator<T>;
  const int64_t b = blockIdx.x, H = start.sizes.hidden_size, P = start.sizes.projection_size;
  const int64_t first = start.sequence.first(b);
  const int64_t next = start.sequence.reverse && first < start.t ? first : start.t;
  for_each_vector<1, false>(P, [&](int64_t j, int64_t) {
    const T h = start.h_0[b * P + j];
    start.h[b * P + j] = h;
    if (!start.operand) return;
    const bool runs = start.sequence.length(b) > 0;
    const Lanes<A, 1> masked =
        hidden_operand<T, 1>(start.options, start.sequence, start.seed, runs ? next : 0, b, j, {widen(h)});
    start.operand[b * P + j] = Narrow<T>::from(masked[0]);
  });
  for_each_vector<1, false>(H, [&](int64_t j, int64_t) { start.cell[b * H + j] = widen(start.c_0[b * H + j]); });
}

// From h' on: zoneout, the masks, and everything that is stored, for units [j, j + n) of row b.
template <typename T, int V>
__device__ __forceinline__ void finish_hidden(const ForwardStep<T>& step, int64_t b, int64_t j, int64_t n, bool aligned,
                                              Lanes<Accumulator<T>, V> h) {
  using A = Accumulator<T>;
  const LayerOptions& options = step.options;
  const int64_t P = step.sizes.projection_size, t = step.t;
  if (options.zoneout_h > 0) {
    const auto keep = zoneout_mask<A, V>(step.seed, options.stream, MaskUse::zoneout_h, options.zoneout_h,
                                         options.training, t + options.first_step, b, j);
    const auto before = step.sequence.is_reset(t, b) ? Lanes<A, V>{} : load<V>(step.h + b * P, j, n, aligned);
#pragma unroll
    for (int lane = 0; lane < V; ++lane) h[lane] = zoneout(h[lane], before[lane], keep[lane]);
  }
  store<V>(step.h + b * P, j, n, aligned, h);
  if (step.hidden) store<V>(step.hidden + b * P, j, n, aligned, h);
  if (step.operand) {
    const int64_t next = step.sequence.after(t);
    const bool runs = next >= 0 && step.sequence.is_real(next, b);
    store<V>(step.operand + b * P, j, n, aligned,
             runs ? hidden_operand<T, V>(options, step.sequence, step.seed, next, b, j, h) : h);
  }
  if (options.training && options.dropout > 0) {
    const auto mask = dropout_mask<A, V>(step.seed, options.stream, MaskUse::output, options.dropout,
                                         options.variational ? 0 : t + options.first_step, b, j);
#pragma unroll
    for (int lane = 0; lane < V; ++lane) h[lane] *= mask[lane];
  }
  store<V>(step.output + b * P, j, n, aligned, h);
}

// From c' (or its norm) and h' on.
template <typename T, int V>
__device__ __forceinline__ void finish_units(const ForwardStep<T>& step, int64_t b, int64_t j, int64_t n, bool aligned,
                                             const Lanes<Accumulator<T>, V>& c_prev, Lanes<Accumulator<T>, V> c,
                                             const Lanes<Accumulator<T>, V>& h) {
  using A = Accumulator<T>;
  const LayerOptions& options = step.options;
  const int64_t H = step.sizes.hidden_size;
  if (options.zoneout_c > 0) {
    const auto keep = zoneout_mask<A, V>(step.seed, options.stream, MaskUse::zoneout_c, options.zoneout_c,
                                         options.training, step.t + options.first_step, b, j);
#pragma unroll
    for (int lane = 0; lane < V; ++lane) c[lane] = zoneout(c[lane], c_prev[lane], keep[lane]);
  }
  store<V>(step.cell + b * H, j, n, aligned, c);
  if (step.cells) store<V>(step.cells + b * H, j, n, aligned, c);
  if (step.unprojected)
    store<V>(step.unprojected + b * H, j, n, aligned, h);
  else
    finish_hidden<T, V>(step, b, j, n, aligned, h);
}

// What a row that has ended leaves of step t.
template <typename T, int V>
__device__ __forceinline__ void finish_ended_row(const ForwardStep<T>& step, int64_t b, int64_t units, bool hidden) {
  using A = Accumulator<T>;
  for_each_vector<V, false>(units, [&](int64_t j, int64_t n) {
    const bool aligned = step.aligned && n >= V;
    if (!hidden) {
      if (step.cells) store<V>(step.cells + b * units, j, n, aligned, Lanes<A, V>{});
      if (step.unprojected) store<V>(step.unprojected + b * units, j, n, aligned, Lanes<A, V>{});
    } else {
      if (step.hidden) store<V>(step.hidden + b * units, j, n, aligned, Lanes<A, V>{});
      store<V>(step.output + b * units, j, n, aligned, Lanes<A, V>{});
    }
  });
}

template <typename T>
__global__ void __launch_bounds__(kPlainThreads, kPlainBlocks)
    project_kernel(const __grid_constant__ ForwardStep<T> step) {
  constexpr int V = kLanes<T>;
  const int64_t b = blockIdx.x, P = step.sizes.projection_size;
  if (!step.sequence.is_real(step.t, b)) return finish_ended_row<T, V>(step, b, P, true);
  for_each_vector<V, false>(P, [&](int64_t j, int64_t n) {
    const bool aligned = step.aligned && n >= V;
    finish_hidden<T, V>(step, b, j, n, aligned, load<V>(step.projected + b * P, j, n, aligned));
  });
}

// Without layer norm.
template <typename T>
__global__ void __launch_bounds__(kPlainThreads) plain_kernel(const __grid_constant__ ForwardStep<T> step) {
  using A = Accumulator<T>;
  constexpr int V = kLanes<T>;
  const LayerOptions& options = step.options;
  const int64_t b = blockIdx.x, H = step.sizes.hidden_size;
  if (!step.sequence.is_real(step.t, b)) {
    finish_ended_row<T, V>(step, b, H, false);
    if (!step.unprojected) finish_ended_row<T, V>(step, b, H, true);
    return;
  }
  T* const gates_row = step.gates + b * 4 * H;
  const T* const recurrent_row = step.recurrent + b * 4 * H;
  const bool is_reset = step.sequence.is_reset(step.t, b);
  for_each_vector<V, true>(H, [&](int64_t j, int64_t n) {
    const bool aligned = step.aligned && n >= V;
    const auto c_prev = is_reset ? Lanes<A, V>{} : load<V>(step.cell + b * H, j, n, aligned);
    const Extras<T, V> extras(options, step.in, step.seed, step.t, b, j, n, aligned);
    Lanes<A, V> z[4], c, h;
#pragma unroll
    for (int gate = 0; gate < 4; ++gate) {
      const int64_t k = gate * H + j;
      z[gate] = pre_activation<T, V>(step.in, load<V>(gates_row, k, n, aligned), load<V>(recurrent_row, k, n, aligned),
                                     nullptr, k, n, aligned);
    }
#pragma unroll
    for (int lane = 0; lane < V; ++lane) {
      Gates<A> gates{};
      c[lane] = cell_with_extras<Math, A>(extras.of(options, lane), {z[0][lane], z[1][lane], z[2][lane], z[3][lane]},
                                          c_prev[lane], gates);
      h[lane] = gates.o * Math::tanh(c[lane]);
      z[0][lane] = gates.i;
      z[1][lane] = gates.f;
      z[2][lane] = gates.g;
      z[3][lane] = gates.o;
    }
    if (step.saves)
#pragma unroll
      for (int gate = 0; gate < 4; ++gate) store<V>(gates_row, gate * H + j, n, aligned, z[gate]);
    finish_units<T, V>(step, b, j, n, aligned, c_prev, c, h);
  });
}

// With layer norm: four sums over the row, each after the other: two means of two passes each, of the products (both at
// once) and of c'.
template <typename T, bool kRegisters>
__global__ void __launch_bounds__(kThreads<T>) layer_norm_kernel(const __grid_constant__ ForwardStep<T> step) {
  using A = Accumulator<T>;
  constexpr int V = kLanes<T>, kX = 0, kH = 4, kCell = 8, kOutputGate = 9;
  const LayerOptions& options = step.options;
  const int64_t b = blockIdx.x, H = step.sizes.hidden_size, padded = (H + V - 1) / V * V;
  if (!step.sequence.is_real(step.t, b)) {
    finish_ended_row<T, V>(step, b, H, false);
    if (!step.unprojected) finish_ended_row<T, V>(step, b, H, true);
    return;
  }
  const T* const gates_row = step.gates + b * 4 * H;
  const T* const recurrent_row = step.recurrent + b * 4 * H;
  const bool is_reset = step.sequence.is_reset(step.t, b);
  Kept<A, V, kForwardSlots, kRegisters> kept(step.overflow + b * kForwardSlots * padded, padded);
  A* const shared = shared_memory<A>();  // a part for each sum, see block_sum
  const int warps = blockDim.x / kWarp;

  A means[2] = {};
  for_each_vector<V, kRegisters>(H, [&](int64_t j, int64_t n) {
    const bool aligned = step.aligned && n >= V;
#pragma unroll
    for (int gate = 0; gate < 4; ++gate) {
      const auto x = load<V>(gates_row, gate * H + j, n, aligned);
      const auto h = load<V>(recurrent_row, gate * H + j, n, aligned);
      kept.put(kX + gate, j, x);
      kept.put(kH + gate, j, h);
#pragma unroll
      for (int lane = 0; lane < V; ++lane) {
        means[0] += x[lane];
        means[1] += h[lane];
      }
    }
  });
  block_sum(means, shared);
  means[0] /= static_cast<A>(4 * H);
  means[1] /= static_cast<A>(4 * H);

  A squares[2] = {};
  for_each_vector<V, kRegisters>(H, [&](int64_t j, int64_t n) {
#pragma unroll
    for (int gate = 0; gate < 4; ++gate) {
      const auto x = kept.get(kX + gate, j), h = kept.get(kH + gate, j);
#pragma unroll
      for (int lane = 0; lane < V; ++lane)
        if (lane < n) {
          squares[0] += (x[lane] - means[0]) * (x[lane] - means[0]);
          squares[1] += (h[lane] - means[1]) * (h[lane] - means[1]);
        }
    }
  });
  block_sum(squares, shared + 2 * warps);
  const A eps = static_cast<A>(options.eps);
  const A stats[4] = {means[0], 1 / Math::sqrt(squares[0] / static_cast<A>(4 * H) + eps), means[1],
                      1 / Math::sqrt(squares[1] / static_cast<A>(4 * H) + eps)};

  A cell_mean[1] = {};
  for_each_vector<V, kRegisters>(H, [&](int64_t j, int64_t n) {
    const bool aligned = step.aligned && n >= V;
    const auto c_prev = is_reset ? Lanes<A, V>{} : load<V>(step.cell + b * H, j, n, aligned);
    const Extras<T, V> extras(options, step.in, step.seed, step.t, b, j, n, aligned);
    Lanes<A, V> z[4], c, o;
#pragma unroll
    for (int gate = 0; gate < 4; ++gate)
      z[gate] = pre_activation<T, V>(step.in, kept.get(kX + gate, j), kept.get(kH + gate, j), stats, gate * H + j, n,
                                     aligned);
#pragma unroll
    for (int lane = 0; lane < V; ++lane) {
      Gates<A> gates{};
      c[lane] = cell_with_extras<Math, A>(extras.of(options, lane), {z[0][lane], z[1][lane], z[2][lane], z[3][lane]},
                                          c_prev[lane], gates);
      o[lane] = gates.o;
      if (lane < n) cell_mean[0] += c[lane];
    }
    kept.put(kCell, j, c);
    kept.put(kOutputGate, j, o);
  });
  block_sum(cell_mean, shared + 4 * warps);
  const A mean = cell_mean[0] / static_cast<A>(H);

  A cell_squares[1] = {};
  for_each_vector<V, kRegisters>(H, [&](int64_t j, int64_t n) {
    const auto c = kept.get(kCell, j);
#pragma unroll
    for (int lane = 0; lane < V; ++lane)
      if (lane < n) cell_squares[0] += (c[lane] - mean) * (c[lane] - mean);
  });
  block_sum(cell_squares, shared + 5 * warps);
  const A rstd = 1 / Math::sqrt(cell_squares[0] / static_cast<A>(H) + eps);

  for_each_vector<V, kRegisters>(H, [&](int64_t j, int64_t n) {
    const bool aligned = step.aligned && n >= V;
    const auto c_prev = is_reset ? Lanes<A, V>{} : load<V>(step.cell + b * H, j, n, aligned);
    const auto gain = load<V>(step.in.weight_ln_c, j, n, aligned);
    const auto bias = load<V>(step.in.bias_ln_c, j, n, aligned);
    auto c = kept.get(kCell, j), h = kept.get(kOutputGate, j);
#pragma unroll
    for (int lane = 0; lane < V; ++lane) {
      const A normalized = normalize(c[lane], mean, rstd) * gain[lane] + bias[lane];
      h[lane] *= Math::tanh(normalized);
      if (options.layer_norm == LayerNorm::carry) c[lane] = normalized;
    }
    finish_units<T, V>(step, b, j, n, aligned, c_prev, c, h);
  });
  if (step.stats && threadIdx.x == 0) {
    A* const row = step.stats + b * 6;
#pragma unroll
    for (int k = 0; k < 4; ++k) row[k] = stats[k];
    row[4] = mean;
    row[5] = rstd;
  }
}

}  // namespace

template <typename T>
cudaError_t start(const Start<T>& start, cudaStream_t stream) {
  return launch(start_kernel<T>, {start.sizes.batch}, kPlainThreads, 0, stream, start);
}

template <typename T>
cudaError_t forward_step(const ForwardStep<T>& step, cudaStream_t stream) {
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
cudaError_t project_step(const ForwardStep<T>& step, cudaStream_t stream) {
  const unsigned threads = threads_for<T>(step.sizes.projection_size, kPlainThreads);
  return launch(project_kernel<T>, {step.sizes.batch}, threads, 0, stream, step);
}

#define LSTM_FUSED_INSTANTIATE(T)                                            \
  template cudaError_t start<T>(const Start<T>&, cudaStream_t);              \
  template cudaError_t forward_step<T>(const ForwardStep<T>&, cudaStream_t); \
  template cudaError_t project_step<T>(const ForwardStep<T>&, cudaStream_t);
LSTM_FUSED_INSTANTIATE(float)
LSTM_FUSED_INSTANTIATE(double)
LSTM_FUSED_INSTANTIATE(__half)
LSTM_FUSED_INSTANTIATE(__nv_bfloat16)
#undef LSTM_FUSED_INSTANTIATE

}  // namespace lstm_fused::cuda
