// Gradients of the weights, transposed: [x | h~]^T [I + P, rows] times d_gates [rows, 4H].
//
// [x | h~] is packed as [block of rows][tile][row of the block][tile rows]. The transpose has the longer side, 4H,
// along the vectors; it is turned once at the end. Sums lie in strips, [strip][I or P][kStripColumns].
//
// The right operand are some panels of d_gates and of its rows at a time, a pass. Where a tile takes a whole panel,
// these rows are read unpacked, and stay in the second-level cache while all of [x | h~] passes by; a tile takes in
// all blocks of them before the next one. Narrow tiles would read a piece so small of each row, and the rows lie on so
// many pages, that most of the time went there: what they read is packed in strips first. Then a strip of a block stays
// in the first-level cache, and the columns of [x | h~] that it meets in the second.
#pragma once

#include "cpu/gemm.h"
#include "cpu/kernels.h"

namespace lstm_fused::cpu::LSTM_FUSED_ISA_NAME {

constexpr int64_t kGradientBlock = 256;  // rows whose products make one chain of sums, and that are packed together
constexpr int64_t kPassRows = kStrips > 1 ? kGradientBlock : 4 * kGradientBlock;
constexpr int64_t kPassPanels = kStrips > 1 ? 4 : 1;
constexpr int64_t kPassColumns = 30 * kTileRows;  // of [x | h~], if strips are narrow

template <typename O>
constexpr bool kPacksGradients = kStrips > 1 || kGroup<O> > 1;

// Of a strip of a pass.
template <typename T, typename O>
constexpr int64_t kPassStrip = kPassRows / kGroup<O> * kStripColumns<T>;

template <typename T, typename O>
constexpr int64_t kPassOperands = kPacksGradients<O> ? kPassPanels * kStrips * kPassStrip<T, O> : 0;

// Rows [first, first + count) of the chunk, a block of it, into their place among its packed rows.
template <typename T, typename O>
void pack_transposed(const T* const* rows, const T* const* masks, int64_t first, int64_t count, int64_t columns,
                     void* packed) {
  constexpr int64_t G = kGroup<O>;
  const int64_t groups = operands<O>(count);
  O* const block = static_cast<O*>(packed) + first / G * columns;
  for (int64_t column = 0; column < columns; column += kTileRows) {
    const int64_t width = columns - column < kTileRows ? columns - column : kTileRows;
    with_rows(width, [&](auto constant) LSTM_FUSED_INLINE {
      constexpr int R = decltype(constant)::value;
      for (int64_t k = 0; k < groups; ++k) {
        const T *group[G] = {}, *group_masks[G] = {};
        for (int64_t row = 0; row < G && k * G + row < count; ++row) {
          group[row] = rows[first + k * G + row] + column;
          if (masks) group_masks[row] = masks[first + k * G + row] + column;
        }
        store_columns(group, group_masks, reinterpret_cast<O(&)[R]>(block[column * groups + k * R]));
      }
    });
  }
}

// Panels of gradients [rows, stride] as the right operand, in strips.
template <typename T, typename O>
LSTM_FUSED_FN void pack_gradients(const T* gradients, int64_t rows, int64_t stride, int64_t panels, O* packed) {
  constexpr int64_t G = kGroup<O>;
  for (int64_t k = 0; k < operands<O>(rows); ++k)
    for (int64_t p = 0; p < panels; ++p)
#pragma GCC unroll 4
      for (int j = 0; j < kPanelVectors; ++j) {
        const T* group[G];
        for (int64_t row = 0; row < G; ++row)
          group[row] =
              k * G + row < rows ? gradients + (k * G + row) * stride + p * kPanelColumns<T> + j * kLanes<T> : nullptr;
        O* const panel = packed + p * kStrips * kPassStrip<T, O> + k * kStripColumns<T>;
        store_group(group, kLanes<T>, panel + vector_offset<T>(j, kPassStrip<T, O>));
      }
}

// sums (+)= the products of one tile over `rows` rows, block by block; `packed`: the tile's rows of the first block.
// Not inlined: its loops get all registers.
template <typename T, typename O, int R>
__attribute__((noinline)) void add_tile(const O* packed, int64_t rows, int64_t columns, int64_t column,
                                        const O* gradients, int64_t ldb, bool add, T* sums) {
  constexpr int64_t kGroups = kGradientBlock / kGroup<O>;
  for (int64_t row = 0; row < rows; row += kGradientBlock, add = true) {
    const int64_t depth = operands<O>(rows - row < kGradientBlock ? rows - row : kGradientBlock);
    Tile<T, R, kTileVectors> tile;
    tile.template multiply_add<false>(PackedRows<O, R>{packed + column * depth}, depth, gradients, ldb, 0, nullptr, 0);
    tile.store_to(sums, kStripColumns<T>, add);
    packed += kGroups * columns;
    gradients += kGroups * ldb;
  }
}

// The products of a pass. `packed`: [x | h~] from its first row on; strips of the gradients are `strip_size` apart.
template <typename T, typename O>
LSTM_FUSED_FN void add_products(const O* packed, int64_t rows, int64_t columns, const O* gradients, int64_t ldb,
                                int64_t strip_size, int64_t strips, bool add, T* sums) {
  const int64_t most = kStrips > 1 ? kPassColumns : columns;
  for (int64_t begin = 0; begin < columns; begin += most) {
    const int64_t end = columns - begin < most ? columns : begin + most;
    for (int64_t strip = 0; strip < strips; ++strip)
      for (int64_t column = begin; column < end; column += kTileRows)
        with_rows(end - column < kTileRows ? end - column : kTileRows, [&](auto constant) LSTM_FUSED_INLINE {
          constexpr int R = decltype(constant)::value;
          T* const to = sums + (strip * columns + column) * kStripColumns<T>;
          for (int i = 0; i < R; ++i)  // the next tile's sums
            for (int j = 0; j < kTileVectors; ++j)
              __builtin_prefetch(to + (R + i) * kStripColumns<T> + j * kLanes<T>, 1);
          add_tile<T, O, R>(packed, rows, columns, column, gradients + strip * strip_size, ldb, add, to);
        });
  }
}

template <typename T, typename O>
void weight_gradient(const WeightGradientTask<T>& task) {
  const int64_t I = task.input_columns, H = task.hidden_columns, stride = task.stride;
  for (int64_t row = 0; row < task.rows; row += kPassRows) {
    const int64_t rows = task.rows - row < kPassRows ? task.rows - row : kPassRows, group = row / kGroup<O>;
    const bool add = !task.first_chunk || row > 0;
    for (int64_t p = task.first; p < task.last; p += kPassPanels) {
      const int64_t panels = task.last - p < kPassPanels ? task.last - p : kPassPanels;
      const auto add_side = [&](const void* packed, int64_t columns, const T* d_gates, bool packs,
                                T* sums) LSTM_FUSED_INLINE {
        const T* const gradients = d_gates + row * stride + p * kPanelColumns<T>;
        const O* const left = static_cast<const O*>(packed) + group * columns;
        T* const to = sums + p * kPanelColumns<T> * columns;
        if constexpr (kPacksGradients<O>) {
          O* const right = static_cast<O*>(task.scratch);
          if (packs) pack_gradients(gradients, rows, stride, panels, right);
          add_products(left, rows, columns, right, kStripColumns<T>, kPassStrip<T, O>, panels * kStrips, add, to);
        } else {
          add_products(left, rows, columns, gradients, stride, 0, panels, add, to);
        }
      };
      add_side(task.packed_input, I, task.d_gates_ih, true, task.sums);
      if (H > 0)
        add_side(task.packed_hidden, H, task.d_gates_hh, task.d_gates_hh != task.d_gates_ih, task.sums + I * stride);
    }
  }
}

template <typename T>
void unpack_gradient(const T* sums, int64_t rows, int64_t columns, int64_t first, int64_t last, T* d_weight) {
  const int64_t begin = first * kPanelColumns<T>;
  const int64_t end = last * kPanelColumns<T> < rows ? last * kPanelColumns<T> : rows;
  constexpr int64_t L = kLanes<T>, C = kStripColumns<T>;
  for (int64_t g = begin; g < end; g += L) {
    const T* const strip = sums + g / C * columns * C + g % C;
    for (int64_t k = 0; k < columns; k += L) {
      const T* const from = strip + k * C;
      T* const to = d_weight + g * columns + k;
      if (g + L <= end && k + L <= columns) {
        prefetch_squares(from + L * C, C, to + L * columns, columns);  // of the next L rows of d_weight
        transpose_square(from, C, to, columns);
      } else {
        transpose_part(from, C, columns - k, end - g, to, columns, columns - k);
      }
    }
  }
}

}  // namespace lstm_fused::cpu::LSTM_FUSED_ISA_NAME
