// The forward kernels: the state before a step, and one step of all rows after its product with W_hh. The equations
// with all options: docs/equations.md.
//
//   z   = N(W_ih x_t) + N(W_hh h~_{t-1}) + b          N: layer norm over 4H, or the identity
//   c'  = f * c_{t-1} + i * (m_g * g),     h' = o * tanh(n),    n = N_c(c')
//   c_t = zoneout(c', c_{t-1}), in "carry" zoneout(n, c_{t-1}),    h_t = zoneout(h', h_{t-1})
//   y_t = m_y * h_t,    h~_t = m_h * h_t
//
// One block takes one row (sequence); without layer norm, which needs no sum over the row, several blocks share one.
// A row that has ended keeps its state, and gives zeros.
#include "cuda/launch.h"
#include "cuda/reduce.h"
#include "cuda/units.h"

namespace lstm_fused::cuda {

namespace {

template <typename T>
__global__ void start_kernel(const __grid_constant__ Start<T> start) {
  using A = Accumulator<T>;
  const int64_t b = blockIdx.x, H = start.sizes.hidden_size, P = start.sizes.projection_size;
  const int64_t first = start.sequence.first(b);
  const int64_t next = start.sequence.reverse && first < start.t ? first : start.t;
  const uint64_t seed = read_seed(start.seed);
  for_each_vector<1, false>(P, [&](int64_t j) {
    const T h = start.h_0[b * P + j];
    start.h[b * P + j] = h;
    if (!start.operand) return;
    const bool runs = start.sequence.length(b) > 0;
    const auto masked =
        hidden_operand<A, 1>(start.options, start.sequence, seed, runs ? next : 0, b, j, Lanes<A, 1>{widen(h)});
    start.operand[b * P + j] = Narrow<T>::from(masked[0]);
  });
  for_each_vector<1, false>(H, [&](int64_t j) { start.cell[b * H + j] = widen(start.c_0[b * H + j]); });
}

// What is the same for all units of row b at step t.
template <typename T>
struct Row {
  const ForwardStep<T>& step;
  const int64_t b, length;
  const bool is_real, is_reset;
  const uint64_t seed;

  __device__ __forceinline__ Row(const ForwardStep<T>& step, int64_t b)
      : step(step),
        b(b),
        length(step.sequence.length(b)),
        is_real(step.t < length),
        is_reset(step.sequence.is_reset(step.t, b)),
        seed(read_seed(step.seed)) {}
};

// What the step reads of V units of h and c before it, and of the norm of c', each where it is needed. Asked for early,
// since nothing has to be known for it: loads overlap where none waits for what comes before it.
template <typename T, int V, bool kNorm>
struct Before {
  using A = Accumulator<T>;
  Packed<A, V> cell;
  Packed<T, V> hidden{}, gain, bias;

  __device__ __forceinline__ Before() {}
  __device__ __forceinline__ void load_cell(const Row<T>& row, int64_t j) {
    cell = load<V>(row.step.cell + row.b * row.step.sizes.hidden_size, j);
  }
  __device__ __forceinline__ void load_rest(const Row<T>& row, int64_t j) {
    if (row.step.options.zoneout_h.on) hidden = load<V>(row.step.h + row.b * row.step.sizes.projection_size, j);
    if (!kNorm) return;
    gain = load<V>(row.step.in.weight_ln_c, j);
    bias = load<V>(row.step.in.bias_ln_c, j);
  }
  __device__ __forceinline__ Lanes<A, V> c(const Row<T>& row) const {
    return row.is_reset ? Lanes<A, V>{} : widen(cell);
  }
};

// From h' on: zoneout with the h before, the masks, and everything that is stored, for units [j, j + V).
template <typename T, int V>
__device__ __forceinline__ void finish_hidden(const Row<T>& row, int64_t j, const Packed<T, V>& before,
                                              Lanes<Accumulator<T>, V> h) {
  using A = Accumulator<T>;
  const ForwardStep<T>& step = row.step;
  const StepOptions<A>& options = step.options;
  const int64_t P = step.sizes.projection_size, t = step.t, b = row.b;
  if (options.zoneout_h.on) {
    const auto keep = zoneout_mask<A, V>(row.seed, options.stream, MaskUse::zoneout_h, options.zoneout_h,
                                         options.training, t + options.first_step, b, j);
    const auto previous = row.is_reset ? Lanes<A, V>{} : widen(before);
#pragma unroll
    for (int lane = 0; lane < V; ++lane) h[lane] = lstm_fused::zoneout(h[lane], previous[lane], keep[lane]);
  }
  store<V>(step.h + b * P, j, h);
  if (step.hidden) store<V>(step.hidden + b * P, j, h);
  if (step.operand) {
    const int64_t next = step.sequence.after(t);
    const bool runs = next >= 0 && next < row.length;
    store<V>(step.operand + b * P, j, runs ? hidden_operand<A, V>(options, step.sequence, row.seed, next, b, j, h) : h);
  }
  if (options.output.on) {
    const auto mask = dropout_mask<A, V>(row.seed, options.stream, MaskUse::output, options.output,
                                         options.variational ? 0 : t + options.first_step, b, j);
#pragma unroll
    for (int lane = 0; lane < V; ++lane) h[lane] *= mask[lane];
  }
  store<V>(step.output + b * P, j, h);
}

// From c' (or its norm) and h' on.
template <typename T, int V>
__device__ __forceinline__ void finish_units(const Row<T>& row, int64_t j, const Lanes<Accumulator<T>, V>& c_prev,
                                             const Packed<T, V>& h_prev, Lanes<Accumulator<T>, V> c,
                                             const Lanes<Accumulator<T>, V>& h) {
  using A = Accumulator<T>;
  const ForwardStep<T>& step = row.step;
  const StepOptions<A>& options = step.options;
  const int64_t H = step.sizes.hidden_size, b = row.b;
  if (options.zoneout_c.on) {
    const auto keep = zoneout_mask<A, V>(row.seed, options.stream, MaskUse::zoneout_c, options.zoneout_c,
                                         options.training, step.t + options.first_step, b, j);
#pragma unroll
    for (int lane = 0; lane < V; ++lane) c[lane] = lstm_fused::zoneout(c[lane], c_prev[lane], keep[lane]);
  }
  store<V>(step.cell + b * H, j, c);
  if (step.cells) store<V>(step.cells + b * H, j, c);
  if (step.unprojected)
    store<V>(step.unprojected + b * H, j, h);
  else
    finish_hidden<T, V>(row, j, h_prev, h);
}

// What a row that has ended leaves of step t: zeros, of its H units or of h.
template <typename T, int V>
__device__ __forceinline__ void finish_ended_row(const ForwardStep<T>& step, int64_t b, int64_t units, bool hidden) {
  using A = Accumulator<T>;
  for_each_vector<V, false>(units, [&](int64_t j) {
    if (!hidden) {
      if (step.cells) store<V>(step.cells + b * units, j, Lanes<A, V>{});
      if (step.unprojected) store<V>(step.unprojected + b * units, j, Lanes<A, V>{});
    } else {
      if (step.hidden) store<V>(step.hidden + b * units, j, Lanes<A, V>{});
      store<V>(step.output + b * units, j, Lanes<A, V>{});
    }
  });
}

template <typename T, int V>
__device__ __forceinline__ void finish_ended_row(const ForwardStep<T>& step, int64_t b) {
  const int64_t H = step.sizes.hidden_size;
  finish_ended_row<T, V>(step, b, H, false);
  if (!step.unprojected) finish_ended_row<T, V>(step, b, H, true);
}

template <typename T, int V>
__global__ void __launch_bounds__(kPlainThreads, kPlainBlocks)
    project_kernel(const __grid_constant__ ForwardStep<T> step) {
  const int64_t b = blockIdx.x, P = step.sizes.projection_size;
  const Row<T> row(step, b);
  if (!row.is_real) return finish_ended_row<T, V>(step, b, P, true);
  for_each_vector<V, false>(
      P, [&](int64_t j) { finish_hidden<T, V>(row, j, Packed<T, V>{}, widen(load<V>(step.projected + b * P, j))); });
}

// Without layer norm.
template <typename T, int V>
__global__ void __launch_bounds__(kPlainThreads) plain_kernel(const __grid_constant__ ForwardStep<T> step) {
  using A = Accumulator<T>;
  const StepOptions<A>& options = step.options;
  const int64_t b = blockIdx.x, H = step.sizes.hidden_size;
  const Row<T> row(step, b);
  if (!row.is_real) return finish_ended_row<T, V>(step, b);
  T* const gates_row = step.gates + b * 4 * H;
  const T* const recurrent_row = step.recurrent + b * 4 * H;
  for_each_vector<V, true>(H, [&](int64_t j) {
    const Products<T, V> products(gates_row, recurrent_row, H, j);
    Before<T, V, false> before;
    before.load_cell(row, j);
    before.load_rest(row, j);
    const Peepholes<T, V> peepholes(step.in, options.peephole, j);
    const auto parameters = GateParameters<T, V>::template of<false>(step.in, H, j);
    const auto c_prev = before.c(row);
    const UnitOptions<T, V> unit_options(peepholes, candidate_mask<A, V>(options, row.seed, step.t, b, j));
    Lanes<A, V> z[4], c, h;
#pragma unroll
    for (int gate = 0; gate < 4; ++gate)
      z[gate] = parameters.plain(gate, widen(products.x[gate]), widen(products.h[gate]));
#pragma unroll
    for (int lane = 0; lane < V; ++lane) {
      Gates<A> gates{};
      c[lane] = gates_and_cell<Math>(unit_options.of(options, lane),
                                     Gates<A>{z[0][lane], z[1][lane], z[2][lane], z[3][lane]}, c_prev[lane], gates);
      h[lane] = gates.o * activation<Math>(options.choices, c[lane]);
      z[0][lane] = gates.i;
      z[1][lane] = gates.f;
      z[2][lane] = gates.g;
      z[3][lane] = gates.o;
    }
    if (step.saves)
#pragma unroll
      for (int gate = 0; gate < 4; ++gate) store<V>(gates_row, gate * H + j, z[gate]);
    finish_units<T, V>(row, j, c_prev, before.hidden, c, h);
  });
}

// A row with layer norm: four sums over it, each after the other: two means of two passes each, of the products (both
// at once) and of c'. Where a thread has one vector (kRegisters) it asks for all it reads before the first of them, but
// for what there are no registers for until the gates are done, and that before the third.
template <typename T, int V, bool kRegisters>
struct NormedRow {
  using A = Accumulator<T>;
  static constexpr int kCell = 0, kOutputGate = 1;
  static constexpr bool kHasRoom = sizeof(T) != 4 || V < 4;  // for the peepholes until they are needed
  const Row<T>& row;
  const ForwardStep<T>& step;
  const int64_t b, H;
  const T* const gates_row;
  const T* const recurrent_row;
  Kept<A, V, kForwardSlots, kRegisters> kept;
  A* const shared;  // a part for each sum, see block_sum
  const int warps;
  GateParameters<T, V> parameters;
  Before<T, V, true> before;
  Peepholes<T, V> peepholes;
  Products<T, V> products;
  A stats[6];  // mean and rstd of W_ih x, of W_hh h~ and of c'

  __device__ __forceinline__ NormedRow(const Row<T>& row)
      : row(row),
        step(row.step),
        b(row.b),
        H(row.step.sizes.hidden_size),
        gates_row(step.gates + b * 4 * H),
        recurrent_row(step.recurrent + b * 4 * H),
        kept(step.spill + b * kForwardSlots * H, H),
        shared(shared_memory<A>()),
        warps(blockDim.x / kWarp) {}

  __device__ __forceinline__ void normalize_products() {
    A means[2] = {};
    for_each_vector<V, kRegisters>(H, [&](int64_t j) {
      products = Products<T, V>(gates_row, recurrent_row, H, j);
      if (kRegisters) {
        before.load_cell(row, j);
        if (kHasRoom) peepholes = Peepholes<T, V>(step.in, step.options.peephole, j);
        parameters = GateParameters<T, V>::template of<true>(step.in, H, j);
      }
#pragma unroll
      for (int gate = 0; gate < 4; ++gate) {
        const auto x = widen(products.x[gate]), h = widen(products.h[gate]);
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
    for_each_vector<V, kRegisters>(H, [&](int64_t j) {
      if (!kRegisters) products = Products<T, V>(gates_row, recurrent_row, H, j);
#pragma unroll
      for (int gate = 0; gate < 4; ++gate) {
        const auto x = widen(products.x[gate]), h = widen(products.h[gate]);
#pragma unroll
        for (int lane = 0; lane < V; ++lane) {
          squares[0] += (x[lane] - means[0]) * (x[lane] - means[0]);
          squares[1] += (h[lane] - means[1]) * (h[lane] - means[1]);
        }
      }
    });
    block_sum(squares, shared + 2 * warps);
    stats[0] = means[0];
    stats[1] = 1 / Math::sqrt(squares[0] / static_cast<A>(4 * H) + step.options.eps);
    stats[2] = means[1];
    stats[3] = 1 / Math::sqrt(squares[1] / static_cast<A>(4 * H) + step.options.eps);
  }

  // The gates and c', and the statistics of c'.
  __device__ __forceinline__ void compute_cell() {
    A cell_mean[1] = {};
    for_each_vector<V, kRegisters>(H, [&](int64_t j) {
      if (!(kRegisters && kHasRoom)) peepholes = Peepholes<T, V>(step.in, step.options.peephole, j);
      if (!kRegisters) {
        products = Products<T, V>(gates_row, recurrent_row, H, j);
        before.load_cell(row, j);
        parameters = GateParameters<T, V>::template of<true>(step.in, H, j);
      }
      const auto c_prev = before.c(row);
      const UnitOptions<T, V> unit_options(peepholes, candidate_mask<A, V>(step.options, row.seed, step.t, b, j));
      Lanes<A, V> z[4], c, o;
#pragma unroll
      for (int gate = 0; gate < 4; ++gate)
        z[gate] = parameters.normalized(gate, widen(products.x[gate]), widen(products.h[gate]), stats);
#pragma unroll
      for (int lane = 0; lane < V; ++lane) {
        Gates<A> gates{};
        c[lane] = gates_and_cell<Math>(unit_options.of(step.options, lane),
                                       Gates<A>{z[0][lane], z[1][lane], z[2][lane], z[3][lane]}, c_prev[lane], gates);
        o[lane] = gates.o;
        cell_mean[0] += c[lane];
      }
      kept.put(kCell, j, c);
      kept.put(kOutputGate, j, o);
      if (kRegisters) before.load_rest(row, j);
    });
    block_sum(cell_mean, shared + 4 * warps);
    const A mean = cell_mean[0] / static_cast<A>(H);

    A cell_squares[1] = {};
    for_each_vector<V, kRegisters>(H, [&](int64_t j) {
      const auto c = kept.get(kCell, j);
#pragma unroll
      for (int lane = 0; lane < V; ++lane) cell_squares[0] += (c[lane] - mean) * (c[lane] - mean);
    });
    block_sum(cell_squares, shared + 5 * warps);
    stats[4] = mean;
    stats[5] = 1 / Math::sqrt(cell_squares[0] / static_cast<A>(H) + step.options.eps);
  }

  // From the norm of c' to h_t, and everything that is stored.
  __device__ __forceinline__ void compute_hidden() {
    for_each_vector<V, kRegisters>(H, [&](int64_t j) {
      if (!kRegisters) {
        before.load_cell(row, j);
        before.load_rest(row, j);
      }
      const auto gain = widen(before.gain), bias = widen(before.bias);
      auto c = kept.get(kCell, j), h = kept.get(kOutputGate, j);
#pragma unroll
      for (int lane = 0; lane < V; ++lane) {
        const A normalized = normalize(c[lane], stats[4], stats[5]) * gain[lane] + bias[lane];
        h[lane] *= activation<Math>(step.options.choices, normalized);
        if (step.options.layer_norm == LayerNorm::carry) c[lane] = normalized;
      }
      finish_units<T, V>(row, j, before.c(row), before.hidden, c, h);
    });
    if (!step.stats || threadIdx.x != 0) return;
    A* const to = step.stats + b * 6;
#pragma unroll
    for (int k = 0; k < 6; ++k) to[k] = stats[k];
  }
};

template <typename T, int V, bool kRegisters>
__global__ void __launch_bounds__(kThreads<T, V, kRegisters>, 1)
    layer_norm_kernel(const __grid_constant__ ForwardStep<T> step) {
  const Row<T> row(step, blockIdx.x);
  if (!row.is_real) return finish_ended_row<T, V>(step, row.b);
  NormedRow<T, V, kRegisters> normed(row);
  normed.normalize_products();
  normed.compute_cell();
  normed.compute_hidden();
}

template <typename T>
struct ForwardKernels {
  using Kernel = void (*)(ForwardStep<T>);
  static constexpr int kNormLanes = kLanes<T>;
  template <int V>
  static Kernel plain() {
    return plain_kernel<T, V>;
  }
  template <int V, bool kRegisters>
  static Kernel layer_norm(int64_t) {
    return layer_norm_kernel<T, V, kRegisters>;
  }
  template <int V>
  static Kernel project() {
    return project_kernel<T, V>;
  }
};

}  // namespace

template <typename T>
cudaError_t start(const Start<T>& start, cudaStream_t stream) {
  return launch(start_kernel<T>, {start.sizes.batch}, kPlainThreads, 0, stream, start);
}

template <typename T>
cudaError_t forward_step(const ForwardStep<T>& step, cudaStream_t stream) {
  return launch_step<T, ForwardKernels<T>>(step, stream);
}

template <typename T>
cudaError_t project_step(const ForwardStep<T>& step, cudaStream_t stream) {
  return launch_project_step<T, ForwardKernels<T>>(step, stream);
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
