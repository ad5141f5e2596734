// Gradients of the weights, transposed: [x | h~]^T [I + H, rows] times d_gates [rows, 4H].
//
// d_gates is read as it lies (a panel is 4 vectors of each row) and stays in the cache while all of [x | h~] passes by,
// packed as [tile][row of the block][tile rows]. The transpose has the longer side, 4H, along the vectors; it is turned
// once at the end.
#pragma once

#include "cpu/gemm.h"
#include "cpu/kernels.h"

namespace lstm_fused::cpu::LSTM_FUSED_ISA_NAME {

constexpr int64_t kGradientBlock = 256;  // rows of a tile: enough to pay for its start and its end

template <typename T>
void pack_transposed(const T* const* rows, const T* const* masks, int64_t count, int64_t columns, T* packed) {
  for (int64_t first = 0; first < columns; first += kTileRows) {
    const int64_t width = columns - first < kTileRows ? columns - first : kTileRows;
    with_rows(width, [&](auto constant) LSTM_FUSED_INLINE {
      constexpr int R = decltype(constant)::value;
      for (int64_t k = 0; k < count; ++k) {
        T* to = packed + first * count + k * R;
        const T* from = rows[k] + first;
        if (masks)
          for (int i = 0; i < R; ++i) to[i] = from[i] * masks[k][first + i];
        else
          std::memcpy(to, from, sizeof(T) * R);
      }
    });
  }
}

template <typename T>
LSTM_FUSED_FN void add_product(const T* packed, int64_t rows, int64_t columns, const T* d_gates, int64_t stride,
                               bool accumulate, T* sums) {
  for (int64_t first = 0; first < columns; first += kTileRows) {
    const int64_t width = columns - first < kTileRows ? columns - first : kTileRows;
    with_rows(width, [&](auto constant) LSTM_FUSED_INLINE {
      constexpr int R = decltype(constant)::value;
      T* const out = sums + first * stride;
      for (int i = 0; i < R; ++i)  // the next tile's sums
        for (int j = 0; j < kPanelVectors; ++j) __builtin_prefetch(out + (R + i) * stride + j * kLanes<T>, 1);
      gemm_tile<T, R>(
          PackedRows<T, R>{packed + first * rows}, rows, d_gates, stride,
          [&](int i, int j)
              LSTM_FUSED_INLINE { return accumulate ? load(out + i * stride + j * kLanes<T>) : Vec<T>{}; },
          [&](int i, int j, Vec<T> v) LSTM_FUSED_INLINE { store(out + i * stride + j * kLanes<T>, v); });
    });
  }
}

template <typename T>
void weight_gradient(const WeightGradientTask<T>& task) {
  const int64_t I = task.input_columns, H = task.hidden_columns, stride = task.stride;
  for (int64_t p = task.first; p < task.last; ++p)
    for (int64_t row = 0; row < task.rows; row += kGradientBlock) {
      const int64_t rows = task.rows - row < kGradientBlock ? task.rows - row : kGradientBlock;
      const int64_t column = p * kPanelColumns<T>, gates = row * stride + column;
      const bool accumulate = !task.first_chunk || row > 0;
      add_product(task.packed_input + row * I, rows, I, task.d_gates_ih + gates, stride, accumulate,
                  task.sums + column);
      add_product(task.packed_hidden + row * H, rows, H, task.d_gates_hh + gates, stride, accumulate,
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
        transpose_square(from, stride, to, columns);
      } else {
        for (int64_t row = 0; row < L && g + row < end; ++row)
          for (int64_t column = 0; column < L && k + column < columns; ++column)
            to[row * columns + column] = from[column * stride + row];
      }
    }
}

}  // namespace lstm_fused::cpu::LSTM_FUSED_ISA_NAME
