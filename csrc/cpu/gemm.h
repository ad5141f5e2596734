// Matrix products: a register tile over packed panels, and the packing.
//
// A panel is K x (4 vectors); K counts operands (operand.h). It is cut into strips as wide as a register tile, each
// contiguous: [strip][K][kTileVectors vectors]. Two kinds:
//   plain  panel p holds columns [4Lp, 4L(p+1)) of a [K, N] matrix                          (L = lanes of a vector)
//   gates  panel p holds hidden units [Lp, L(p+1)) of the four gates side by side, of W^T with W [4H, K]:
//          a panel's sums are i, f, g, o of the same units, and the gates need no second pass
// Each element of a product is the sum of blocks of at most kDepthBlock operands, and each block one chain of
// multiply-adds over ascending operands, whatever the tile: its bits do not depend on how rows are grouped, hence not
// on the number of threads. One long chain would lose more bits, and a block of a strip stays in the first-level cache
// while all rows pass by.
#pragma once

#include "cpu/kernels.h"
#include "cpu/operand.h"

namespace lstm_fused::cpu::LSTM_FUSED_ISA_NAME {

constexpr int kPanelVectors = 4;
// The register tile: its sums, the vectors of a strip and a broadcast fit the registers. Tall, because each tile reads
// the strip once: the cache has to feed it.
constexpr int kTileRows = 6;
constexpr int kTileVectors = kVectorRegisters >= 32 ? 4 : 2;
constexpr int kStrips = kPanelVectors / kTileVectors;
constexpr int kWideRows = kTileRows / kStrips;  // so few rows take all strips of a panel at once
constexpr int64_t kDepthBlock = 192;
// Rows that pass by a strip: enough to reuse it, few enough for their sums to stay cached.
constexpr int64_t kRowBlock = 96;

template <typename T>
constexpr int64_t kPanelColumns = kPanelVectors * kLanes<T>;
template <typename T>
constexpr int64_t kStripColumns = kTileVectors * kLanes<T>;

// Where vector j of a panel starts in it.
template <typename T>
LSTM_FUSED_FN int64_t vector_offset(int j, int64_t strip_size) {
  return j / kTileVectors * strip_size + j % kTileVectors * kLanes<T>;
}

// Spreads the prefetches for the next step over the tiles of a product, some cache lines before each: issued in one
// burst they would stall the load queue. On a cache line of its own: each member of a team writes to its own at every
// tile.
struct alignas(64) PrefetchQueue {
  struct Range {
    const char *begin, *end;
  };
  Range* ranges;
  int64_t count = 0;  // of ranges
  int64_t next = 0;   // range
  int64_t lines = 0;  // at each tile
  const char* line = nullptr;

  template <typename T>
  LSTM_FUSED_INLINE void add(const T* p, int64_t values) {
    ranges[count++] = {reinterpret_cast<const char*>(p), reinterpret_cast<const char*>(p + values)};
  }
  // From the first range on, spread over so many tiles.
  void start(int64_t tiles) {
    next = 0;
    line = count > 0 ? ranges[0].begin : nullptr;
    int64_t all = 0;
    for (int64_t k = 0; k < count; ++k) all += (ranges[k].end - ranges[k].begin) / 64 + 1;
    lines = tiles > 0 ? ceil_div(all, tiles) : all;
  }
  LSTM_FUSED_INLINE void prefetch_next() {
    for (int64_t k = 0; k < lines && next != count; ++k) {
      __builtin_prefetch(line, 0, 2);
      line += 64;
      if (line >= ranges[next].end && ++next < count) line = ranges[next].begin;
    }
  }
};

// Prefetches n values that will be read in a while.
template <typename T>
LSTM_FUSED_FN void prefetch_row(const T* p, int64_t n) {
  for (int64_t k = 0; k < n; k += 64 / sizeof(T)) __builtin_prefetch(p + k, 0, 2);
}

// The left operand as one pointer a row (rows anywhere in memory), or packed as [K][Rows].
template <typename O, int Rows>
struct RowPointers {
  const O* row[Rows];
  LSTM_FUSED_FN RowPointers from(const O* const* rows, int64_t first) {
    RowPointers a;
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i) a.row[i] = rows[i] + first;
    return a;
  }
  LSTM_FUSED_INLINE O operator()(int i, int64_t k) const { return row[i][k]; }
};

template <typename O, int Rows>
struct PackedRows {
  const O* data;
  LSTM_FUSED_INLINE O operator()(int i, int64_t k) const { return data[k * Rows + i]; }
};

// The sums of a register tile. Code that uses one is inlined, or it would live in memory.
template <typename T, int Rows, int Vectors>
struct Tile {
  Vec<T> acc[Rows][Vectors] = {};

  // acc[i][j] += sum_k a(i, k) * b[k * ldb + ...], the vectors j of strips `strip_size` apart. If
  // Prefetches, it also prefetches `bytes` bytes from `ahead` on per k.
  template <bool Prefetches, typename O, class A>
  LSTM_FUSED_INLINE void multiply_add(A a, int64_t depth, const O* b, int64_t ldb, int64_t strip_size,
                                      const char* ahead, int64_t bytes) {
    for (int64_t k = 0; k < depth; ++k, b += ldb) {
      if constexpr (Prefetches) {
        __builtin_prefetch(ahead, 0, 2);
        ahead += bytes;
      }
      decltype(load_operands(b)) strip[Vectors];
#pragma GCC unroll 4
      for (int j = 0; j < Vectors; ++j) strip[j] = load_operands(b + vector_offset<T>(j, strip_size));
#pragma GCC unroll 8
      for (int i = 0; i < Rows; ++i) {
        const auto x = broadcast_operand(a(i, k));
#pragma GCC unroll 4
        for (int j = 0; j < Vectors; ++j) add_product(acc[i][j], x, strip[j]);
      }
    }
  }

  // To sums[i * stride + j * lanes + lane]: stored, or added to what is there.
  LSTM_FUSED_INLINE void store_to(T* sums, int64_t stride, bool add) {
    if (add)
#pragma GCC unroll 8
      for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < Vectors; ++j) acc[i][j] += load(sums + i * stride + j * kLanes<T>);
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < Vectors; ++j) store(sums + i * stride + j * kLanes<T>, acc[i][j]);
  }
};

template <int N>
struct Constant {
  static constexpr int value = N;
};

// f(Constant<rows>) for rows in 1..N.
template <int N = kTileRows, class F>
LSTM_FUSED_FN void with_rows(int64_t rows, F f) {
  if constexpr (N == 1) {
    f(Constant<1>{});
  } else {
    if (rows == N)
      f(Constant<N>{});
    else
      with_rows<N - 1>(rows, f);
  }
}

// A left operand, one pointer a row, and the rows of the panel that it is multiplied with. Several that follow one
// another make one sum, like [x | h~] times [W_ih W_hh]^T.
template <typename O>
struct Factor {
  const O* const* rows;
  int64_t begin, end;
};

// sums[i] (+)= rows [begin, end) of the strip times the factors' rows [first, first + Rows). Not inlined: the loops get
// all registers, wherever they are used.
template <typename T, typename O, int Rows, int Vectors>
__attribute__((noinline)) void multiply_rows(const Factor<O>* factor, int64_t first, int64_t begin, int64_t end,
                                             const O* strip, int64_t strip_size, bool add, T* sums, const char* ahead,
                                             int64_t bytes) {
  Tile<T, Rows, Vectors> tile;
  const auto multiply = [&](auto prefetches) LSTM_FUSED_INLINE {
    constexpr bool kPrefetches = decltype(prefetches)::value != 0;
    for (int64_t k = begin; k < end; ++factor) {
      const int64_t stop = factor->end < end ? factor->end : end;
      if (stop <= k) continue;
      const auto a = RowPointers<O, Rows>::from(factor->rows + first, k - factor->begin);
      tile.template multiply_add<kPrefetches>(a, stop - k, strip + k * kStripColumns<T>, kStripColumns<T>, strip_size,
                                              kPrefetches ? ahead + (k - begin) * bytes : nullptr, bytes);
      k = stop;
    }
  };
  if (ahead)
    multiply(Constant<1>{});
  else
    multiply(Constant<0>{});
  tile.store_to(sums, kPanelColumns<T>, add);
}

// Of nearly equal size, and one where there is nothing to multiply.
LSTM_FUSED_FN int64_t depth_blocks(int64_t depth) { return depth > 0 ? ceil_div(depth, kDepthBlock) : 1; }

// How many of `count` rows are multiplied strip by strip; kWideRows or none are left. A tile of so few rows of one
// strip has fewer sums than multiply-adds are under way, and waits for them; tiles of nearly equal height come to that
// with one row more than a tile has.
LSTM_FUSED_FN int64_t rows_in_strips(int64_t count) {
  if (kStrips == 1) return count;
  return count <= kWideRows ? 0 : count == kTileRows + 1 ? count - kWideRows : count;
}

// sums [count][kPanelColumns] = the factors' rows [0, count) times the panel, whose strips are strip_size apart; count
// is at most kRowBlock. Tile by tile before(r, rows, vector, vectors) is called ahead of its last products, and
// after(r, rows, vector, vectors) when its sums are complete. Meanwhile it prefetches the strip that follows, at last
// the first one of next_panel, so that its first tile does not wait for the third-level cache, and what the queue
// holds. Beyond the last panel the prefetches are useless and harmless.
template <typename T, typename O, int Factors, class Before, class After>
LSTM_FUSED_FN void multiply_panel(const Factor<O> (&factors)[Factors], int64_t count, const O* panel,
                                  const O* next_panel, int64_t strip_size, T* sums, Before before, After after,
                                  PrefetchQueue* queue = nullptr) {
  const int64_t from = factors[0].begin, depth = factors[Factors - 1].end - from, blocks = depth_blocks(depth);
  // Rows [from_row, to_row) times `vectors` vectors of the panel, in tiles of at most `max_rows`.
  const auto multiply_rows_of = [&](int64_t from_row, int64_t to_row, int vector, auto vectors,
                                    auto max_rows) LSTM_FUSED_INLINE {
    constexpr int V = decltype(vectors)::value, M = decltype(max_rows)::value;
    constexpr int64_t kLines = kStripColumns<T> * sizeof(O) / 64;  // of a strip for each k
    const O* const strip = panel + vector / kTileVectors * strip_size;
    const O* const next_strip = vector + V < kPanelVectors ? strip + strip_size : next_panel;
    const int64_t tiles = ceil_div(to_row - from_row, M);
    const int64_t bytes = tiles > kLines ? ceil_div(64 * kLines, tiles) : 64;
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t begin = from + depth * block / blocks, end = from + depth * (block + 1) / blocks;
      const char* const ahead = reinterpret_cast<const char*>(next_strip + begin * kStripColumns<T>);
      const bool last = block + 1 == blocks;
      for (int64_t tile = 0, first = from_row; tile < tiles; ++tile) {
        const int64_t rows = ceil_div(to_row - first, tiles - tile);
        if (last) before(first, rows, vector, vectors);
        if (queue) queue->prefetch_next();
        // Few rows are bound by the cache, and the hardware prefetcher foresees what comes next.
        const bool prefetches = V == kTileVectors;
        with_rows<M>(rows, [&](auto constant) LSTM_FUSED_INLINE {
          multiply_rows<T, O, decltype(constant)::value, V>(factors, first, begin, end, strip, strip_size, block > 0,
                                                            sums + first * kPanelColumns<T> + vector * kLanes<T>,
                                                            prefetches ? ahead + tile * (end - begin) * bytes : nullptr,
                                                            bytes);
        });
        if (last) after(first, rows, vector, vectors);
        first += rows;
      }
    }
  };
  const int64_t tall = rows_in_strips(count);
  if (tall > 0)
    for (int strip = 0; strip < kStrips; ++strip)
      multiply_rows_of(0, tall, strip * kTileVectors, Constant<kTileVectors>{}, Constant<kTileRows>{});
  if (tall < count) multiply_rows_of(tall, count, 0, Constant<kPanelVectors>{}, Constant<kWideRows>{});
}

// How many tiles multiply_panel makes of one panel.
LSTM_FUSED_FN int64_t tiles_of_panel(int64_t count, int64_t depth) {
  const int64_t tall = rows_in_strips(count);
  return depth_blocks(depth) * (kStrips * ceil_div(tall, kTileRows) + ceil_div(count - tall, kWideRows));
}

// Where vector j of panel p lies in a row, and how many of its lanes are real.
struct PlainColumns {
  int64_t columns;
  template <typename T>
  LSTM_FUSED_INLINE int64_t offset(int64_t p, int j) const {
    return p * kPanelColumns<T> + j * kLanes<T>;
  }
  template <typename T>
  LSTM_FUSED_INLINE int64_t lanes(int64_t p, int j) const {
    return columns - offset<T>(p, j);
  }
  template <typename T>
  LSTM_FUSED_INLINE int64_t panels() const {
    return ceil_div(columns, kPanelColumns<T>);
  }
};

struct GateColumns {
  int64_t hidden_size;
  template <typename T>
  LSTM_FUSED_INLINE int64_t offset(int64_t p, int j) const {
    return j * hidden_size + p * kLanes<T>;
  }
  template <typename T>
  LSTM_FUSED_INLINE int64_t lanes(int64_t p, int) const {
    return hidden_size - p * kLanes<T>;
  }
  template <typename T>
  LSTM_FUSED_INLINE int64_t panels() const {
    return ceil_div(hidden_size, kLanes<T>);
  }
};

// f(member, first, last) for chunks of [0, count), on the threads of the team. f is copied for each: what it captures
// by value stays in registers, while a reference would be read again after every store.
template <class F>
LSTM_FUSED_FN void parallel_for(const Team& team, int64_t count, bool reverse, const F& f) {
  const Team::Body body = [](const void* closure, int64_t member, int64_t first, int64_t last) {
    const F copy = *static_cast<const F*>(closure);
    copy(member, first, last);
  };
  if (team.members == 1 || count == 1)
    body(&f, 0, 0, count);
  else
    team.parallel_for(team.work, count, reverse, body, &f);
}

// f(member, p, next) for all panels; `next` is the distance to the panel that follows. A product with the same panels
// at every step takes them reverse_panels at every other one: it starts with those that the cache still holds.
template <class F>
LSTM_FUSED_FN void for_each_panel(const Team& team, int64_t panels, bool reverse_panels, const F& f) {
  parallel_for(team, panels, reverse_panels, [f, reverse_panels](int64_t member, int64_t first, int64_t last) {
    for (int64_t k = first; k < last; ++k)
      f(member, reverse_panels ? first + last - 1 - k : k, reverse_panels ? -1 : 1);
  });
}

// f(member, r) for rows r < count; `together` of them are done one after the other.
template <class F>
LSTM_FUSED_FN void for_each_row(const Team& team, int64_t count, int64_t together, const F& f) {
  parallel_for(team, ceil_div(count, together), false,
               [f, count, together](int64_t member, int64_t first, int64_t last) {
                 const int64_t end = last * together < count ? last * together : count;
                 for (int64_t r = first * together; r < end; ++r) f(member, r);
               });
}

// out[r] = bias + a[r] * panels for r < count. Panel p starts at packed + p * panel_size, the rows wanted at its row
// `from`; bias: null or a row laid out like an output row; sums: [members][kRowBlock][kPanelColumns].
template <typename T, typename O, class Columns>
LSTM_FUSED_FN void gemm_rows(const Team& team, bool reverse_panels, int64_t count, const O* const* a, int64_t depth,
                             const O* packed, int64_t panel_size, int64_t from, Columns columns, const T* bias,
                             T* const* out, T* all_sums) {
  const auto multiply = [=](int64_t member, int64_t p, int64_t next) LSTM_FUSED_INLINE {
    Vec<T> bias_vectors[kPanelVectors] = {};
    int64_t offsets[kPanelVectors], lanes[kPanelVectors];
    for (int j = 0; j < kPanelVectors; ++j) {
      offsets[j] = columns.template offset<T>(p, j);
      lanes[j] = columns.template lanes<T>(p, j);
      if (bias && lanes[j] > 0) bias_vectors[j] = load(bias + offsets[j], lanes[j]);
    }
    const bool whole = lanes[0] >= kLanes<T> && lanes[kPanelVectors - 1] >= kLanes<T>;
    const O* const panel = packed + p * panel_size;
    T* const sums = all_sums + member * kRowBlock * kPanelColumns<T>;
    for (int64_t block = 0; block < count; block += kRowBlock) {
      T* const* const to = out + block;
      const Factor<O> factors[] = {{a + block, from, from + depth}};
      multiply_panel<T>(
          factors, count - block < kRowBlock ? count - block : kRowBlock, panel, panel + next * panel_size,
          panel_size / kStrips, sums,
          [&](int64_t first, int64_t rows, int vector, auto vectors) LSTM_FUSED_INLINE {
            for (int64_t r = first; r < first + rows; ++r)
#pragma GCC unroll 4
              for (int j = 0; j < vectors.value; ++j) __builtin_prefetch(to[r] + offsets[vector + j], 1);
          },
          [&](int64_t first, int64_t rows, int vector, auto vectors) LSTM_FUSED_INLINE {
            const auto store_rows = [&](auto store_vector) LSTM_FUSED_INLINE {
              for (int64_t r = first; r < first + rows; ++r) {
                const T* const sum = sums + r * kPanelColumns<T> + vector * kLanes<T>;
#pragma GCC unroll 4
                for (int j = 0; j < vectors.value; ++j)
                  store_vector(to[r] + offsets[vector + j], load(sum + j * kLanes<T>) + bias_vectors[vector + j],
                               lanes[vector + j]);
              }
            };
            if (whole)
              store_rows([](T* p, Vec<T> v, int64_t) LSTM_FUSED_INLINE { store(p, v); });
            else
              store_rows([](T* p, Vec<T> v, int64_t n) LSTM_FUSED_INLINE {
                if (n > 0) store(p, v, n);
              });
          });
    }
  };
  for_each_panel(team, columns.template panels<T>(), reverse_panels, multiply);
}

// The sums of the lanes of L vectors, as one vector: lane r is the sum of rows[r].
template <typename T, int Distance = kLanes<T> / 2>
LSTM_FUSED_FN Vec<T> sums_of_lanes(Vec<T> (&rows)[kLanes<T>]) {
#pragma GCC unroll 16
  for (int row = 0; row < Distance; ++row) {
    exchange_lanes<T, Distance>(rows[row], rows[row + Distance]);
    rows[row] += rows[row + Distance];
  }
  if constexpr (Distance > 1)
    return sums_of_lanes<T, Distance / 2>(rows);
  else
    return rows[0];
}

// Size of W in bytes above which it comes from memory: rows side by side use more of its bandwidth. Below it, CPUs with
// few registers read one row after the other, which their hardware prefetches best.
constexpr int64_t kFarWeight = int64_t{4} << 20;

// The sums of the lanes of Rows rows of W times a, with `Chains` chains of sums each: enough in all to keep the
// multipliers busy. If Prefetches, it also prefetches the next Rows rows: the hardware of some CPUs does not follow
// rows side by side across pages.
template <int Rows, int Chains, bool Prefetches, typename T>
LSTM_FUSED_FN void multiply_unpacked(const T* a, const T* const (&row)[Rows], int64_t depth, Vec<T>* sums) {
  constexpr int64_t L = kLanes<T>, kLine = 64 / sizeof(T);
  Vec<T> acc[Rows][Chains] = {};
  int64_t k = 0;
  for (; k + Chains * L <= depth; k += Chains * L) {
    if (Prefetches && k % kLine == 0)
#pragma GCC unroll 8
      for (int i = 0; i < Rows; ++i) __builtin_prefetch(row[i] + Rows * depth + k, 0, 2);
#pragma GCC unroll 4
    for (int chain = 0; chain < Chains; ++chain) {
      const Vec<T> x = load(a + k + chain * L);
#pragma GCC unroll 8
      for (int i = 0; i < Rows; ++i) acc[i][chain] += load(row[i] + k + chain * L) * x;
    }
  }
  for (; k < depth; k += L) {
    const Vec<T> x = load(a + k, depth - k);
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i) acc[i][0] += load(row[i] + k, depth - k) * x;
  }
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 4
    for (int chain = 1; chain < Chains; ++chain) acc[i][0] += acc[i][chain];
    sums[i] = acc[i][0];
  }
}

// out[r] = bias + W a[r] for r < count, W [N, K] unpacked: for products so small that packing W would cost more than
// it saves. The sums of as many rows of W as a vector has lanes make one vector.
template <int Rows, int Chains, bool Prefetches, typename T>
LSTM_FUSED_FN void gemm_unpacked(int64_t count, const T* const* a, int64_t depth, const T* weight, int64_t columns,
                                 const T* bias, T* const* out) {
  constexpr int L = kLanes<T>, R = Rows < L ? Rows : L;
  for (int64_t n = 0; n < columns; n += L) {
    const int64_t width = columns - n < L ? columns - n : L;
    for (int64_t r = 0; r < count; ++r) {
      Vec<T> sums[L];
#pragma GCC unroll 1
      for (int first = 0; first < L; first += R) {
        const T* row[R];
        for (int i = 0; i < R; ++i) row[i] = weight + (n + (first + i < width ? first + i : 0)) * depth;
        multiply_unpacked<R, Chains, Prefetches>(a[r], row, depth, sums + first);
      }
      Vec<T> result = sums_of_lanes<T>(sums);
      if (bias) result += load(bias + n, width);
      store(out[r] + n, result, width);
    }
  }
}

template <typename T>
LSTM_FUSED_FN void gemm_unpacked(int64_t count, const T* const* a, int64_t depth, const T* weight, int64_t columns,
                                 const T* bias, T* const* out) {
  const bool far = columns * depth * static_cast<int64_t>(sizeof(T)) > kFarWeight;
  if (kVectorRegisters >= 32)
    far ? gemm_unpacked<8, 1, true>(count, a, depth, weight, columns, bias, out)
        : gemm_unpacked<8, 1, false>(count, a, depth, weight, columns, bias, out);
  else
    far ? gemm_unpacked<8, 1, false>(count, a, depth, weight, columns, bias, out)
        : gemm_unpacked<1, 4, false>(count, a, depth, weight, columns, bias, out);
}

// Of the rows of gradients that become weight gradients (4H columns: of gates), and of the sums of weight gradients.
template <typename T>
int64_t gradient_stride(int64_t columns) {
  // Whole panels, and one vector more: a stride of a power of two would map all rows to the same cache sets.
  return round_up(columns, kPanelColumns<T>) + kLanes<T>;
}

// Prefetches the square of lanes x lanes values that transpose_square will read, and the one that it will write.
template <typename T, typename O>
LSTM_FUSED_FN void prefetch_squares(const T* from, int64_t from_stride, const O* to, int64_t to_stride) {
#pragma GCC unroll 16
  for (int row = 0; row < kLanes<T>; ++row) {
    __builtin_prefetch(from + row * from_stride, 0, 2);
    __builtin_prefetch(to + row * to_stride, 1, 2);
  }
}

// Panels [first, last) of a [K, N] matrix, which is not transposed.
template <typename T, typename O>
void pack_plain(const T* matrix, int64_t depth, int64_t columns, int64_t first, int64_t last, void* packed) {
  for (int64_t k = 0; k < depth; k += kGroup<O>)
    for (int64_t p = first; p < last; ++p) {
      const int64_t strip_size = operands<O>(depth) * kStripColumns<T>;
      O* const panel = static_cast<O*>(packed) + p * kStrips * strip_size + k / kGroup<O> * kStripColumns<T>;
      for (int j = 0; j < kPanelVectors; ++j) {
        const int64_t column = p * kPanelColumns<T> + j * kLanes<T>, lanes = columns - column;
        O* const to = panel + vector_offset<T>(j, strip_size);
        if (lanes < kLanes<T>) std::memset(to, 0, sizeof(O) * kLanes<T>);
        if (lanes <= 0) continue;
        const T* rows[kGroup<O>];
        for (int64_t row = 0; row < kGroup<O>; ++row)
          rows[row] = k + row < depth ? matrix + (k + row) * columns + column : nullptr;
        store_group(rows, lanes, to);
      }
    }
}

// Panels [first, last) of W^T, W [N, K]; panel p starts at packed + p * panel_size.
template <typename T, typename O, class Columns>
LSTM_FUSED_FN void pack_weight(const T* weight, Columns columns, int64_t depth, int64_t first, int64_t last, O* packed,
                               int64_t panel_size) {
  constexpr int64_t L = kLanes<T>, G = kGroup<O>;
  for (int64_t p = first; p < last; ++p)
    for (int j = 0; j < kPanelVectors; ++j) {
      O* const to = packed + p * panel_size + vector_offset<T>(j, panel_size / kStrips);
      const T* const from = weight + columns.template offset<T>(p, j) * depth;
      const int64_t left = columns.template lanes<T>(p, j), units = left < L ? left : L;
      // The vector after this one; beyond the last the prefetch is useless and harmless.
      const bool ends_panel = j + 1 == kPanelVectors;
      const T* const next_from = weight + columns.template offset<T>(p + ends_panel, ends_panel ? 0 : j + 1) * depth;
      const O* const next_to =
          packed + (p + ends_panel) * panel_size + vector_offset<T>(ends_panel ? 0 : j + 1, panel_size / kStrips);
      int64_t k = 0;  // operands
      if (units == L)
        for (; (k + L) * G <= depth; k += L) {
          prefetch_squares(next_from + k * G, depth, next_to + k * kStripColumns<T>, kStripColumns<T>);
          transpose_operands(from + k * G, depth, to + k * kStripColumns<T>, kStripColumns<T>);
        }
      if constexpr (G == 1)
        for (; k < depth; k += L)
          transpose_part(from + k, depth, units, depth - k, to + k * kStripColumns<T>, kStripColumns<T>, L);
      for (; k < operands<O>(depth); ++k)
        for (int64_t lane = 0; lane < L; ++lane) {
          const int64_t numbers = depth - k * G < G ? depth - k * G : G;
          O buffer{};
          if (lane < units) buffer = *operand_row(from + lane * depth + k * G, numbers, &buffer, 0);
          to[k * kStripColumns<T> + lane] = buffer;
        }
    }
}

// Gate panels of W^T, W [4H, K], from row `row` (operands) of every panel on.
template <typename T, typename O>
void pack_gates(const T* weight, int64_t hidden_size, int64_t depth, int64_t first, int64_t last, void* packed,
                int64_t panel_size, int64_t row) {
  pack_weight(weight, GateColumns{hidden_size}, depth, first, last, static_cast<O*>(packed) + row * kStripColumns<T>,
              panel_size);
}

// Plain panels of W^T, W [N, K].
template <typename T, typename O>
void pack_plain_weight(const T* weight, int64_t columns, int64_t depth, int64_t first, int64_t last, void* packed) {
  pack_weight(weight, PlainColumns{columns}, depth, first, last, static_cast<O*>(packed),
              operands<O>(depth) * kPanelColumns<T>);
}

}  // namespace lstm_fused::cpu::LSTM_FUSED_ISA_NAME
