// Gradients of the weights, transposed: [x | h~]^T [I + H, rows] times d_gates [rows, 4H].
//
// d_gates is read as it lies, or in groups of rows (a panel is 4 vectors of each row), and stays in the cache while all
// of [x | h~] passes by, packed as [tile][row of the block][tile rows]. The transpose has the longer side, 4H, along
// the vectors; it is turned once at the end.
#pragma once

#include "cpu/gemm.h"
#include "cpu/kernels.h"

namespace lstm_fused::cpu::LSTM_FUSED_ISA_NAME {

constexpr int64_t kGradientBlock = 256;  // rows whose cache lines stay in the first level while they are packed

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

// Gradients [rows, stride] as the right operand, in groups of rows: groups [first, last). Only where an operand is more
// than one number; otherwise they are read as they lie.
template <typename T, typename O>
void group_rows(const T* gradients, int64_t rows, int64_t stride, int64_t first, int64_t last, void* grouped) {
  constexpr int64_t G = kGroup<O>;
  for (int64_t k = first; k < last; ++k)
    for (int64_t j = 0; j < stride; j += kLanes<T>) {
      const T* group[G];
      for (int64_t row = 0; row < G; ++row)
        group[row] = k * G + row < rows ? gradients + (k * G + row) * stride + j : nullptr;
      store_group(group, kLanes<T>, static_cast<O*>(grouped) + k * stride + j);
    }
}

// A tile of sums takes in all blocks of the chunk before it is stored.
template <typename T, typename O>
LSTM_FUSED_FN void add_products(const O* packed, int64_t rows, int64_t columns, const O* d_gates, int64_t stride,
                                bool accumulate, T* sums) {
  for (int64_t first = 0; first < columns; first += kTileRows) {
    const int64_t width = columns - first < kTileRows ? columns - first : kTileRows;
    with_rows(width, [&](auto constant) LSTM_FUSED_INLINE {
      constexpr int R = decltype(constant)::value;
      T* const out = sums + first * stride;
      for (int i = 0; i < R; ++i)  // the next tile's sums
        for (int j = 0; j < kPanelVectors; ++j) __builtin_prefetch(out + (R + i) * stride + j * kLanes<T>, 1);
      Tile<T, R> tile;
      for_each_vector(tile, [&](int i, int j, Vec<T>& v) LSTM_FUSED_INLINE {
        v = accumulate ? load(out + i * stride + j * kLanes<T>) : Vec<T>{};
      });
      for (int64_t row = 0; row < rows; row += kGradientBlock) {
        const int64_t group = row / kGroup<O>;
        const int64_t depth = operands<O>(rows - row < kGradientBlock ? rows - row : kGradientBlock);
        multiply_add(tile, PackedRows<O, R>{packed + group * columns + first * depth}, depth, d_gates + group * stride,
                     stride);
      }
      for_each_vector(tile,
                      [&](int i, int j, Vec<T>& v) LSTM_FUSED_INLINE { store(out + i * stride + j * kLanes<T>, v); });
    });
  }
}

template <typename T, typename O>
void weight_gradient(const WeightGradientTask<T>& task) {
  const int64_t I = task.input_columns, H = task.hidden_columns, stride = task.stride;
  for (int64_t p = task.first; p < task.last; ++p) {
    const int64_t column = p * kPanelColumns<T>;
    add_products(static_cast<const O*>(task.packed_input), task.rows, I,
                 static_cast<const O*>(task.d_gates_ih) + column, stride, !task.first_chunk, task.sums + column);
    add_products(static_cast<const O*>(task.packed_hidden), task.rows, H,
                 static_cast<const O*>(task.d_gates_hh) + column, stride, !task.first_chunk,
                 task.sums + I * stride + column);
  }
}

template <typename T>
void unpack_gradient(const T* sums, int64_t rows, int64_t columns, int64_t first, int64_t last, T* d_weight) {
  const int64_t stride = gradient_stride<T>(rows);
  const int64_t begin = first * kPanelColumns<T>;
  const int64_t end = last * kPanelColumns<T> < rows ? last * kPanelColumns<T> : rows;
  constexpr int64_t L = kLanes<T>;
  for (int64_t g = begin; g < end; g += L)
    for (int64_t k = 0; k < columns; k += L) {
      const T* const from = sums + k * stride + g;
      T* const to = d_weight + g * columns + k;
      if (g + L <= end && k + L <= columns) {
        prefetch_squares(from + L, stride, to + L * columns, columns);  // of the next L rows of d_weight
        transpose_square(from, stride, to, columns);
      } else {
        for (int64_t row = 0; row < L && g + row < end; ++row)
          for (int64_t column = 0; column < L && k + column < columns; ++column)
            to[row * columns + column] = from[column * stride + row];
      }
    }
}

}  // namespace lstm_fused::cpu::LSTM_FUSED_ISA_NAME
