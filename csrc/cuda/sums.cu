// What happens once a call and not once a step: the weights' mask, the operands of the weight gradients, and the sums
// over all rows and steps.
#include "cuda/launch.h"
#include "cuda/reduce.h"
#include "cuda/units.h"

namespace lstm_fused::cuda {

namespace {

constexpr int kRowThreads = 128;

// One block a row (t, b) of the input, zero where it is not real: 0 times a NaN of the padding would be NaN.
template <typename T>
__global__ void __launch_bounds__(kRowThreads) input_kernel(const __grid_constant__ Operand<T> operand) {
  const int64_t row = blockIdx.x, t = operand.first + row / operand.sequence.batch, b = row % operand.sequence.batch;
  const int64_t I = operand.sizes.input_size;
  const bool is_real = operand.sequence.is_real(t, b);
  for_each_vector<1, false>(
      I, [&](int64_t j) { operand.out[row * I + j] = is_real ? operand.input[row * I + j] : Narrow<T>::from(0); });
}

// One block a row (t, b): the h~_{t-1} that step t multiplied.
template <typename T, int V>
__global__ void __launch_bounds__(kRowThreads) hidden_kernel(const __grid_constant__ Operand<T> operand) {
  using A = Accumulator<T>;
  const Sequence& sequence = operand.sequence;
  const int64_t row = blockIdx.x, t = operand.first + row / sequence.batch, b = row % sequence.batch;
  const int64_t P = operand.sizes.projection_size;
  const bool is_real = sequence.is_real(t, b), is_first = is_real && t == sequence.first(b);
  const T* const from =
      is_first ? operand.h_0 + b * P : operand.hidden + ((sequence.before(t) - operand.first) * sequence.batch + b) * P;
  const uint64_t seed = read_seed(operand.seed);
  for_each_vector<V, false>(P, [&](int64_t j) {
    auto h = Lanes<A, V>{};
    if (is_real) h = hidden_operand<A, V>(operand.options, sequence, seed, t, b, j, widen(load<V>(from, j)));
    store<V>(operand.out + row * P, j, h);
  });
}

// One block a row of W_hh.
template <typename T, int V>
__global__ void __launch_bounds__(kRowThreads) weight_kernel(const __grid_constant__ WeightMask<T> weight) {
  const int64_t row = blockIdx.x, P = weight.sizes.projection_size;
  const uint64_t seed = read_seed(weight.seed);
  for_each_vector<V, false>(P, [&](int64_t j) {
    auto values = widen(load<V>(weight.weight + row * P, j));
    const auto mask =
        dropout_mask<Accumulator<T>, V>(seed, weight.options.stream, MaskUse::weight, weight.options.weight, 0, row, j);
#pragma unroll
    for (int lane = 0; lane < V; ++lane) values[lane] *= mask[lane];
    store<V>(weight.out + row * P, j, values);
  });
}

constexpr int kSumColumns = 32, kSumRows = 8;  // threads of a block

// One block a chunk of rows and a strip of columns: each thread adds up every kSumRows-th row, then the threads of a
// column are added up in their order.
template <typename T, int V, bool kNorms>
__global__ void __launch_bounds__(kSumColumns* kSumRows, 2) columns_kernel(const __grid_constant__ ColumnSums<T> sums) {
  using A = Accumulator<T>;
  constexpr int kSums = kNorms ? 3 : 1;
  const int64_t chunk = blockIdx.x, columns = sums.columns;
  const int lane_of_row = threadIdx.x % kSumColumns;
  const int first = threadIdx.x / kSumColumns;
  const int64_t k = (static_cast<int64_t>(blockIdx.y) * kSumColumns + lane_of_row) * V;
  Lanes<A, V> total[kSums] = {};
  const int64_t end = (chunk + 1) * ColumnSums<T>::kRows < sums.rows ? (chunk + 1) * ColumnSums<T>::kRows : sums.rows;
  if (k < columns)
    for (int64_t row = chunk * ColumnSums<T>::kRows + first; row < end; row += kSumRows) {
      if (sums.sequence.lengths)  // without, no division of 64 bits for every row
        if (!sums.sequence.is_real(sums.first + row / sums.sequence.batch, row % sums.sequence.batch)) continue;
      const auto v = widen(load<V>(sums.values + row * columns, k));
#pragma unroll
      for (int lane = 0; lane < V; ++lane) total[0][lane] += v[lane];
      if (!kNorms) continue;
      const auto x = widen(load<V>(sums.gates + row * columns, k));
      const auto h = widen(load<V>(sums.recurrent + row * columns, k));
      const A* const stats = sums.stats + row * 6;
#pragma unroll
      for (int lane = 0; lane < V; ++lane) {
        total[kSums - 2 + !kNorms][lane] += v[lane] * normalize(x[lane], stats[0], stats[1]);
        total[kSums - 1][lane] += v[lane] * normalize(h[lane], stats[2], stats[3]);
      }
    }

  A* const shared = shared_memory<A>();  // [kSumRows, kSums, kSumColumns, V]
#pragma unroll
  for (int sum = 0; sum < kSums; ++sum)
#pragma unroll
    for (int lane = 0; lane < V; ++lane)
      shared[((first * kSums + sum) * kSumColumns + lane_of_row) * V + lane] = total[sum][lane];
  __syncthreads();
  if (first != 0 || k >= columns) return;
#pragma unroll
  for (int sum = 0; sum < kSums; ++sum) {
#pragma unroll
    for (int lane = 0; lane < V; ++lane)
      for (int other = 1; other < kSumRows; ++other)
        total[sum][lane] += shared[((other * kSums + sum) * kSumColumns + lane_of_row) * V + lane];
    A* const out = sums.partial + (chunk * kSums + sum) * columns;
#pragma unroll
    for (int lane = 0; lane < V; ++lane) out[k + lane] = total[sum][lane];
  }
}

// A thread a column of one sum; the chunks in their order.
template <typename T>
__global__ void __launch_bounds__(kRowThreads) chunks_kernel(const __grid_constant__ ChunkSums<T> sums) {
  const int64_t sum = blockIdx.x, columns = sums.columns;
  T* const out = sums.out[sum];
  for_each_vector<1, false>(columns, [&](int64_t k) {
    Accumulator<T> total = 0;
    for (int64_t chunk = 0; chunk < sums.chunks; ++chunk)
      total += sums.partial[(chunk * sums.sums + sum) * columns + k];
    out[k] = Narrow<T>::from(total);
  });
}

}  // namespace

template <typename T>
cudaError_t real_input(const Operand<T>& operand, cudaStream_t stream) {
  return launch(input_kernel<T>, {operand.rows}, kRowThreads, 0, stream, operand);
}

template <typename T>
cudaError_t previous_hidden(const Operand<T>& operand, cudaStream_t stream) {
  return with_width<T>(operand.width, [&](auto width) {
    constexpr int V = decltype(width)::value;
    const unsigned threads = threads_for<V>(operand.sizes.projection_size, kRowThreads);
    return launch(hidden_kernel<T, V>, {operand.rows}, threads, 0, stream, operand);
  });
}

template <typename T>
cudaError_t mask_weight(const WeightMask<T>& weight, cudaStream_t stream) {
  return with_width<T>(weight.width, [&](auto width) {
    constexpr int V = decltype(width)::value;
    const unsigned threads = threads_for<V>(weight.sizes.projection_size, kRowThreads);
    return launch(weight_kernel<T, V>, {4 * weight.sizes.hidden_size}, threads, 0, stream, weight);
  });
}

template <typename T>
cudaError_t column_sums(const ColumnSums<T>& sums, cudaStream_t stream) {
  return with_whole_width<T>(sums.width, [&](auto width) {
    constexpr int V = decltype(width)::value;
    constexpr int64_t kStrip = kSumColumns * V;
    const Grid grid{sums.chunks(), (sums.columns + kStrip - 1) / kStrip};
    const size_t shared = sums.sums() * kSumRows * kStrip * sizeof(Accumulator<T>);
    const auto kernel = sums.norms ? columns_kernel<T, V, true> : columns_kernel<T, V, false>;
    return launch(kernel, grid, kSumColumns * kSumRows, shared, stream, sums);
  });
}

template <typename T>
cudaError_t chunk_sums(const ChunkSums<T>& sums, cudaStream_t stream) {
  return launch(chunks_kernel<T>, {sums.sums, (sums.columns + kRowThreads - 1) / kRowThreads}, kRowThreads, 0, stream,
                sums);
}

#define LSTM_FUSED_INSTANTIATE(T)                                           \
  template cudaError_t real_input<T>(const Operand<T>&, cudaStream_t);      \
  template cudaError_t previous_hidden<T>(const Operand<T>&, cudaStream_t); \
  template cudaError_t mask_weight<T>(const WeightMask<T>&, cudaStream_t);  \
  template cudaError_t column_sums<T>(const ColumnSums<T>&, cudaStream_t);  \
  template cudaError_t chunk_sums<T>(const ChunkSums<T>&, cudaStream_t);
LSTM_FUSED_INSTANTIATE(float)
LSTM_FUSED_INSTANTIATE(double)
LSTM_FUSED_INSTANTIATE(__half)
LSTM_FUSED_INSTANTIATE(__nv_bfloat16)
#undef LSTM_FUSED_INSTANTIATE

}  // namespace lstm_fused::cuda
