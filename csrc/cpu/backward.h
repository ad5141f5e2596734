// The backward pass of a block of rows over a chunk of steps, last step first. Derived, with all options, in
// docs/equations.md; without the peepholes:
//
//   d_h_t   = m_y * d_y_t + (what flows back from the step that ran after t);  with a projection times W_hr
//   d_h'    = (1 - k_h) * d_h_t                                                                      k: zoneout
//   d_n     = d_h' * o * (1 - tanh^2 n), in "carry" + (1 - k_c) * d_c_t
//   d_c'    = d_n through N_c, otherwise + (1 - k_c) * d_c_t
//   d_z     = the gates' derivatives;  d(W_ih x) and d(W_hh h~) = d_z through the layer norms
//   d_h_{t-1} = m_h * (d(W_hh h~) W_hh) + k_h * d_h_t,   d_c_{t-1} = f * d_c' + k_c * d_c_t
//
// Gate gradients of the chunk go to a buffer shared by all rows, from which the weight gradients are computed
// afterwards. Sums over rows (biases, gains) go to one entry a reduction block of rows.
#pragma once

#include "cpu/forward.h"

namespace lstm_fused::cpu::LSTM_FUSED_ISA_NAME {

template <typename T>
ParameterSums parameter_sums(int64_t hidden_size, const LayerOptions& options) {
  ParameterSums sums{};
  sums.padded_hidden = round_up(hidden_size, kLanes<T>);
  const int64_t gates = 4 * sums.padded_hidden;
  sums.bias = 0;
  sums.ln_ih = gates;
  sums.ln_hh = 2 * gates;
  sums.ln_c_weight = 3 * gates;
  sums.ln_c_bias = 3 * gates + sums.padded_hidden;
  sums.peepholes = has_layer_norm(options) ? 3 * gates + 2 * sums.padded_hidden : gates;
  sums.size = sums.peepholes + (options.peephole ? 3 * sums.padded_hidden : 0);
  return sums;
}

template <typename T>
struct BackwardRow {
  const T* gates;      // [4H] activations; with layer norm the raw W_ih x
  const T* recurrent;  // [4H], layer norm only
  const T* stats;      // [6], layer norm only
  const T* c_prev;     // [H]
  const T* d_output;   // [H]; with a projection the gradient of h', to which nothing else is added
  T* d_h;              // scratch: in d_h_t without d_y_t, out what zoneout passes to d_h_{t-1}; zeros with a projection
  T* d_c;              // scratch: in d_c_t, out d_c_{t-1}
  T* d_gates_ih;       // [4H]
  T* d_gates_hh;       // [4H], the same row without layer norm
  T* sums;             // of its reduction block
  T* unprojected;      // [H] h', or null where it is not wanted
  const T *m_output, *m_candidate, *zoneout_h, *zoneout_c;
};

template <typename T, typename O>
struct BackwardScratch {
  int64_t stride;
  const O** a;             // [rows or projection rows]
  O* operand_rows;         // [the same, operand_stride] what operand_row rounds to, or null
  int64_t operand_stride;  // operands of 4H or P numbers
  T** out;
  T *d_h, *d_c;                    // [rows, stride], kept from chunk to chunk
  T* row_scratch;                  // [members, 6, stride], layer norm only: see layer_norm_row
  T* d_new;                        // [rows, stride] gradient of h', projection only
  T* zeros;                        // [stride]
  T* sums;                         // [members, kRowBlock, kPanelColumns] of the rows of a panel
  PrefetchQueue* prefetch_queues;  // [members]
  int64_t members;
  bool reverse_panels;  // through the panels, at this step
  BlockMasks<T> masks;

  BackwardScratch(Arena& arena, const LayerSizes& sizes, const LayerOptions& options, int64_t rows,
                  int64_t member_count) {
    members = member_count;
    const int64_t pointers = rows > kProjectionRows ? rows : kProjectionRows;
    stride = scratch_stride(sizes);
    a = arena.take<const O*>(pointers);
    operand_stride =
        operands<O>(4 * sizes.hidden_size > sizes.projection_size ? 4 * sizes.hidden_size : sizes.projection_size);
    operand_rows = kGroup<O> > 1 ? arena.take<O>(pointers * operand_stride) : nullptr;
    out = arena.take<T*>(pointers);
    d_h = arena.take<T>(rows * stride);
    d_c = arena.take<T>(rows * stride);
    row_scratch = has_layer_norm(options) ? arena.take<T>(members * 6 * stride) : nullptr;
    d_new = options.projection ? arena.take<T>(rows * stride) : nullptr;
    zeros = arena.take<T>(stride);
    sums = arena.take<T>(members * kRowBlock * kPanelColumns<T>);
    prefetch_queues = arena.take<PrefetchQueue>(members);
    PrefetchQueue::Range* const ranges = arena.take<PrefetchQueue::Range>(members * 4 * rows);
    for (int64_t member = 0; prefetch_queues && member < members; ++member)
      prefetch_queues[member].ranges = ranges + member * 4 * rows;
    LayerOptions own = options;
    own.recurrent_dropout = 0;  // that mask belongs to the whole batch: the weight gradient needs it too
    masks = take_masks<T>(arena, own, rows, stride);
  }

  // The r-th left operand of a product.
  LSTM_FUSED_INLINE const O* operand_row_of(int64_t r, const T* row, int64_t count) const {
    return operand_row(row, count, operand_rows, r * operand_stride);
  }
};

template <typename T, typename O>
int64_t backward_scratch(const LayerSizes& sizes, const LayerOptions& options, int64_t rows, int64_t members) {
  Arena arena{nullptr, 0};
  BackwardScratch<T, O>(arena, sizes, options, rows, members);
  return arena.used;
}

// d_h' of lanes [j, j + n), and the part of d_h_t that zoneout passes on.
template <typename T>
LSTM_FUSED_FN Vec<T> d_new_hidden(const BackwardRow<T>& row, int64_t j, int64_t n) {
  Vec<T> d_y = load(row.d_output + j, n);
  if (row.m_output) d_y *= load(row.m_output + j);
  const Vec<T> d_h = load(row.d_h + j) + d_y;
  if (!row.zoneout_h) return d_h;
  const Vec<T> keep = load(row.zoneout_h + j);
  store(row.d_h + j, keep * d_h);
  return (1 - keep) * d_h;
}

template <typename T>
LSTM_FUSED_FN void add_to(T* sum, Vec<T> v) {
  store(sum, load(sum) + v);
}

// d_c_t, split into what zoneout passes to c_{t-1} and the rest.
template <typename T>
LSTM_FUSED_FN Vec<T> d_new_cell(const BackwardRow<T>& row, int64_t j, Vec<T>& zoneout_carry) {
  const Vec<T> d_c = load(row.d_c + j);
  zoneout_carry = Vec<T>{};
  if (!row.zoneout_c) return d_c;
  const Vec<T> keep = load(row.zoneout_c + j);
  zoneout_carry = keep * d_c;
  return (1 - keep) * d_c;
}

// From d_c' through h' alone to the pre-activations i, f and g, and to d_c_{t-1}; the gradients of the peepholes go to
// their sums.
template <class Policy, typename T>
LSTM_FUSED_FN Gates<Vec<T>> d_units(const BackwardTask<T>& task, const BackwardRow<T>& row, const ParameterSums& sums,
                                    int64_t j, int64_t n, const Gates<Vec<T>>& gates, Vec<T> c_prev, Vec<T> d_z_o,
                                    Vec<T> d_cell_through_h) {
  const auto options = Policy::cell(task.in, task.options, row.m_candidate, j, n);
  Vec<T> zoneout_carry, d_c_prev;
  const Vec<T> d_c = d_new_cell(row, j, zoneout_carry);
  Vec<T> d_cell = plus_d_output_gate(options, d_cell_through_h, d_z_o);
  if (!Policy::carries_normalized(task.options)) d_cell += d_c;  // of "carry" it has come through the norm
  Gates<Vec<T>> d_z = d_gates(options, gates, c_prev, d_cell, zoneout_carry, d_c_prev);
  d_z.o = d_z_o;
  store(row.d_c + j, d_c_prev);
  if (options.peephole) {
    T* const peepholes = row.sums + sums.peepholes + j;
    add_to<T>(peepholes, d_z.i * c_prev);
    add_to<T>(peepholes + sums.padded_hidden, d_z.f * c_prev);
    add_to<T>(peepholes + 2 * sums.padded_hidden, d_z_o * cell_state(options, gates, c_prev));
  }
  return d_z;
}

template <class Policy, typename T>
LSTM_FUSED_FN void plain_row(const BackwardTask<T>& task, const BackwardRow<T>& row, const ParameterSums& sums,
                             int64_t H) {
  for_each_vector_of<T>(H, [&](int64_t j, int64_t n) LSTM_FUSED_INLINE {
    const auto options = Policy::cell(task.in, task.options, row.m_candidate, j, n);
    const Gates<Vec<T>> gates = {load(row.gates + j, n), load(row.gates + H + j, n), load(row.gates + 2 * H + j, n),
                                 load(row.gates + 3 * H + j, n)};
    const Vec<T> c_prev = load(row.c_prev + j, n);
    const Vec<T> active_c = activation<VecMath>(options, cell_state(options, gates, c_prev));
    const Vec<T> d_h = d_new_hidden(row, j, n);
    if (Policy::kProjection && row.unprojected) store(row.unprojected + j, gates.o * active_c, n);
    const Vec<T> d_z_o = d_output_gate(options, gates.o, d_h, active_c);
    const Gates<Vec<T>> d_z =
        d_units<Policy>(task, row, sums, j, n, gates, c_prev, d_z_o, d_activation(options, active_c, d_h * gates.o));
    const Vec<T> d_gates[4] = {d_z.i, d_z.f, d_z.g, d_z.o};
#pragma GCC unroll 4
    for (int gate = 0; gate < 4; ++gate) {
      store(row.d_gates_ih + gate * H + j, d_gates[gate], n);
      add_to<T>(row.sums + sums.bias + gate * sums.padded_hidden + j, d_gates[gate]);
    }
  });
}

// What a row of a layer-normed step keeps between its passes, in a member's row_scratch.
template <typename T>
struct NormRow {
  int64_t stride;
  T* gates;    // [4, stride] activations, then gradients of pre-activations
  T* c_hat;    // [stride] c', then normalized
  T* d_c_hat;  // [stride]
};

// The means of d_x and of d_x * x_hat over a norm's values, which its gradient subtracts.
template <typename T>
struct NormMeans {
  Vec<T> d, d_hat;
};
template <typename T>
LSTM_FUSED_FN NormMeans<T> means_of(Vec<T> sum_d, Vec<T> sum_d_hat, int64_t count) {
  return {broadcast(sum_lanes<T>(sum_d) / static_cast<T>(count)),
          broadcast(sum_lanes<T>(sum_d_hat) / static_cast<T>(count))};
}

// The activations and c' again, from what the forward pass has saved.
template <class Policy, typename T>
LSTM_FUSED_FN void recompute_gates(const BackwardTask<T>& task, const BackwardRow<T>& row, const NormRow<T>& kept,
                                   int64_t H) {
  for_each_vector_of<T>(H, [&](int64_t j, int64_t n) LSTM_FUSED_INLINE {
    const Gates<Vec<T>> z = normalized_gates(task.in, task.bias, row.gates, row.recurrent, row.stats, H, j, n);
    Gates<Vec<T>> gates;
    const auto options = Policy::cell(task.in, task.options, row.m_candidate, j, n);
    store(kept.c_hat + j, gates_and_cell<VecMath>(options, z, load(row.c_prev + j, n), gates));
    store(kept.gates + j, gates.i);
    store(kept.gates + kept.stride + j, gates.f);
    store(kept.gates + 2 * kept.stride + j, gates.g);
    store(kept.gates + 3 * kept.stride + j, gates.o);
  });
}

// The gradients of the output gate and of the normalized c'. A loop of its own: the chain from a pre-activation to its
// tanh is shorter, and the processor works on several vectors at once.
template <class Policy, typename T>
LSTM_FUSED_FN NormMeans<T> d_normalized_cell(const BackwardTask<T>& task, const BackwardRow<T>& row,
                                             const NormRow<T>& kept, const ParameterSums& sums, int64_t H) {
  const LayerInputs<T>& in = task.in;
  const Vec<T> mean = broadcast(row.stats[4]), rstd = broadcast(row.stats[5]);
  Vec<T> sum_d{}, sum_d_hat{};
  for_each_vector_of<T>(H, [&](int64_t j, int64_t n) LSTM_FUSED_INLINE {
    const Vec<T> gate_o = load(kept.gates + 3 * kept.stride + j);
    const Vec<T> c_hat = normalize(load(kept.c_hat + j), mean, rstd);
    const Vec<T> gain = load(in.weight_ln_c + j, n);
    const auto options = Policy::cell(in, task.options, row.m_candidate, j, n);
    const Vec<T> active_n = activation<VecMath>(options, c_hat * gain + load(in.bias_ln_c + j, n));
    const Vec<T> d_h = d_new_hidden(row, j, n);
    Vec<T> d_n = d_activation(options, active_n, d_h * gate_o);
    Vec<T> zoneout_carry;  // added where d_c_{t-1} is made
    if (Policy::carries_normalized(task.options)) d_n += d_new_cell(row, j, zoneout_carry);
    const Vec<T> d_z_o = d_output_gate(options, gate_o, d_h, active_n);
    if (Policy::kProjection && row.unprojected) store(row.unprojected + j, gate_o * active_n, n);
    add_to<T>(row.sums + sums.ln_c_weight + j, d_n * c_hat);
    add_to<T>(row.sums + sums.ln_c_bias + j, d_n);
    const Vec<T> d_c_hat = d_n * gain;
    sum_d += d_c_hat;
    sum_d_hat += d_c_hat * c_hat;
    store(kept.gates + 3 * kept.stride + j, d_z_o);
    store(kept.c_hat + j, c_hat);
    store(kept.d_c_hat + j, d_c_hat);
  });
  return means_of<T>(sum_d, sum_d_hat, H);
}

// The gradients of the pre-activations, those of the parameters, and the means of the norms of W_ih x and of W_hh h~.
template <class Policy, typename T>
LSTM_FUSED_FN void d_pre_activations(const BackwardTask<T>& task, const BackwardRow<T>& row, const NormRow<T>& kept,
                                     const ParameterSums& sums, int64_t H, const NormMeans<T>& of_cell,
                                     NormMeans<T>& of_x, NormMeans<T>& of_h) {
  const LayerInputs<T>& in = task.in;
  const Vec<T> c_rstd = broadcast(row.stats[5]);
  const Vec<T> x_mean = broadcast(row.stats[0]), x_rstd = broadcast(row.stats[1]);
  const Vec<T> h_mean = broadcast(row.stats[2]), h_rstd = broadcast(row.stats[3]);
  Vec<T> sum_x{}, sum_x_hat{}, sum_h{}, sum_h_hat{};
  for_each_vector_of<T>(H, [&](int64_t j, int64_t n) LSTM_FUSED_INLINE {
    const Gates<Vec<T>> gates = {load(kept.gates + j), load(kept.gates + kept.stride + j),
                                 load(kept.gates + 2 * kept.stride + j), Vec<T>{}};
    const Vec<T> d_cell = d_normalize(load(kept.d_c_hat + j), load(kept.c_hat + j), of_cell.d, of_cell.d_hat, c_rstd);
    const Vec<T> c_prev = load(row.c_prev + j, n), d_z_o = load(kept.gates + 3 * kept.stride + j);
    const Gates<Vec<T>> d_z = d_units<Policy>(task, row, sums, j, n, gates, c_prev, d_z_o, d_cell);
    const Vec<T> d_gates[4] = {d_z.i, d_z.f, d_z.g, d_z.o};
#pragma GCC unroll 4
    for (int gate = 0; gate < 4; ++gate) {
      const int64_t k = gate * H + j, padded_k = gate * sums.padded_hidden + j;
      const Vec<T> x_hat = normalize(load(row.gates + k, n), x_mean, x_rstd);
      const Vec<T> h_hat = normalize(load(row.recurrent + k, n), h_mean, h_rstd);
      const Vec<T> d_x = d_gates[gate] * load(in.weight_ln_ih + k, n);
      const Vec<T> d_h = d_gates[gate] * load(in.weight_ln_hh + k, n);
      add_to<T>(row.sums + sums.bias + padded_k, d_gates[gate]);
      add_to<T>(row.sums + sums.ln_ih + padded_k, d_gates[gate] * x_hat);
      add_to<T>(row.sums + sums.ln_hh + padded_k, d_gates[gate] * h_hat);
      sum_x += d_x;
      sum_x_hat += d_x * x_hat;
      sum_h += d_h;
      sum_h_hat += d_h * h_hat;
      store(kept.gates + gate * kept.stride + j, d_gates[gate]);
    }
  });
  of_x = means_of<T>(sum_x, sum_x_hat, 4 * H);
  of_h = means_of<T>(sum_h, sum_h_hat, 4 * H);
}

template <class Policy, typename T, typename O>
LSTM_FUSED_FN void layer_norm_row(const BackwardTask<T>& task, const BackwardRow<T>& row,
                                  const BackwardScratch<T, O>& scratch, int64_t member, const ParameterSums& sums,
                                  int64_t H) {
  const int64_t stride = scratch.stride;
  T* const kept_row = scratch.row_scratch + member * 6 * stride;
  const NormRow<T> kept = {stride, kept_row, kept_row + 4 * stride, kept_row + 5 * stride};
  recompute_gates<Policy>(task, row, kept, H);
  const NormMeans<T> of_cell = d_normalized_cell<Policy>(task, row, kept, sums, H);
  NormMeans<T> of_x, of_h;
  d_pre_activations<Policy>(task, row, kept, sums, H, of_cell, of_x, of_h);

  // The gradients of W_ih x and of W_hh h~.
  const LayerInputs<T>& in = task.in;
  const Vec<T> x_mean = broadcast(row.stats[0]), x_rstd = broadcast(row.stats[1]);
  const Vec<T> h_mean = broadcast(row.stats[2]), h_rstd = broadcast(row.stats[3]);
  for (int64_t gate = 0; gate < 4; ++gate)
    for_each_vector_of<T>(H, [&](int64_t j, int64_t n) LSTM_FUSED_INLINE {
      const int64_t k = gate * H + j;
      const Vec<T> d_z = load(kept.gates + gate * stride + j);
      const Vec<T> x_hat = normalize(load(row.gates + k, n), x_mean, x_rstd);
      const Vec<T> h_hat = normalize(load(row.recurrent + k, n), h_mean, h_rstd);
      store(row.d_gates_ih + k, d_normalize(d_z * load(in.weight_ln_ih + k, n), x_hat, of_x.d, of_x.d_hat, x_rstd), n);
      store(row.d_gates_hh + k, d_normalize(d_z * load(in.weight_ln_hh + k, n), h_hat, of_h.d, of_h.d_hat, h_rstd), n);
    });
}

template <class Policy, typename T, typename O>
LSTM_FUSED_FN void backward_row(const BackwardTask<T>& task, const BackwardRow<T>& row,
                                const BackwardScratch<T, O>& scratch, int64_t member, const ParameterSums& sums,
                                int64_t H) {
  if (has_layer_norm(task.options))
    layer_norm_row<Policy>(task, row, scratch, member, sums, H);
  else
    plain_row<Policy>(task, row, sums, H);
}

// c_{t-1} of the step that row b runs as its s-th.
template <typename T>
const T* cells_before(const BackwardTask<T>& task, int64_t row_steps, int64_t s, int64_t b) {
  const int64_t H = task.sizes.hidden_size;
  if (s == task.saved_begin) return task.in.c_0 + b * H;
  return task.saved.cells + (time_of(task.options, row_steps, s - 1) % task.saved_steps * task.sizes.batch + b) * H;
}

// Lists what the rows of step s will touch.
template <typename T, typename O>
void queue_prefetches(const BackwardTask<T>& task, BackwardScratch<T, O>& scratch, int64_t s, int64_t active) {
  const int64_t B = task.sizes.batch, H = task.sizes.hidden_size, P = task.sizes.projection_size;
  const LayerSaved<T>& saved = task.saved;
  for (int64_t member = 0; member < scratch.members; ++member) scratch.prefetch_queues[member].count = 0;
  for (int64_t r = 0; r < active; ++r) {
    const int64_t row_steps = task.order.length[task.first + r], b = task.order.batch_index[task.first + r];
    const int64_t t = time_of(task.options, row_steps, s), saved_row = t % task.saved_steps * B + b;
    PrefetchQueue& queue = scratch.prefetch_queues[r % scratch.members];
    queue.add(saved.gates + saved_row * 4 * H, 4 * H);
    if (saved.recurrent) queue.add(saved.recurrent + saved_row * 4 * H, 4 * H);
    queue.add(task.grad.d_output + (t * B + b) * P, P);
    if (s > task.saved_begin) queue.add(cells_before(task, row_steps, s, b), H);
  }
  const int64_t tiles = tiles_of_panel(active < kRowBlock ? active : kRowBlock, operands<O>(4 * H)) *
                        ceil_div(active, kRowBlock) * PlainColumns{P}.panels<T>();
  for (int64_t member = 0; member < scratch.members; ++member)
    scratch.prefetch_queues[member].start(tiles / scratch.members);
}

// d_h[r] = m_h * (d_gates_hh[r] W_hh) + d_h[r], where d_h[r] holds what zoneout passed on.
template <typename T, typename O>
void hidden_gradient(const BackwardTask<T>& task, BackwardScratch<T, O>& scratch, int64_t active) {
  const int64_t P = task.sizes.projection_size, stride = scratch.stride;
  const int64_t depth = operands<O>(4 * task.sizes.hidden_size);
  const bool zoneout = task.options.zoneout_h > 0;
  const PlainColumns columns{P};
  const auto multiply = [&task, &scratch, active, P, stride, depth, zoneout, columns](int64_t member, int64_t p,
                                                                                      int64_t next) LSTM_FUSED_INLINE {
    const O* const panel = static_cast<const O*>(task.packed_hh) + p * depth * kPanelColumns<T>;
    T* const sums = scratch.sums + member * kRowBlock * kPanelColumns<T>;
    for (int64_t block = 0; block < active; block += kRowBlock) {
      const Factor<O> factors[] = {{scratch.a + block, 0, depth}};
      multiply_panel<T>(
          factors, active - block < kRowBlock ? active - block : kRowBlock, panel,
          panel + next * depth * kPanelColumns<T>, depth * kStripColumns<T>, sums,
          [](int64_t, int64_t, int, auto) LSTM_FUSED_INLINE {},
          [&](int64_t first, int64_t rows, int vector, auto vectors) LSTM_FUSED_INLINE {
            for (int64_t r = first; r < first + rows; ++r)
              for (int j = vector; j < vector + vectors.value; ++j) {
                const int64_t column = columns.offset<T>(p, j);
                if (column >= P) break;
                Vec<T> v = load(sums + r * kPanelColumns<T> + j * kLanes<T>);
                T* const d_h = scratch.d_h + (block + r) * stride + column;
                if (task.hidden_mask) v *= load(task.hidden_mask + (task.first + block + r) * stride + column);
                store(d_h, zoneout ? load(d_h) + v : v);
              }
          },
          scratch.prefetch_queues + member);
    }
  };
  for_each_panel(task.team, columns.panels<T>(), scratch.reverse_panels, multiply);
}

// d_h' = d_h_t W_hr of all rows, d_h_t = d_h + m_y * d_y in the buffer of the chunk.
template <typename T, typename O>
void projection_gradient(const BackwardTask<T>& task, const BackwardScratch<T, O>& scratch, int64_t s, int64_t active) {
  const int64_t B = task.sizes.batch, H = task.sizes.hidden_size, P = task.sizes.projection_size;
  const int64_t stride = gradient_stride<T>(P);
  const int64_t chunk_row = task.chunk_offset[s - task.step_begin] + task.first;
  for (int64_t r = 0; r < active; ++r) {
    const int64_t b = task.order.batch_index[task.first + r],
                  t = time_of(task.options, task.order.length[task.first + r], s);
    const T* const d_output = task.grad.d_output + (t * B + b) * P;
    const T* const m_output = scratch.masks.output ? scratch.masks.output + r * scratch.stride : nullptr;
    const T* const d_h = scratch.d_h + r * scratch.stride;
    T* const d_hidden = task.d_hidden + (chunk_row + r) * stride;
    for (int64_t j = 0; j < P; j += kLanes<T>) {
      Vec<T> d_y = load(d_output + j, P - j);
      if (m_output) d_y *= load(m_output + j);
      store(d_hidden + j, load(d_h + j) + d_y, P - j);
    }
    scratch.a[r] = scratch.operand_row_of(r, d_hidden, P);
    scratch.out[r] = scratch.d_new + r * scratch.stride;
  }
  gemm_rows<T>(task.team, scratch.reverse_panels, active, scratch.a, operands<O>(P),
               static_cast<const O*>(task.packed_hr), operands<O>(P) * kPanelColumns<T>, 0, PlainColumns{H},
               static_cast<const T*>(nullptr), scratch.out, scratch.sums);
}

template <typename T, typename O>
void input_gradient(const BackwardTask<T>& task, const BackwardScratch<T, O>& scratch, int64_t count) {
  const int64_t depth = operands<O>(4 * task.sizes.hidden_size);
  gemm_rows<T>(task.team, false, count, scratch.a, depth, static_cast<const O*>(task.packed_ih),
               depth * kPanelColumns<T>, 0, PlainColumns{task.sizes.input_size}, static_cast<const T*>(nullptr),
               scratch.out, scratch.sums);
}

// The gradients of the final state, and the masks that hold for all steps.
template <typename T, typename O>
void begin_gradients(const BackwardTask<T>& task, BackwardScratch<T, O>& scratch) {
  const int64_t H = task.sizes.hidden_size, P = task.sizes.projection_size, stride = scratch.stride;
  const int64_t count = task.last - task.first;
  std::memset(scratch.d_h, 0, sizeof(T) * count * stride);
  std::memset(scratch.d_c, 0, sizeof(T) * count * stride);
  std::memset(scratch.zeros, 0, sizeof(T) * stride);
  for (int64_t r = 0; r < count; ++r) {
    const int64_t b = task.order.batch_index[task.first + r];
    fill_locked_masks(task.sizes, task.options, scratch.masks, stride, r, b);
    std::memcpy(scratch.d_h + r * stride, task.grad.d_h_n + b * P, sizeof(T) * P);
    std::memcpy(scratch.d_c + r * stride, task.grad.d_c_n + b * H, sizeof(T) * H);
  }
}

// Where the r-th row of a step that runs as the s-th, at time t, reads and writes; chunk_row: of its gate gradients.
template <typename T, typename O>
BackwardRow<T> row_of_step(const BackwardTask<T>& task, const BackwardScratch<T, O>& scratch, const ParameterSums& sums,
                           int64_t s, int64_t t, int64_t r, int64_t chunk_row) {
  const LayerOptions& options = task.options;
  const LayerSaved<T>& saved = task.saved;
  const BlockMasks<T>& masks = scratch.masks;
  const int64_t B = task.sizes.batch, H = task.sizes.hidden_size, stride = scratch.stride;
  const int64_t gate_stride = gradient_stride<T>(4 * H);
  const int64_t b = task.order.batch_index[task.first + r], position = t * B + b,
                saved_row = t % task.saved_steps * B + b;
  const auto mask_row = [&](const T* mask) { return mask ? mask + r * stride : nullptr; };
  const bool is_reset = task.in.reset && task.in.reset[position];
  BackwardRow<T> row;
  row.gates = saved.gates + saved_row * 4 * H;
  row.recurrent = has_layer_norm(options) ? saved.recurrent + saved_row * 4 * H : nullptr;
  row.stats = has_layer_norm(options) ? saved.stats + saved_row * 6 : nullptr;
  row.c_prev = is_reset ? scratch.zeros : cells_before(task, task.order.length[task.first + r], s, b);
  row.d_output = options.projection ? scratch.d_new + r * stride : task.grad.d_output + position * H;
  row.d_h = options.projection ? scratch.zeros : scratch.d_h + r * stride;
  row.d_c = scratch.d_c + r * stride;
  row.d_gates_ih = task.d_gates_ih + chunk_row * gate_stride;
  row.d_gates_hh = task.d_gates_hh + chunk_row * gate_stride;
  row.sums = task.parameter_sums + (task.first + r) / task.reduction_block_rows * sums.size;
  row.unprojected = task.unprojected ? task.unprojected + chunk_row * H : nullptr;
  row.m_output = options.projection ? nullptr : mask_row(masks.output);
  row.m_candidate = mask_row(masks.candidate);
  row.zoneout_h = mask_row(masks.zoneout_h);
  row.zoneout_c = mask_row(masks.zoneout_c);
  return row;
}

// d_x of the chunk, in groups of rows.
template <typename T, typename O>
void input_gradients(const BackwardTask<T>& task, BackwardScratch<T, O>& scratch) {
  const int64_t B = task.sizes.batch, I = task.sizes.input_size, H = task.sizes.hidden_size;
  const int64_t count = task.last - task.first, gate_stride = gradient_stride<T>(4 * H);
  const int64_t* const row_steps = task.order.length + task.first;
  int64_t pending = 0;
  for (int64_t s = task.step_begin; s < task.step_end; ++s)
    for (int64_t r = 0; r < count && row_steps[r] > s; ++r) {
      const int64_t position = time_of(task.options, row_steps[r], s) * B + task.order.batch_index[task.first + r];
      const int64_t chunk_row = task.chunk_offset[s - task.step_begin] + task.first + r;
      scratch.a[pending] = scratch.operand_row_of(pending, task.d_gates_ih + chunk_row * gate_stride, 4 * H);
      scratch.out[pending] = task.grad.d_input + position * I;
      if (++pending == kProjectionRows) {
        input_gradient(task, scratch, pending);
        pending = 0;
      }
    }
  if (pending > 0) input_gradient(task, scratch, pending);
}

template <typename T, typename O>
void backward(const BackwardTask<T>& task) {
  const LayerOptions& options = task.options;
  const int64_t B = task.sizes.batch, H = task.sizes.hidden_size, count = task.last - task.first;
  const int64_t* const batch_row = task.order.batch_index + task.first;
  const int64_t* const row_steps = task.order.length + task.first;
  const ParameterSums sums = parameter_sums<T>(H, options);
  Arena arena{task.scratch, 0};
  BackwardScratch<T, O> scratch(arena, task.sizes, options, count, task.team.members);
  const int64_t stride = scratch.stride;
  if (task.hidden_mask) scratch.masks.hidden = task.hidden_mask + task.first * stride;
  if (task.first_chunk) begin_gradients(task, scratch);

  int64_t active = 0;
  for (int64_t s = task.step_end - 1; s >= task.step_begin; --s) {
    while (active < count && row_steps[active] > s) ++active;
    scratch.reverse_panels = s % 2 != 0;
    const auto draw_masks = [&task, &scratch, &options, batch_row, row_steps, s, stride](int64_t r) {
      fill_fresh_masks(task.sizes, options, scratch.masks, stride, r, batch_row[r], time_of(options, row_steps[r], s));
    };
    if (options.projection) {
      for (int64_t r = 0; r < active; ++r) draw_masks(r);
      projection_gradient(task, scratch, s, active);
    }
    // The rows of a reduction block one after the other: their sums have a fixed order.
    const int64_t first_chunk_row = task.chunk_offset[s - task.step_begin] + task.first;
    const auto run_row = [=, &task, &scratch, &options](int64_t member, int64_t r) {
      if (!options.projection) draw_masks(r);
      const BackwardRow<T> row =
          row_of_step(task, scratch, sums, s, time_of(options, row_steps[r], s), r, first_chunk_row + r);
      if (has_cell_options(options))
        backward_row<AnyOptions>(task, row, scratch, member, sums, H);
      else
        backward_row<DefaultOptions>(task, row, scratch, member, sums, H);
      scratch.a[r] = scratch.operand_row_of(r, row.d_gates_hh, 4 * H);
    };
    for_each_row(task.team, active, task.reduction_block_rows, run_row);
    queue_prefetches(task, scratch, s - 1, s > task.saved_begin ? active : 0);
    hidden_gradient(task, scratch, active);
    // Nothing flows back through a reset.
    for (int64_t r = 0; task.in.reset && r < active; ++r)
      if (task.in.reset[time_of(options, row_steps[r], s) * B + batch_row[r]]) {
        std::memset(scratch.d_h + r * stride, 0, sizeof(T) * stride);
        std::memset(scratch.d_c + r * stride, 0, sizeof(T) * stride);
      }
  }
  if (task.packed_ih) input_gradients(task, scratch);
}

template <typename T, typename O>
void finish_backward(const BackwardTask<T>& task) {
  const int64_t H = task.sizes.hidden_size, P = task.sizes.projection_size, count = task.last - task.first;
  Arena arena{task.scratch, 0};
  const BackwardScratch<T, O> scratch(arena, task.sizes, task.options, count, task.team.members);
  for (int64_t r = 0; r < count; ++r) {
    const int64_t b = task.order.batch_index[task.first + r];
    std::memcpy(task.grad.d_h_0 + b * P, scratch.d_h + r * scratch.stride, sizeof(T) * P);
    std::memcpy(task.grad.d_c_0 + b * H, scratch.d_c + r * scratch.stride, sizeof(T) * H);
  }
}

}  // namespace lstm_fused::cpu::LSTM_FUSED_ISA_NAME
