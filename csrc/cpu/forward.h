// The forward pass of a block of rows (sequences) over a run of steps. Rows never wait for one another. The equations
// with all options: docs/equations.md.
//
//   z   = N(W_ih x_t) + N(W_hh h~_{t-1}) + b          N: layer norm over 4H, or the identity
//   c'  = f * c_{t-1} + i * (m_g * g),     h' = o * tanh(n),    n = N_c(c')
//   c_t = zoneout(c', c_{t-1}), in "carry" zoneout(n, c_{t-1}),    h_t = zoneout(h', h_{t-1})
//   y_t = m_y * h_t,    h~_t = m_h * h_t
//
// The panels hold the four gates of the same units. Without layer norm their sums become c_t and h_t while they are in
// the first-level cache, and where there are rows enough to fill the tiles both products of a step go into the same
// sums. With layer norm a row has to be complete before its gates, and each product by itself: W_ih x of a chunk of
// steps is one product then, as it is where the rows are few.
//
// Options that change the cell itself (lstm/cell.h) and the projection h_t = W_hr h' are compiled apart (`Policy`), so
// that a step without them does not even ask.
#pragma once

#include "cpu/gemm.h"
#include "cpu/kernels.h"
#include "cpu/scratch.h"
#include "cpu/vec_math.h"
#include "lstm/cell.h"
#include "lstm/layer_norm.h"

namespace lstm_fused::cpu::LSTM_FUSED_ISA_NAME {

constexpr int64_t kProjectionRows = kRowBlock;  // rows of one input projection

// Everything a step needs of one row. Tensor rows hold H (4H, P) values, scratch rows are padded.
template <typename T>
struct StepRow {
  T* gates;                                              // [4H] activations out, or null where nobody wants them
                                                         //   in, unless products are merged: W_ih x (+ b without norm)
  T* recurrent;                                          // [4H] W_hh h~, where it is needed as a whole row
  T* stats;                                              // [6], layer norm only
  T* c;                                                  // scratch: c_{t-1} in, c_t out
  const T* h_prev;                                       // scratch: h_{t-1}
  T* unprojected;                                        // scratch: h', where h_t = W_hr h'; else null
  T* h;                                                  // scratch: h_t
  T* h_masked;                                           // scratch: h~_t, where it differs from h_t
  T* cells;                                              // [H] saved c_t, or null
  T* hidden;                                             // [P] saved h_t, or null
  T* output;                                             // [P] y_t, or null
  const T *m_output, *m_hidden, *zoneout_h, *zoneout_c;  // masks, or null
  const T* m_candidate;
};

template <typename T, typename O>
struct ForwardScratch {
  int64_t stride;       // of the padded rows
  int64_t chunk_rows;   // rows of an input projection
  bool reverse_panels;  // through the panels, at this step
  StepRow<T>* rows;     // [rows]
  const O** a;          // [chunk_rows] left operands of a product: x
  const O** a_hidden;   // [rows] h~_{t-1}
  // What operand_row rounds to: x [chunk_rows, operands(I)], h~ [rows, operands(P)], h' [rows, operands(H)]; or null.
  O *input_operands, *hidden_operands, *unprojected_operands;
  T** out;            // [chunk_rows] rows of the result
  T *h_now, *h_next;  // [rows, stride] left operand of the recurrence: h~_{t-1} and h~_t
  T* h;               // [rows, stride] h_t where h~_t differs, else null
  T* unprojected;     // [rows, stride] h', where a projection follows, else null
  T* c;               // [rows, stride]
  T* gates;           // [chunk_rows, 4H], where they are not saved
  T* recurrent;       // [rows, 4H] W_hh h~, where it is not saved
  T* stats;           // [chunk_rows, 6], where they are not saved
  T* sums;            // [members, kRowBlock, kPanelColumns] of the rows of a panel
  T* row_scratch;     // [members, 2, stride] of one row: o and c'
  BlockMasks<T> masks;

  ForwardScratch(Arena& arena, const LayerSizes& sizes, const LayerOptions& options, bool saves, bool merged,
                 int64_t row_count, int64_t members) {
    const int64_t gates_size = 4 * sizes.hidden_size;
    stride = scratch_stride(sizes);
    chunk_rows = merged || row_count > kProjectionRows ? row_count : kProjectionRows / row_count * row_count;
    rows = arena.take<StepRow<T>>(row_count);
    a = arena.take<const O*>(chunk_rows);
    a_hidden = arena.take<const O*>(row_count);
    constexpr bool rounds = kGroup<O> > 1;
    input_operands = rounds ? arena.take<O>(chunk_rows * operands<O>(sizes.input_size)) : nullptr;
    hidden_operands = rounds ? arena.take<O>(row_count * operands<O>(sizes.projection_size)) : nullptr;
    unprojected_operands =
        rounds && options.projection ? arena.take<O>(row_count * operands<O>(sizes.hidden_size)) : nullptr;
    out = arena.take<T*>(chunk_rows);
    h_now = arena.take<T>(row_count * stride);
    h_next = arena.take<T>(row_count * stride);
    h = options.recurrent_dropout > 0 ? arena.take<T>(row_count * stride) : nullptr;
    unprojected = options.projection ? arena.take<T>(row_count * stride) : nullptr;
    c = arena.take<T>(row_count * stride);
    gates = saves || merged ? nullptr : arena.take<T>(chunk_rows * gates_size);
    recurrent = saves && has_layer_norm(options) ? nullptr : arena.take<T>(row_count * gates_size);
    stats = saves || !has_layer_norm(options) ? nullptr : arena.take<T>(chunk_rows * 6);
    sums = arena.take<T>(members * kRowBlock * kPanelColumns<T>);
    row_scratch = arena.take<T>(members * 2 * stride);
    masks = take_masks<T>(arena, options, row_count, stride);
  }

  // h_{t-1} of the r-th row, before its mask.
  LSTM_FUSED_INLINE T* hidden_of(int64_t r) const { return (h ? h : h_now) + r * stride; }
};

// What a step is compiled for: all options of the cell and the projection at their defaults, or any. The mathematics is
// the same source; with the defaults the compiler sees that there is nothing to ask.
struct DefaultOptions {
  static constexpr bool kProjection = false;
  static constexpr bool carries_normalized(const LayerOptions&) { return false; }
  static constexpr DefaultChoices choices(const LayerOptions&) { return {}; }
  template <typename T>
  LSTM_FUSED_INLINE static DefaultCellOptions<Vec<T>> cell(const LayerInputs<T>&, const LayerOptions&, const T*,
                                                           int64_t, int64_t) {
    return {};
  }
};

struct AnyOptions {
  static constexpr bool kProjection = true;
  static bool carries_normalized(const LayerOptions& options) { return options.layer_norm == LayerNorm::carry; }
  static CellChoices choices(const LayerOptions& options) { return cell_choices(options); }
  // Of lanes [j, j + n).
  template <typename T>
  LSTM_FUSED_INLINE static CellOptions<Vec<T>> cell(const LayerInputs<T>& in, const LayerOptions& options,
                                                    const T* m_candidate, int64_t j, int64_t n) {
    CellOptions<Vec<T>> cell = {cell_choices(options), options.peephole};
    if (options.peephole) {
      cell.weight_ci = load(in.weight_ci + j, n);
      cell.weight_cf = load(in.weight_cf + j, n);
      cell.weight_co = load(in.weight_co + j, n);
    }
    if (m_candidate) cell.mask = load(m_candidate + j);
    return cell;
  }
};

// From h_t on: the masks, and everything that is stored, for lanes [j, j + n).
template <typename T>
LSTM_FUSED_FN void finish_hidden(const StepRow<T>& row, int64_t j, int64_t n, Vec<T> h) {
  store(row.h + j, h);
  if (row.m_hidden) store(row.h_masked + j, h * load(row.m_hidden + j));
  if (row.hidden) store(row.hidden + j, h, n);
  if (row.output) store(row.output + j, row.m_output ? h * load(row.m_output + j) : h, n);
}

// From what is to be c_t and h_t but for zoneout, for lanes [j, j + n).
template <class Policy, typename T>
LSTM_FUSED_FN void finish_units(const StepRow<T>& row, int64_t j, int64_t n, Vec<T> c_prev, Vec<T> c, Vec<T> h) {
  if (row.zoneout_c) c = zoneout(c, c_prev, load(row.zoneout_c + j));
  store(row.c + j, c);
  if (row.cells) store(row.cells + j, c, n);
  if constexpr (Policy::kProjection)
    if (row.unprojected) return store(row.unprojected + j, h);
  if (row.zoneout_h) h = zoneout(h, load(row.h_prev + j), load(row.zoneout_h + j));
  finish_hidden(row, j, n, h);
}

// Without layer norm, for lanes [j, j + n): from the pre-activations of the four gates to c' and the output gate, which
// go to `cell` and `o`.
template <class Policy, typename T>
LSTM_FUSED_FN void plain_gates(const ForwardTask<T>& task, const StepRow<T>& row, int64_t j, int64_t n,
                               const Gates<Vec<T>>& z, Vec<T>& cell, Vec<T>& o) {
  const int64_t H = task.sizes.hidden_size;
  Gates<Vec<T>> gates;
  const auto options = Policy::cell(task.in, task.options, row.m_candidate, j, n);
  cell = gates_and_cell<VecMath>(options, z, load(row.c + j), gates);
  o = gates.o;
  if (!row.gates) return;
  store(row.gates + j, gates.i, n);
  store(row.gates + H + j, gates.f, n);
  store(row.gates + 2 * H + j, gates.g, n);
  store(row.gates + 3 * H + j, gates.o, n);
}

// The rest: from c' and the output gate to c_t and h_t.
template <class Policy, typename T>
LSTM_FUSED_FN void plain_hidden(const ForwardTask<T>& task, const StepRow<T>& row, int64_t j, int64_t n, Vec<T> cell,
                                Vec<T> o) {
  const Vec<T> h = o * activation<VecMath>(Policy::choices(task.options), cell);
  finish_units<Policy>(row, j, n, load(row.c + j), cell, h);
}

// Prefetches the memory that plain_gates and plain_hidden will write, so that the stores do not wait.
template <typename T>
LSTM_FUSED_FN void prefetch_units(const StepRow<T>& row, int64_t H, int64_t j) {
  if (row.gates)
    for (int gate = 0; gate < 4; ++gate) __builtin_prefetch(row.gates + gate * H + j, 1);
  if (row.cells) __builtin_prefetch(row.cells + j, 1);
  if (row.output) __builtin_prefetch(row.output + j, 1);
}

// The units of a panel in the rows of a tile, from their sums and what these start from: the bias if Merged, else
// row.gates. All rows' gates first: tanh(c') waits for them, and so a row does not wait for the one before. Not
// inlined: the loops over panels and tiles stay small.
template <class Policy, bool Merged, typename T>
__attribute__((noinline)) void plain_tile(const ForwardTask<T>& task, const StepRow<T>* rows, int64_t count, int64_t j,
                                          int64_t n, const T* sums) {
  const int64_t H = task.sizes.hidden_size;
  const auto run = [&](int64_t lanes) LSTM_FUSED_INLINE {
    Vec<T> cell[kTileRows], o[kTileRows];
    for (int64_t i = 0; i < count; ++i, sums += kPanelColumns<T>) {
      const T* const start = (Merged ? task.bias : rows[i].gates) + j;
      const auto z = [&](int gate)
                         LSTM_FUSED_INLINE { return load(sums + gate * kLanes<T>) + load(start + gate * H, lanes); };
      plain_gates<Policy, T>(task, rows[i], j, lanes, {z(0), z(1), z(2), z(3)}, cell[i], o[i]);
    }
    for (int64_t i = 0; i < count; ++i) plain_hidden<Policy>(task, rows[i], j, lanes, cell[i], o[i]);
  };
  if (n >= kLanes<T>)
    run(kLanes<T>);  // which the compiler sees
  else
    run(n);
}

// Without layer norm: the products and the gates, panel by panel.
template <class Policy, bool Merged, typename T, typename O>
void plain_step(const ForwardTask<T>& task, ForwardScratch<T, O>& scratch, int64_t active) {
  const int64_t I = operands<O>(task.sizes.input_size), P = operands<O>(task.sizes.projection_size);
  const int64_t H = task.sizes.hidden_size;
  const int64_t panel_size = (I + P) * kPanelColumns<T>;
  const auto run_panel = [&task, &scratch, active, I, P, H, panel_size](int64_t member, int64_t p,
                                                                        int64_t next) LSTM_FUSED_INLINE {
    const int64_t j = p * kLanes<T>, n = H - j;
    const O* const panel = static_cast<const O*>(task.packed) + p * panel_size;
    T* const sums = scratch.sums + member * kRowBlock * kPanelColumns<T>;
    for (int64_t block = 0; block < active; block += kRowBlock) {
      const StepRow<T>* const rows = scratch.rows + block;
      const auto multiply = [&](const auto& factors) LSTM_FUSED_INLINE {
        multiply_panel<T>(
            factors, active - block < kRowBlock ? active - block : kRowBlock, panel, panel + next * panel_size,
            panel_size / kStrips, sums,
            [&](int64_t first, int64_t count, int vector, auto vectors) LSTM_FUSED_INLINE {
              if (vector + vectors.value < kPanelVectors) return;
              for (int64_t r = first; r < first + count; ++r) prefetch_units(rows[r], H, j);
            },
            [&](int64_t first, int64_t count, int vector, auto vectors) LSTM_FUSED_INLINE {
              if (vector + vectors.value < kPanelVectors) return;
              plain_tile<Policy, Merged>(task, rows + first, count, j, n, sums + first * kPanelColumns<T>);
            });
      };
      const Factor<O> hidden = {scratch.a_hidden + block, I, I + P};
      if constexpr (Merged) {
        const Factor<O> factors[] = {{scratch.a + block, 0, I}, hidden};
        multiply(factors);
      } else {
        const Factor<O> factors[] = {hidden};
        multiply(factors);
      }
    }
  };
  for_each_panel(task.team, GateColumns{H}.panels<T>(), scratch.reverse_panels, run_panel);
}

// out[r] = bias + a[r] times packed panels, or the unpacked weight where nothing is packed (never for pairs).
template <typename T, typename O, class Columns>
LSTM_FUSED_FN void product(const Team& team, bool reverse_panels, int64_t count, const O* const* a, int64_t depth,
                           const O* packed, int64_t panel_size, int64_t from, Columns columns, const T* weight,
                           int64_t rows, const T* bias, T* const* out, T* sums) {
  if constexpr (kGroup<O> == 1)
    if (!packed) return gemm_unpacked<T>(count, a, depth, weight, rows, bias, out);
  gemm_rows<T>(team, reverse_panels, count, a, operands<O>(depth), packed, panel_size, from, columns, bias, out, sums);
}

// W_hh h~ of all rows as whole rows.
template <typename T, typename O>
LSTM_FUSED_FN void recurrent_rows(const ForwardTask<T>& task, ForwardScratch<T, O>& scratch, int64_t active) {
  const int64_t H = task.sizes.hidden_size, P = task.sizes.projection_size;
  for (int64_t r = 0; r < active; ++r) scratch.out[r] = scratch.rows[r].recurrent;
  const int64_t first_row = operands<O>(task.sizes.input_size), panel_rows = first_row + operands<O>(P);
  product(task.team, scratch.reverse_panels, active, scratch.a_hidden, P, static_cast<const O*>(task.packed),
          panel_rows * kPanelColumns<T>, first_row, GateColumns{H}, task.in.weight_hh, 4 * H,
          static_cast<const T*>(nullptr), scratch.out, scratch.sums);
}

// Without layer norm and without packed weights.
template <class Policy, typename T, typename O>
void unpacked_step(const ForwardTask<T>& task, ForwardScratch<T, O>& scratch, int64_t active) {
  const int64_t H = task.sizes.hidden_size;
  recurrent_rows(task, scratch, active);
  for (int64_t r = 0; r < active; ++r) {
    const StepRow<T>& row = scratch.rows[r];
    for (int64_t j = 0; j < H; j += kLanes<T>) {
      const int64_t n = H - j;
      const auto z = [&](int64_t k) LSTM_FUSED_INLINE { return load(row.gates + k, n) + load(row.recurrent + k, n); };
      Vec<T> cell, o;
      plain_gates<Policy, T>(task, row, j, n, {z(j), z(H + j), z(2 * H + j), z(3 * H + j)}, cell, o);
      plain_hidden<Policy>(task, row, j, n, cell, o);
    }
  }
}

// mean and rstd of a row of `parts` segments of H values: two passes, four chains of sums.
template <typename T>
LSTM_FUSED_FN void row_stats(const T* x, int parts, int64_t H, double eps, T* stats) {
  const int64_t count = parts * H;
  Vec<T> sums[4] = {};
  int64_t k = 0;
  for (; k + 4 * kLanes<T> <= count; k += 4 * kLanes<T>)
    for (int chain = 0; chain < 4; ++chain) sums[chain] += load(x + k + chain * kLanes<T>);
  for (; k < count; k += kLanes<T>) sums[0] += load(x + k, count - k);
  const T mean = sum_lanes<T>((sums[0] + sums[1]) + (sums[2] + sums[3])) / static_cast<T>(count);

  Vec<T> squares[4] = {};
  for (k = 0; k + 4 * kLanes<T> <= count; k += 4 * kLanes<T>)
    for (int chain = 0; chain < 4; ++chain) {
      const Vec<T> d = load(x + k + chain * kLanes<T>) - mean;
      squares[chain] += d * d;
    }
  for (; k < count; k += kLanes<T>) {
    const Vec<T> d = first_lanes<T>(load(x + k, count - k) - mean, count - k);
    squares[0] += d * d;
  }
  const T variance = sum_lanes<T>((squares[0] + squares[1]) + (squares[2] + squares[3])) / static_cast<T>(count);
  stats[0] = mean;
  stats[1] = 1 / __builtin_sqrt(variance + static_cast<T>(eps));
}

// The normalized pre-activation of one gate: N(W_ih x) + N(W_hh h~) + b for lanes [j, j + n) of a [4H] row.
template <typename T>
LSTM_FUSED_FN Vec<T> normalized_gate(const LayerInputs<T>& in, const T* bias, const T* input, const T* recurrent,
                                     const T* stats, int64_t j, int64_t n) {
  const Vec<T> x_hat = normalize(load(input + j, n), broadcast(stats[0]), broadcast(stats[1]));
  const Vec<T> h_hat = normalize(load(recurrent + j, n), broadcast(stats[2]), broadcast(stats[3]));
  return x_hat * load(in.weight_ln_ih + j, n) + h_hat * load(in.weight_ln_hh + j, n) + load(bias + j, n);
}

template <typename T>
LSTM_FUSED_FN Gates<Vec<T>> normalized_gates(const LayerInputs<T>& in, const T* bias, const T* input,
                                             const T* recurrent, const T* stats, int64_t H, int64_t j, int64_t n) {
  return {normalized_gate(in, bias, input, recurrent, stats, j, n),
          normalized_gate(in, bias, input, recurrent, stats, H + j, n),
          normalized_gate(in, bias, input, recurrent, stats, 2 * H + j, n),
          normalized_gate(in, bias, input, recurrent, stats, 3 * H + j, n)};
}

// With layer norm: the whole recurrence first, then row by row the gates, the statistics of c', and h'.
template <class Policy, typename T, typename O>
void layer_norm_step(const ForwardTask<T>& task, ForwardScratch<T, O>& scratch, int64_t active) {
  const int64_t H = task.sizes.hidden_size;
  recurrent_rows(task, scratch, active);
  for_each_row(task.team, active, 1, [&task, &scratch, H](int64_t member, int64_t r) {
    const StepRow<T>& row = scratch.rows[r];
    T* const o = scratch.row_scratch + member * 2 * scratch.stride;
    T* const cell = o + scratch.stride;
    row_stats(row.recurrent, 4, H, task.options.eps, row.stats + 2);
    for_each_vector_of<T>(H, [&](int64_t j, int64_t n) LSTM_FUSED_INLINE {
      const Gates<Vec<T>> z = normalized_gates(task.in, task.bias, row.gates, row.recurrent, row.stats, H, j, n);
      Gates<Vec<T>> gates;
      const auto options = Policy::cell(task.in, task.options, row.m_candidate, j, n);
      store(cell + j, gates_and_cell<VecMath>(options, z, load(row.c + j), gates));
      store(o + j, gates.o);
    });
    row_stats(cell, 1, H, task.options.eps, row.stats + 4);
    const Vec<T> mean = broadcast(row.stats[4]), rstd = broadcast(row.stats[5]);
    for_each_vector_of<T>(H, [&](int64_t j, int64_t n) LSTM_FUSED_INLINE {
      const Vec<T> c = load(cell + j);
      const Vec<T> normalized =
          normalize(c, mean, rstd) * load(task.in.weight_ln_c + j, n) + load(task.in.bias_ln_c + j, n);
      const bool carries_normalized = Policy::carries_normalized(task.options);
      finish_units<Policy>(row, j, n, load(row.c + j), carries_normalized ? normalized : c,
                           load(o + j) * activation<VecMath>(Policy::choices(task.options), normalized));
    });
  });
}

// h_t = W_hr h' of all rows.
template <typename T, typename O>
void projection_step(const ForwardTask<T>& task, ForwardScratch<T, O>& scratch, int64_t active) {
  const int64_t H = task.sizes.hidden_size, P = task.sizes.projection_size;
  for (int64_t r = 0; r < active; ++r) {
    scratch.a[r] = operand_row(scratch.rows[r].unprojected, H, scratch.unprojected_operands, r * operands<O>(H));
    scratch.out[r] = scratch.rows[r].h;
  }
  product(task.team, scratch.reverse_panels, active, scratch.a, H, static_cast<const O*>(task.packed_hr),
          operands<O>(H) * kPanelColumns<T>, 0, PlainColumns{P}, task.in.weight_hr, P, static_cast<const T*>(nullptr),
          scratch.out, scratch.sums);
  for (int64_t r = 0; r < active; ++r)
    for (int64_t j = 0; j < P; j += kLanes<T>) finish_hidden(scratch.rows[r], j, P - j, load(scratch.rows[r].h + j));
}

template <class Policy, typename T, typename O>
LSTM_FUSED_FN void forward_step(const ForwardTask<T>& task, ForwardScratch<T, O>& scratch, int64_t active) {
  if (has_layer_norm(task.options))
    layer_norm_step<Policy>(task, scratch, active);
  else if (task.merged)
    plain_step<Policy, true>(task, scratch, active);
  else if (task.packed)
    plain_step<Policy, false>(task, scratch, active);
  else
    unpacked_step<Policy>(task, scratch, active);
  if constexpr (Policy::kProjection)
    if (task.options.projection) projection_step(task, scratch, active);
}

// A reset: the r-th row starts its step from zeros.
template <typename T, typename O>
void clear_state(ForwardScratch<T, O>& scratch, int64_t r) {
  const int64_t stride = scratch.stride;
  std::memset(scratch.h_now + r * stride, 0, sizeof(T) * stride);
  std::memset(scratch.c + r * stride, 0, sizeof(T) * stride);
  if (scratch.h) std::memset(scratch.h + r * stride, 0, sizeof(T) * stride);
}

template <typename T, typename O>
int64_t forward_scratch(const LayerSizes& sizes, const LayerOptions& options, bool saves, bool merged, int64_t rows,
                        int64_t members) {
  Arena arena{nullptr, 0};
  ForwardScratch<T, O>(arena, sizes, options, saves, merged, rows, members);
  return arena.used;
}

// The state before the first step, and the masks that hold for all steps. The padding of the scratch rows has to be
// finite, since whole vectors are computed.
template <typename T, typename O>
void begin_state(const ForwardTask<T>& task, ForwardScratch<T, O>& scratch) {
  const int64_t H = task.sizes.hidden_size, P = task.sizes.projection_size, stride = scratch.stride;
  const int64_t count = task.last - task.first;
  T* const all[] = {scratch.h_now, scratch.h_next, scratch.c, scratch.h, scratch.unprojected};
  for (T* const rows : all)
    if (rows) std::memset(rows, 0, sizeof(T) * count * stride);
  for (int64_t r = 0; r < count; ++r) {
    const int64_t b = task.order.batch_index[task.first + r];
    fill_locked_masks(task.sizes, task.options, scratch.masks, stride, r, b);
    std::memcpy(scratch.c + r * stride, task.in.c_0 + b * H, sizeof(T) * H);
    T* const h = scratch.hidden_of(r);
    std::memcpy(h, task.in.h_0 + b * P, sizeof(T) * P);
    if (scratch.h)
      for (int64_t j = 0; j < P; j += kLanes<T>)
        store(scratch.h_now + r * stride + j, load(h + j) * load(scratch.masks.hidden + r * stride + j));
  }
}

// The final state of the r-th row.
template <typename T, typename O>
void store_final_state(const ForwardTask<T>& task, const ForwardScratch<T, O>& scratch, int64_t r) {
  if (!task.out.h_n) return;
  const int64_t H = task.sizes.hidden_size, P = task.sizes.projection_size, b = task.order.batch_index[task.first + r];
  std::memcpy(task.out.h_n + b * P, scratch.hidden_of(r), sizeof(T) * P);
  std::memcpy(task.out.c_n + b * H, scratch.c + r * scratch.stride, sizeof(T) * H);
}

// Where the gates and the statistics of a row are: where they are saved, or the n-th of a chunk. Null: nowhere.
template <typename T, typename O>
T* gates_row(const ForwardTask<T>& task, const ForwardScratch<T, O>& scratch, int64_t n, int64_t saved_row) {
  const int64_t width = 4 * task.sizes.hidden_size;
  if (task.out.saved.gates) return task.out.saved.gates + saved_row * width;
  return scratch.gates ? scratch.gates + n * width : nullptr;
}
template <typename T, typename O>
T* stats_row(const ForwardTask<T>& task, const ForwardScratch<T, O>& scratch, int64_t n, int64_t saved_row) {
  return task.out.saved.gates ? task.out.saved.stats + saved_row * 6 : scratch.stats + n * 6;
}

// W_ih x of steps [begin, end) of the first `active` rows, as long as they run: step by step, the n-th row of the
// chunk.
template <typename T, typename O>
void input_products(const ForwardTask<T>& task, ForwardScratch<T, O>& scratch, int64_t active, int64_t begin,
                    int64_t end) {
  const int64_t B = task.sizes.batch, I = task.sizes.input_size, H = task.sizes.hidden_size;
  const int64_t* const row_steps = task.order.length + task.first;
  int64_t n = 0;
  for (int64_t s = begin; s < end; ++s)
    for (int64_t r = 0; r < active && row_steps[r] > s; ++r, ++n) {
      const int64_t t = time_of(task.options, row_steps[r], s), b = task.order.batch_index[task.first + r];
      scratch.a[n] = operand_row(task.in.input + (t * B + b) * I, I, scratch.input_operands, n * operands<O>(I));
      scratch.out[n] = gates_row(task, scratch, n, t % task.saved_steps * B + b);
    }
  product(task.team, false, n, scratch.a, I, static_cast<const O*>(task.packed),
          (operands<O>(I) + operands<O>(task.sizes.projection_size)) * kPanelColumns<T>, 0, GateColumns{H},
          task.in.weight_ih, 4 * H, has_layer_norm(task.options) ? nullptr : task.bias, scratch.out, scratch.sums);
}

// Readies the r-th row for the step that it runs as its s-th: masks, a reset, and where it reads and writes; n: its
// number in the chunk.
template <typename T, typename O>
void prepare_row(const ForwardTask<T>& task, ForwardScratch<T, O>& scratch, int64_t s, int64_t r, int64_t n) {
  const LayerOptions& options = task.options;
  const LayerSaved<T>& saved = task.out.saved;
  const BlockMasks<T>& masks = scratch.masks;
  const int64_t B = task.sizes.batch, I = task.sizes.input_size, H = task.sizes.hidden_size;
  const int64_t P = task.sizes.projection_size, stride = scratch.stride;
  const int64_t steps = task.order.length[task.first + r], b = task.order.batch_index[task.first + r];
  const int64_t t = time_of(options, steps, s), position = t * B + b, saved_row = t % task.saved_steps * B + b;
  fill_fresh_masks(task.sizes, options, masks, stride, r, b, t);
  if (task.in.reset && task.in.reset[position]) clear_state(scratch, r);
  scratch.a_hidden[r] = operand_row(scratch.h_now + r * stride, P, scratch.hidden_operands, r * operands<O>(P));
  if (task.merged) {
    scratch.a[r] = operand_row(task.in.input + position * I, I, scratch.input_operands, r * operands<O>(I));
    if (steps > s + 1) prefetch_row(task.in.input + (time_of(options, steps, s + 1) * B + b) * I, I);
  }
  const auto mask_row = [&](const T* mask) { return mask ? mask + r * stride : nullptr; };
  StepRow<T>& row = scratch.rows[r];
  row.gates = gates_row(task, scratch, n, saved_row);
  row.recurrent = scratch.recurrent ? scratch.recurrent + r * 4 * H : saved.recurrent + saved_row * 4 * H;
  if (has_layer_norm(options)) {
    row.stats = stats_row(task, scratch, n, saved_row);
    row_stats(row.gates, 4, H, options.eps, row.stats);
  }
  row.c = scratch.c + r * stride;
  row.h_prev = scratch.hidden_of(r);
  row.unprojected = scratch.unprojected ? scratch.unprojected + r * stride : nullptr;
  row.h = (scratch.h ? scratch.h : scratch.h_next) + r * stride;
  row.h_masked = scratch.h_next + r * stride;
  row.cells = saved.gates ? saved.cells + saved_row * H : nullptr;
  row.hidden = saved.hidden ? saved.hidden + saved_row * P : nullptr;
  row.output = task.out.output ? task.out.output + position * P : nullptr;
  row.m_output = mask_row(masks.output);
  row.m_hidden = mask_row(masks.hidden);
  row.zoneout_h = mask_row(masks.zoneout_h);
  row.zoneout_c = mask_row(masks.zoneout_c);
  row.m_candidate = mask_row(masks.candidate);
}

template <typename T, typename O>
void forward(const ForwardTask<T>& task) {
  const LayerOptions& options = task.options;
  const int64_t count = task.last - task.first;
  const int64_t* const row_steps = task.order.length + task.first;
  Arena arena{task.scratch, 0};
  ForwardScratch<T, O> scratch(arena, task.sizes, options, task.out.saved.gates != nullptr, task.merged, count,
                               task.team.members);
  begin_state(task, scratch);

  int64_t active = count;  // rows [0, active) still run
  const auto drop_finished = [&](int64_t s) {
    for (; active > 0 && (row_steps[active - 1] <= s || s == task.step_end); --active)
      store_final_state(task, scratch, active - 1);
  };
  // Whether there is so much to be done for a row before the products of a step that a parallel loop pays.
  const bool prepares = has_layer_norm(options) || scratch.masks.output || scratch.masks.candidate ||
                        scratch.masks.zoneout_h || scratch.masks.zoneout_c;
  const int64_t chunk_steps = scratch.chunk_rows / count;
  const auto least = [](int64_t a, int64_t b) { return a < b ? a : b; };
  drop_finished(task.step_begin);
  for (int64_t chunk = task.step_begin; active > 0; chunk += chunk_steps) {
    const int64_t chunk_end = least(chunk + chunk_steps, least(row_steps[0], task.step_end));
    if (!task.merged) input_products(task, scratch, active, chunk, chunk_end);
    int64_t step_row = 0;  // of the chunk: the first of the step
    for (int64_t s = chunk; s < chunk_end; ++s) {
      scratch.reverse_panels = s % 2 != 0;
      for_each_row(prepares ? task.team : kAlone, active, 1, [&task, &scratch, s, step_row](int64_t, int64_t r) {
        prepare_row(task, scratch, s, r, step_row + r);
      });
      step_row += active;
      if (has_cell_options(options))
        forward_step<AnyOptions>(task, scratch, active);
      else
        forward_step<DefaultOptions>(task, scratch, active);
      T* const h_last = scratch.h_now;
      scratch.h_now = scratch.h_next;
      scratch.h_next = h_last;
      drop_finished(s + 1);
    }
  }
}

}  // namespace lstm_fused::cpu::LSTM_FUSED_ISA_NAME
