// The backward kernels: one step of all rows, last step first, and the gradient of the initial state. Derived, with all
// options, in docs/equations.md; without the peepholes:
//
//   d_h_t   = m_y * d_y_t + (what flows back from the step that ran after t);  with a projection times W_hr
//   d_h'    = (1 - k_h) * d_h_t                                                                      k: zoneout
//   d_n     = d_h' * o * (1 - tanh^2 n), in "carry" + (1 - k_c) * d_c_t
//   d_c'    = d_n through N_c, otherwise + (1 - k_c) * d_c_t
//   d_z     = the gates' derivatives;  d(W_ih x) and d(W_hh h~) = d_z through the layer norms
//   d_h_{t-1} = m_h * (d(W_hh h~) W_hh) + k_h * d_h_t,   d_c_{t-1} = f * d_c' + k_c * d_c_t
//
// One block takes one row, as in the forward pass. A row that has ended gives zeros, which the products after the loop
// may sum.
#include "cuda/launch.h"
#include "cuda/reduce.h"
#include "cuda/units.h"

namespace lstm_fused::cuda {

namespace {

// What is the same for all units of row b at step t.
template <typename Step>
struct Row {
  const Step& step;
  const int64_t b, length;
  const uint64_t seed;

  __device__ __forceinline__ Row(const Step& step, int64_t b)
      : step(step), b(b), length(step.sequence.length(b)), seed(read_seed(step.seed)) {}
  __device__ __forceinline__ int64_t first() const { return step.sequence.reverse ? length - 1 : 0; }
  __device__ __forceinline__ int64_t last() const { return step.sequence.reverse ? 0 : length - 1; }
};

// What flows back into the h that step t of the row started from: through the product, and `d_h_carry` by other ways.
template <typename T, int V, typename Step>
__device__ __forceinline__ Lanes<Accumulator<T>, V> flows_back(const Row<Step>& row, int64_t t, int64_t j,
                                                               const Packed<T, V>& product,
                                                               const Packed<Accumulator<T>, V>& d_h_carry) {
  using A = Accumulator<T>;
  const Step& step = row.step;
  auto d_h = hidden_operand<A, V>(step.options, step.sequence, row.seed, t, row.b, j,
                                  widen(product));  // the derivative of h~ is its mask
  const auto by_others = widen(d_h_carry);
#pragma unroll
  for (int lane = 0; lane < V; ++lane) d_h[lane] += by_others[lane];
  return d_h;
}

template <typename T, int V, typename Step>
__device__ __forceinline__ Packed<Accumulator<T>, V> load_d_h_carry(const Row<Step>& row, int64_t j) {
  const Step& step = row.step;
  return step.d_h_carry ? load<V>(step.d_h_carry + row.b * step.sizes.projection_size, j) : Packed<Accumulator<T>, V>{};
}

// What a step reads of V units of h's gradient. Asked for early: loads overlap where none waits for what comes before
// it.
template <typename T, int V>
struct HiddenGradient {
  using A = Accumulator<T>;
  using R = Row<BackwardStep<T>>;
  Packed<T, V> d_h{}, d_y{};  // d_h: of h_n or from the product; with a projection that of h' itself, and no d_y
  Packed<A, V> d_h_carry{};

  __device__ __forceinline__ HiddenGradient(const R& row, int64_t j) {
    const BackwardStep<T>& step = row.step;
    const int64_t P = step.sizes.projection_size;
    const T* const from = step.t == row.last() ? step.d_h_n : step.product;
    d_h = load<V>(from + row.b * P, j);
    d_y = load<V>(step.d_output + row.b * P, j);
    if (step.t != row.last()) d_h_carry = load_d_h_carry<T, V>(row, j);
  }
  // Where a projection has made d_h' already.
  __device__ __forceinline__ HiddenGradient(const Packed<T, V>& d_unprojected) : d_h(d_unprojected) {}

  // d_h'; what zoneout passes on is stored.
  __device__ __forceinline__ Lanes<A, V> value(const R& row, int64_t j) const {
    const BackwardStep<T>& step = row.step;
    const StepOptions<A>& options = step.options;
    const Sequence& sequence = step.sequence;
    const int64_t P = step.sizes.projection_size, t = step.t, b = row.b;
    auto sum = t == row.last() ? widen(d_h) : flows_back<T, V>(row, sequence.after(t), j, d_h, d_h_carry);
    auto own = widen(d_y);
    if (options.output.on) {
      const auto mask = dropout_mask<A, V>(row.seed, options.stream, MaskUse::output, options.output,
                                           options.variational ? 0 : t + options.first_step, b, j);
#pragma unroll
      for (int lane = 0; lane < V; ++lane) own[lane] *= mask[lane];
    }
#pragma unroll
    for (int lane = 0; lane < V; ++lane) sum[lane] += own[lane];

    Lanes<A, V> to_previous{};
    if (options.zoneout_h.on) {
      const auto keep = zoneout_mask<A, V>(row.seed, options.stream, MaskUse::zoneout_h, options.zoneout_h,
                                           options.training, t + options.first_step, b, j);
      const bool is_reset = sequence.is_reset(t, b);
#pragma unroll
      for (int lane = 0; lane < V; ++lane) {
        to_previous[lane] = is_reset ? A(0) : keep[lane] * sum[lane];
        sum[lane] *= 1 - keep[lane];
      }
    }
    if (step.d_h_carry) store<V>(step.d_h_carry + b * P, j, to_previous);
    return sum;
  }
};

// A row that has ended. In reverse such steps come after the row's first one, and `product` will not last until the
// end: what it holds is stashed.
template <typename T, int V>
__device__ __forceinline__ void stash_product(const Row<BackwardStep<T>>& row) {
  const BackwardStep<T>& step = row.step;
  const int64_t P = step.sizes.projection_size, b = row.b;
  if (!step.sequence.reverse || step.t != row.length || row.length == 0) return;
  for_each_vector<V, false>(P, [&](int64_t j) {
    store<V>(step.d_h_carry + b * P, j,
             flows_back<T, V>(row, row.length - 1, j, load<V>(step.product + b * P, j), load_d_h_carry<T, V>(row, j)));
  });
}

// What a row that has ended leaves of step t.
template <typename T, int V>
__device__ __forceinline__ void finish_ended_row(const Row<BackwardStep<T>>& row) {
  using A = Accumulator<T>;
  const BackwardStep<T>& step = row.step;
  const int64_t b = row.b, H = step.sizes.hidden_size;
  if (!step.d_unprojected) stash_product<T, V>(row);
  for_each_vector<V, false>(H, [&](int64_t j) {
#pragma unroll
    for (int gate = 0; gate < 4; ++gate) {
      const int64_t k = gate * H + j;
      store<V>(step.d_gates_ih + b * 4 * H, k, Lanes<A, V>{});
      store<V>(step.d_gates_hh + b * 4 * H, k, Lanes<A, V>{});
      if (step.d_z) store<V>(step.d_z + b * 4 * H, k, Lanes<A, V>{});
    }
    if (step.unprojected) store<V>(step.unprojected + b * H, j, Lanes<A, V>{});
  });
}

template <typename T, int V>
__global__ void __launch_bounds__(kPlainThreads, kPlainBlocks)
    project_kernel(const __grid_constant__ BackwardStep<T> step) {
  const int64_t b = blockIdx.x, P = step.sizes.projection_size;
  const Row<BackwardStep<T>> row(step, b);
  const bool is_real = step.t < row.length;
  if (!is_real) stash_product<T, V>(row);
  for_each_vector<V, false>(P, [&](int64_t j) {
    store<V>(step.d_projected + b * P, j,
             is_real ? HiddenGradient<T, V>(row, j).value(row, j) : Lanes<Accumulator<T>, V>{});
  });
}

// What a step reads of V units besides the gates: c before it, and the gradients of c and h after it.
template <typename T, int V>
struct StateGradient {
  using A = Accumulator<T>;
  using R = Row<BackwardStep<T>>;
  Packed<T, V> c_0{}, d_c_n{};  // at a row's first and last step, in the place of
  Packed<A, V> c{}, d_c{};
  HiddenGradient<T, V> hidden;

  __device__ __forceinline__ StateGradient(const R& row, int64_t j) : hidden(hidden_of(row, j)) {
    const BackwardStep<T>& step = row.step;
    const int64_t first = row.b * step.sizes.hidden_size;
    if (step.t == row.first())
      c_0 = load<V>(step.in.c_0 + first, j);
    else
      c = load<V>(step.cells + first, j);
    if (step.t == row.last())
      d_c_n = load<V>(step.d_c_n + first, j);
    else
      d_c = load<V>(step.d_cell + first, j);
  }

  __device__ __forceinline__ Lanes<A, V> previous_cell(const R& row) const {
    if (row.step.sequence.is_reset(row.step.t, row.b)) return {};
    return row.step.t == row.first() ? widen(c_0) : widen(c);
  }
  __device__ __forceinline__ Lanes<A, V> d_hidden(const R& row, int64_t j) const {
    return row.step.d_unprojected ? widen(hidden.d_h) : hidden.value(row, j);
  }
  // d_c_t, split into what zoneout passes to c_{t-1} and the rest.
  __device__ __forceinline__ void d_cell(const R& row, int64_t j, Lanes<A, V>& zoneout_carry, Lanes<A, V>& rest) const {
    const BackwardStep<T>& step = row.step;
    const StepOptions<A>& options = step.options;
    zoneout_carry = Lanes<A, V>{};
    rest = step.t == row.last() ? widen(d_c_n) : widen(d_c);
    if (!options.zoneout_c.on) return;
    const auto keep = zoneout_mask<A, V>(row.seed, options.stream, MaskUse::zoneout_c, options.zoneout_c,
                                         options.training, step.t + options.first_step, row.b, j);
#pragma unroll
    for (int lane = 0; lane < V; ++lane) {
      zoneout_carry[lane] = keep[lane] * rest[lane];
      rest[lane] *= 1 - keep[lane];
    }
  }

 private:
  __device__ __forceinline__ static HiddenGradient<T, V> hidden_of(const R& row, int64_t j) {
    const BackwardStep<T>& step = row.step;
    if (step.d_unprojected)
      return HiddenGradient<T, V>(load<V>(step.d_unprojected + row.b * step.sizes.hidden_size, j));
    return HiddenGradient<T, V>(row, j);
  }
};

// Stores d_c_{t-1}; a reset before step t cuts it off.
template <typename T, int V>
__device__ __forceinline__ void store_d_cell(const BackwardStep<T>& step, int64_t b, int64_t j,
                                             const Lanes<Accumulator<T>, V>& d_c_prev) {
  const bool is_reset = step.sequence.is_reset(step.t, b);
  store<V>(step.d_cell + b * step.sizes.hidden_size, j, is_reset ? Lanes<Accumulator<T>, V>{} : d_c_prev);
}

// kCount rows of unit_sums from `which` on, to which a step adds; the loads stand apart from the sums, to overlap.
template <typename T, int V, int kCount>
struct UnitSums {
  using A = Accumulator<T>;
  A* const rows;
  const int64_t H;
  Packed<A, V> before[kCount] = {};

  __device__ __forceinline__ UnitSums(const BackwardStep<T>& step, bool wanted, int64_t which, int64_t b)
      : rows(wanted ? step.unit_sums +
                          (b * unit_sums(step.options.layer_norm != LayerNorm::none, step.options.peephole) + which) *
                              step.sizes.hidden_size
                    : nullptr),
        H(step.sizes.hidden_size) {}
  __device__ __forceinline__ void read(int64_t j) {
    if (!rows) return;
#pragma unroll
    for (int k = 0; k < kCount; ++k) before[k] = load<V>(rows + k * H, j);
  }
  __device__ __forceinline__ void add(int k, int64_t j, const Lanes<A, V>& values) const {
    auto sum = widen(before[k]);
#pragma unroll
    for (int lane = 0; lane < V; ++lane) sum[lane] += values[lane];
    store<V>(rows + k * H, j, sum);
  }
};

// The gradients of the peepholes, from those of the pre-activations.
template <typename T, int V>
__device__ __forceinline__ void add_peepholes(const UnitSums<T, V, 3>& sums, int64_t j,
                                              const Lanes<Accumulator<T>, V> (&d_z)[4],
                                              const Lanes<Accumulator<T>, V>& c_prev,
                                              const Lanes<Accumulator<T>, V>& cell) {
  if (!sums.rows) return;
  Lanes<Accumulator<T>, V> d_ci, d_cf, d_co;
#pragma unroll
  for (int lane = 0; lane < V; ++lane) {
    d_ci[lane] = d_z[0][lane] * c_prev[lane];
    d_cf[lane] = d_z[1][lane] * c_prev[lane];
    d_co[lane] = d_z[3][lane] * cell[lane];
  }
  sums.add(0, j, d_ci);
  sums.add(1, j, d_cf);
  sums.add(2, j, d_co);
}

// Without layer norm: d_gates_ih and d_gates_hh are one.
template <typename T, int V>
__global__ void __launch_bounds__(kPlainThreads) plain_kernel(const __grid_constant__ BackwardStep<T> step) {
  using A = Accumulator<T>;
  const StepOptions<A>& options = step.options;
  const int64_t b = blockIdx.x, H = step.sizes.hidden_size;
  const Row<BackwardStep<T>> row(step, b);
  if (step.t >= row.length) return finish_ended_row<T, V>(row);
  for_each_vector<V, true>(H, [&](int64_t j) {
    Packed<T, V> given[4];
#pragma unroll
    for (int gate = 0; gate < 4; ++gate) given[gate] = load<V>(step.gates + b * 4 * H, gate * H + j);
    const StateGradient<T, V> state(row, j);
    const Peepholes<T, V> peepholes(step.in, options.peephole, j);
    UnitSums<T, V, 3> sums(step, options.peephole && step.unit_sums, 0, b);
    sums.read(j);
    const auto c_prev = state.previous_cell(row);
    const UnitOptions<T, V> unit_options(peepholes, candidate_mask<A, V>(options, row.seed, step.t, b, j));
    const auto d_h = state.d_hidden(row, j);
    Lanes<A, V> zoneout_carry, d_c_rest, gate_values[4], d_c_prev, cell, h;
    state.d_cell(row, j, zoneout_carry, d_c_rest);
#pragma unroll
    for (int gate = 0; gate < 4; ++gate) gate_values[gate] = widen(given[gate]);
#pragma unroll
    for (int lane = 0; lane < V; ++lane) {
      const CellOptions<A> own = unit_options.of(options, lane);
      const Gates<A> gates = {gate_values[0][lane], gate_values[1][lane], gate_values[2][lane], gate_values[3][lane]};
      cell[lane] = cell_state(own, gates, c_prev[lane]);
      const A active_c = activation<Math>(own, cell[lane]);
      h[lane] = gates.o * active_c;
      const A d_z_o = d_output_gate(own, gates.o, d_h[lane], active_c);
      const A d_cell =
          plus_d_output_gate(own, d_c_rest[lane] + d_activation(own, active_c, d_h[lane] * gates.o), d_z_o);
      const Gates<A> d_z = d_gates(own, gates, c_prev[lane], d_cell, zoneout_carry[lane], d_c_prev[lane]);
      gate_values[0][lane] = d_z.i;
      gate_values[1][lane] = d_z.f;
      gate_values[2][lane] = d_z.g;
      gate_values[3][lane] = d_z_o;
    }
    store_d_cell<T, V>(step, b, j, d_c_prev);
#pragma unroll
    for (int gate = 0; gate < 4; ++gate) store<V>(step.d_gates_ih + b * 4 * H, gate * H + j, gate_values[gate]);
    if (step.unprojected) store<V>(step.unprojected + b * H, j, h);
    add_peepholes<T, V>(sums, j, gate_values, c_prev, cell);
  });
}

// A row with layer norm: two sums over it for the norm of c', four for those of the products. A thread has registers
// for what it makes of one vector (kRegisters), and for what it has read, too (kRoom); otherwise it reads that again.
template <typename T, int V, bool kRegisters, bool kRoom>
struct NormedRow {
  using A = Accumulator<T>;
  // What is kept of a unit: first the gates and then the gradients of the pre-activations; c', the gradient of its
  // normalized value, c_{t-1}, the candidate's mask, and the two parts of d_c_t.
  static constexpr int kGates = 0, kCell = 4, kDCell = 5, kPrevious = 6, kMask = 7, kRest = 8, kZoneoutCarry = 9;
  const Row<BackwardStep<T>>& row;
  const BackwardStep<T>& step;
  const int64_t b, H;
  const T* const gates_row;
  const T* const recurrent_row;
  Kept<A, V, kBackwardSlots, kRegisters> kept;
  A* const shared;  // a part for each sum, see block_sum
  const int warps;
  A stats[6];
  Products<T, V> products;
  GateParameters<T, V> parameters;
  Peepholes<T, V> peepholes;
  A cell_sums[2] = {};  // of d_c_hat and of d_c_hat * c_hat, then their means
  A sums[4] = {};       // of d_x_hat, d_x_hat * x_hat, d_h_hat, d_h_hat * h_hat, likewise

  __device__ __forceinline__ NormedRow(const Row<BackwardStep<T>>& row)
      : row(row),
        step(row.step),
        b(row.b),
        H(row.step.sizes.hidden_size),
        gates_row(step.gates + b * 4 * H),
        recurrent_row(step.recurrent + b * 4 * H),
        kept(step.spill + b * kBackwardSlots * H, H),
        shared(shared_memory<A>()),
        warps(blockDim.x / kWarp) {
#pragma unroll
    for (int k = 0; k < 6; ++k) stats[k] = step.stats[b * 6 + k];
  }

  // The gates and c' again, then the gradient of the normalized c' and its two sums.
  __device__ __forceinline__ void d_normalized_cell() {
    const StepOptions<A>& options = step.options;
    for_each_vector<V, kRegisters>(H, [&](int64_t j) {
      products = Products<T, V>(gates_row, recurrent_row, H, j);
      const StateGradient<T, V> state(row, j);
      peepholes = Peepholes<T, V>(step.in, options.peephole, j);
      const auto packed_gain = load<V>(step.in.weight_ln_c, j), packed_bias = load<V>(step.in.bias_ln_c, j);
      UnitSums<T, V, 2> norm_sums(step, step.unit_sums, 0, b);
      if (kRoom) norm_sums.read(j);
      parameters = GateParameters<T, V>::template of<true>(step.in, H, j);
      Lanes<A, V> z[4], cell, d_cell_hat, h, d_gain, d_bias, zoneout_carry, d_c_rest;
#pragma unroll
      for (int gate = 0; gate < 4; ++gate)
        z[gate] = parameters.normalized(gate, widen(products.x[gate]), widen(products.h[gate]), stats);
      const auto c_prev = state.previous_cell(row);
      const UnitOptions<T, V> unit_options(peepholes, candidate_mask<A, V>(options, row.seed, step.t, b, j));
      const auto d_h = state.d_hidden(row, j);
      state.d_cell(row, j, zoneout_carry, d_c_rest);
      const auto gain = widen(packed_gain), bias = widen(packed_bias);
#pragma unroll
      for (int lane = 0; lane < V; ++lane) {
        const CellOptions<A> own = unit_options.of(options, lane);
        Gates<A> gates{};
        cell[lane] =
            gates_and_cell<Math>(own, Gates<A>{z[0][lane], z[1][lane], z[2][lane], z[3][lane]}, c_prev[lane], gates);
        const A cell_hat = normalize(cell[lane], stats[4], stats[5]);
        const A active_n = activation<Math>(own, cell_hat * gain[lane] + bias[lane]);
        h[lane] = gates.o * active_n;
        const A d_z_o = d_output_gate(own, gates.o, d_h[lane], active_n);
        A d_n = d_activation(own, active_n, d_h[lane] * gates.o);
        if (options.layer_norm == LayerNorm::carry) {
          d_n += d_c_rest[lane];
          d_c_rest[lane] = 0;
        }
        d_c_rest[lane] = plus_d_output_gate(own, d_c_rest[lane], d_z_o);
        d_gain[lane] = d_n * cell_hat;
        d_bias[lane] = d_n;
        d_cell_hat[lane] = d_n * gain[lane];
        cell_sums[0] += d_cell_hat[lane];
        cell_sums[1] += d_cell_hat[lane] * cell_hat;
        z[0][lane] = gates.i;
        z[1][lane] = gates.f;
        z[2][lane] = gates.g;
        z[3][lane] = d_z_o;
      }
      if (!kRoom) norm_sums.read(j);
      if (norm_sums.rows) {
        norm_sums.add(0, j, d_gain);
        norm_sums.add(1, j, d_bias);
      }
      if (step.unprojected) store<V>(step.unprojected + b * H, j, h);
#pragma unroll
      for (int gate = 0; gate < 4; ++gate) kept.put(kGates + gate, j, z[gate]);
      kept.put(kCell, j, cell);
      kept.put(kDCell, j, d_cell_hat);
      kept.put(kPrevious, j, c_prev);
      kept.put(kMask, j, unit_options.mask);
      kept.put(kRest, j, d_c_rest);
      kept.put(kZoneoutCarry, j, zoneout_carry);
    });
    block_sum(cell_sums, shared);
    cell_sums[0] /= static_cast<A>(H);
    cell_sums[1] /= static_cast<A>(H);
  }

  // The gradients of the pre-activations, and the sums of the two norms over the 4H gates.
  __device__ __forceinline__ void d_pre_activations() {
    for_each_vector<V, kRegisters>(H, [&](int64_t j) {
      UnitSums<T, V, 3> peephole_sums(step, step.options.peephole && step.unit_sums, 2, b);
      if (kRoom) peephole_sums.read(j);
      if (!kRoom) {
        products = Products<T, V>(gates_row, recurrent_row, H, j);
        peepholes = Peepholes<T, V>(step.in, step.options.peephole, j);
        parameters.load_gains(step.in, H, j);
      }
      const UnitOptions<T, V> unit_options(peepholes, kept.get(kMask, j));
      const auto cell = kept.get(kCell, j), c_prev = kept.get(kPrevious, j), d_cell_hat = kept.get(kDCell, j);
      const auto rest = kept.get(kRest, j), zoneout_carry = kept.get(kZoneoutCarry, j);
      Lanes<A, V> z[4], d_c_prev;
#pragma unroll
      for (int gate = 0; gate < 4; ++gate) z[gate] = kept.get(kGates + gate, j);
#pragma unroll
      for (int lane = 0; lane < V; ++lane) {
        const CellOptions<A> own = unit_options.of(step.options, lane);
        const Gates<A> gates = {z[0][lane], z[1][lane], z[2][lane], 0};
        const A cell_hat = normalize(cell[lane], stats[4], stats[5]);
        const A d_cell = rest[lane] + d_normalize(d_cell_hat[lane], cell_hat, cell_sums[0], cell_sums[1], stats[5]);
        const Gates<A> d_z = d_gates(own, gates, c_prev[lane], d_cell, zoneout_carry[lane], d_c_prev[lane]);
        z[0][lane] = d_z.i;
        z[1][lane] = d_z.f;
        z[2][lane] = d_z.g;
      }
      store_d_cell<T, V>(step, b, j, d_c_prev);
#pragma unroll
      for (int gate = 0; gate < 4; ++gate) {
        const int64_t k = gate * H + j;
        const auto gain_x = widen(parameters.gain_x[gate]), gain_h = widen(parameters.gain_h[gate]);
        const auto x_part = widen(products.x[gate]), h_part = widen(products.h[gate]);
#pragma unroll
        for (int lane = 0; lane < V; ++lane) {
          const A d_x = z[gate][lane] * gain_x[lane], d_h = z[gate][lane] * gain_h[lane];
          sums[0] += d_x;
          sums[1] += d_x * normalize(x_part[lane], stats[0], stats[1]);
          sums[2] += d_h;
          sums[3] += d_h * normalize(h_part[lane], stats[2], stats[3]);
        }
        if (step.d_z) store<V>(step.d_z + b * 4 * H, k, z[gate]);
        kept.put(kGates + gate, j, z[gate]);
      }
      if (!kRoom) peephole_sums.read(j);
      add_peepholes<T, V>(peephole_sums, j, z, c_prev, cell);
    });
    block_sum(sums, shared + 2 * warps);
#pragma unroll
    for (int k = 0; k < 4; ++k) sums[k] /= static_cast<A>(4 * H);
  }

  // Those of the two products, through their norms.
  __device__ __forceinline__ void d_products() {
    for_each_vector<V, kRegisters>(H, [&](int64_t j) {
      if (!kRoom) {
        products = Products<T, V>(gates_row, recurrent_row, H, j);
        parameters.load_gains(step.in, H, j);
      }
#pragma unroll
      for (int gate = 0; gate < 4; ++gate) {
        const int64_t k = gate * H + j;
        const auto d_z = kept.get(kGates + gate, j);
        auto d_x = widen(parameters.gain_x[gate]), d_h = widen(parameters.gain_h[gate]);
        const auto x_part = widen(products.x[gate]), h_part = widen(products.h[gate]);
#pragma unroll
        for (int lane = 0; lane < V; ++lane) {
          const A x_hat = normalize(x_part[lane], stats[0], stats[1]),
                  h_hat = normalize(h_part[lane], stats[2], stats[3]);
          d_x[lane] = d_normalize(d_z[lane] * d_x[lane], x_hat, sums[0], sums[1], stats[1]);
          d_h[lane] = d_normalize(d_z[lane] * d_h[lane], h_hat, sums[2], sums[3], stats[3]);
        }
        store<V>(step.d_gates_ih + b * 4 * H, k, d_x);
        store<V>(step.d_gates_hh + b * 4 * H, k, d_h);
      }
    });
  }
};

// Rows of float32 up to this many units are kept whole with vectors of two.
constexpr int kRoomyThreads = 512;

template <typename T, int V, bool kRegisters, bool kRoom>
constexpr int kNormThreads = kRoom && sizeof(T) == 4 && V == 2 ? kRoomyThreads : kThreads<T, V, kRegisters>;

template <typename T, int V, bool kRegisters, bool kRoom>
__global__ void __launch_bounds__(kNormThreads<T, V, kRegisters, kRoom>, 1)
    layer_norm_kernel(const __grid_constant__ BackwardStep<T> step) {
  const Row<BackwardStep<T>> row(step, blockIdx.x);
  if (step.t >= row.length) return finish_ended_row<T, V>(row);
  NormedRow<T, V, kRegisters, kRoom> normed(row);
  normed.d_normalized_cell();
  normed.d_pre_activations();
  normed.d_products();
}

template <typename T>
struct BackwardKernels {
  using Kernel = void (*)(BackwardStep<T>);
  static constexpr int kNormLanes = sizeof(T) == 4 ? 2 : kLanes<T>;
  template <int V>
  static Kernel plain() {
    return plain_kernel<T, V>;
  }
  template <int V, bool kRegisters>
  static Kernel layer_norm(int64_t H) {
    if constexpr (kRegisters && sizeof(T) == 4 && V == 2)
      if (H > V * kRoomyThreads) return layer_norm_kernel<T, V, true, false>;
    return layer_norm_kernel<T, V, kRegisters, kRegisters>;
  }
  template <int V>
  static Kernel project() {
    return project_kernel<T, V>;
  }
};

template <typename T>
__global__ void __launch_bounds__(kPlainThreads) finish_kernel(const __grid_constant__ Finish<T> finish) {
  using A = Accumulator<T>;
  const int64_t b = blockIdx.x, H = finish.sizes.hidden_size, P = finish.sizes.projection_size;
  const Row<Finish<T>> row(finish, b);
  const int64_t length = row.length;
  for_each_vector<1, false>(P, [&](int64_t j) {
    A d_h;
    if (length == 0)
      d_h = widen(finish.d_h_n[b * P + j]);
    else if (finish.sequence.reverse && length < finish.sequence.steps)
      d_h = finish.d_h_carry[b * P + j];  // stashed, see stash_product
    else
      d_h = flows_back<T, 1>(row, row.first(), j, load<1>(finish.product + b * P, j), load_d_h_carry<T, 1>(row, j))[0];
    finish.d_h_0[b * P + j] = Narrow<T>::from(d_h);
  });
  for_each_vector<1, false>(H, [&](int64_t j) {
    finish.d_c_0[b * H + j] = Narrow<T>::from(length == 0 ? widen(finish.d_c_n[b * H + j]) : finish.d_cell[b * H + j]);
  });
}

}  // namespace

template <typename T>
cudaError_t backward_project_step(const BackwardStep<T>& step, cudaStream_t stream) {
  return launch_project_step<T, BackwardKernels<T>>(step, stream);
}

template <typename T>
cudaError_t backward_step(const BackwardStep<T>& step, cudaStream_t stream) {
  return launch_step<T, BackwardKernels<T>>(step, stream);
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
