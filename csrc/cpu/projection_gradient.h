// The gradient of the projection's weight over the chunks of a backward pass.
#pragma once

#include <vector>

#include "cpu/layer_common.h"

namespace lstm_fused::cpu {

// The backward pass of h_t = W_hr h', over the chunks of a call. Without a projection all is null and nothing happens.
template <typename T>
struct ProjectionGradient {
  const Kernels<T>& k;
  int64_t hidden_size, projection_size, stride;
  void* packed_hr = nullptr;  // plain panels of W_hr [P, H]
  T* d_hidden = nullptr;      // [rows of the chunk, stride]
  T* unprojected = nullptr;   // [rows of the chunk, H] h'; null where no weight gradients are wanted, like the next two
  void* packed_unprojected = nullptr;
  T* gradient_scratch = nullptr;
  T* sums = nullptr;  // [H, stride]
  std::vector<const T*> rows;

  ProjectionGradient(const Kernels<T>& kernels, const LayerSizes& sizes, const LayerOptions& options,
                     int64_t chunk_rows, bool want_weights, Workspace& workspace, const Executor& executor)
      : k(kernels),
        hidden_size(sizes.hidden_size),
        projection_size(sizes.projection_size),
        stride(kernels.gradient_stride(sizes.projection_size)) {
    if (!options.projection) return;
    packed_hr = workspace.take<T>(k.plain_panels(hidden_size) * k.panel_columns * operands(k, projection_size));
    d_hidden = workspace.take<T>(chunk_rows * stride);
    // Columns past P are read as part of a panel; their products are never used.
    for (int64_t row = 0; row < chunk_rows; ++row)
      zero(d_hidden + row * stride + projection_size, stride - projection_size);
    if (!want_weights) return;
    unprojected = workspace.take<T>(chunk_rows * hidden_size);
    packed_unprojected = workspace.take<T>(operands(k, chunk_rows) * hidden_size);
    gradient_scratch =
        workspace.take<T>(parallel_tasks(executor, k.plain_panels(projection_size)) * k.gradient_scratch);
    sums = workspace.take<T>(hidden_size * stride);
    for (int64_t row = 0; row < chunk_rows; ++row) rows.push_back(unprojected + row * hidden_size);
  }

  void pack(const T* weight_hr, const Executor& executor) {
    if (!packed_hr) return;
    parallel_for(executor, k.plain_panels(hidden_size), [&](int64_t first, int64_t last) {
      k.pack_plain(weight_hr, projection_size, hidden_size, first, last, packed_hr);
    });
  }

  // d_W_hr^T += h'^T d_h_t of a chunk.
  void add_weight_gradient(int64_t count, bool first_chunk, const Executor& executor) {
    if (!sums) return;
    parallel_for(executor, ceil_div(count, k.gradient_block), [&](int64_t first, int64_t last) {
      for (int64_t block = first; block < last; ++block) {
        const int64_t row = block * k.gradient_block;
        k.pack_transposed(rows.data(), nullptr, row, std::min(k.gradient_block, count - row), hidden_size,
                          packed_unprojected);
      }
    });
    parallel_for_numbered(executor, k.plain_panels(projection_size), [&](int64_t number, int64_t first, int64_t last) {
      k.weight_gradient({hidden_size, 0, stride, count, first, last, packed_unprojected, nullptr, d_hidden, d_hidden,
                         gradient_scratch + number * k.gradient_scratch, sums, first_chunk});
    });
  }

  void finish_weight_gradient(T* d_weight_hr, const Executor& executor) {
    if (!sums) return;
    parallel_for(executor, k.plain_panels(projection_size), [&](int64_t first, int64_t last) {
      k.unpack_gradient(sums, projection_size, hidden_size, first, last, d_weight_hr);
    });
  }
};

}  // namespace lstm_fused::cpu
