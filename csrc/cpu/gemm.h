// Matrix products: a register tile of rows x (4 vectors) over packed panels, and the packing.
//
// A panel is K x (4 vectors), contiguous; K counts operands (operand.h). Two kinds:
//   plain  panel p holds columns [4Lp, 4L(p+1)) of a [K, N] matrix                          (L = lanes of a vector)
//   gates  panel p holds hidden units [Lp, L(p+1)) of the four gates side by side, of W^T with W [4H, K]:
//          one register tile then has i, f, g, o of the same units, and the gates need no second pass
// Each element of a product is one chain of multiply-adds over ascending operands, whatever the tile: its bits do not
// depend on how rows are grouped, hence not on the number of threads.
#pragma once

#include "cpu/kernels.h"
#include "cpu/operand.h"

namespace lstm_fused::cpu::LSTM_FUSED_ISA_NAME {

constexpr int kPanelVectors = 4;
// Rows of the register tile: tile rows x 4 accumulators, 4 vectors of the panel and a broadcast fit the registers.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kTileRows = 6;  // 32 registers
#else
constexpr int kTileRows = 3;  // 16 registers
#endif

template <typename T>
constexpr int64_t kPanelColumns = kPanelVectors * kLanes<T>;

// Asks for a share of the panel that follows, one cache line a step over k, so that its first tile does not wait for
// the third-level cache. Beyond the last panel it asks for nothing useful, and harms nothing.
struct Prefetch {
  const char* next;

  template <typename T>
  LSTM_FUSED_INLINE static Prefetch share(const T* next_panel, int64_t depth, int64_t tile) {
    constexpr int64_t kLine = 64, kLines = kPanelVectors * LSTM_FUSED_VECTOR_BYTES / kLine;  // of a panel for each k
    return {reinterpret_cast<const char*>(next_panel) + tile % kLines * depth * kLine};
  }
  LSTM_FUSED_INLINE void operator()(int64_t k) const { __builtin_prefetch(next + k * 64, 0, 2); }
  LSTM_FUSED_INLINE Prefetch after(int64_t k) const { return {next + k * 64}; }
};

// Asks for memory that the next step will touch, a cache line at a time in the course of a product: all at once would
// wait for one another. On a cache line of its own: each member of a team writes to its own at every few k.
struct alignas(64) Stream {
  struct Range {
    const char *begin, *end;
  };
  Range* ranges;
  int64_t count = 0;     // of ranges
  int64_t next = 0;      // range
  int64_t interval = 1;  // a line every so many k, a power of two
  const char* line = nullptr;

  template <typename T>
  LSTM_FUSED_INLINE void add(const T* p, int64_t values) {
    ranges[count++] = {reinterpret_cast<const char*>(p), reinterpret_cast<const char*>(p + values)};
  }
  // From the first range on, spread over `steps` values of k.
  void start(int64_t steps) {
    next = 0;
    line = count > 0 ? ranges[0].begin : nullptr;
    int64_t lines = 1;
    for (int64_t k = 0; k < count; ++k) lines += (ranges[k].end - ranges[k].begin) / 64 + 1;
    for (interval = 1; 2 * interval * lines <= steps; interval *= 2) {
    }
  }
  LSTM_FUSED_INLINE void operator()(int64_t k) {
    if ((k & (interval - 1)) != 0 || next == count) return;
    __builtin_prefetch(line, 0, 2);
    line += 64;
    if (line >= ranges[next].end && ++next < count) line = ranges[next].begin;
  }
};

// Both of them.
struct PrefetchAndStream {
  Prefetch prefetch;
  Stream* stream;
  LSTM_FUSED_INLINE void operator()(int64_t k) const {
    prefetch(k);
    (*stream)(k);
  }
};

// Asks for n values that will be read in a while.
template <typename T>
LSTM_FUSED_FN void prefetch_row(const T* p, int64_t n) {
  for (int64_t k = 0; k < n; k += 64 / sizeof(T)) __builtin_prefetch(p + k, 0, 2);
}

struct NoPrefetch {
  LSTM_FUSED_INLINE void operator()(int64_t) const {}
};

// The accumulators of a register tile. Code that uses one is inlined, or it would live in memory.
template <typename T, int Rows>
struct Tile {
  Vec<T> acc[Rows][kPanelVectors];
};

// f(i, j, tile.acc[i][j]) for every accumulator.
template <typename T, int Rows, class F>
LSTM_FUSED_FN void for_each_vector(Tile<T, Rows>& tile, F f) {
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kPanelVectors; ++j) f(i, j, tile.acc[i][j]);
}

// acc[i][j] += sum_k a(i, k) * b[k * ldb + j * lanes + lane].
template <typename T, typename O, int Rows, class A, class Ahead = NoPrefetch>
LSTM_FUSED_FN void multiply_add(Tile<T, Rows>& tile, A a, int64_t depth, const O* b, int64_t ldb, Ahead ahead = {}) {
  for (int64_t k = 0; k < depth; ++k, b += ldb) {
    decltype(load_operands(b)) panel[kPanelVectors];
    ahead(k);
#pragma GCC unroll 4
    for (int j = 0; j < kPanelVectors; ++j) panel[j] = load_operands(b + j * kLanes<T>);
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i) {
      const auto x = broadcast_operand(a(i, k));
#pragma GCC unroll 4
      for (int j = 0; j < kPanelVectors; ++j) add_product(tile.acc[i][j], x, panel[j]);
    }
  }
}

// acc[i][j] = init(i, j) + sum_k a(i, k) * b[k * ldb + j * lanes + lane]; then done(i, j, acc[i][j]).
template <typename T, int Rows, typename O, class A, class Init, class Done, class Ahead = NoPrefetch>
LSTM_FUSED_FN void gemm_tile(A a, int64_t depth, const O* b, int64_t ldb, Init init, Done done, Ahead ahead = {}) {
  Tile<T, Rows> tile;
  for_each_vector(tile, [&](int i, int j, Vec<T>& v) LSTM_FUSED_INLINE { v = init(i, j); });
  multiply_add(tile, a, depth, b, ldb, ahead);
  for_each_vector(tile, [&](int i, int j, Vec<T>& v) LSTM_FUSED_INLINE { done(i, j, v); });
}

// The left operand as one pointer a row (rows anywhere in memory), or packed as [K][Rows].
template <typename O, int Rows>
struct RowPointers {
  const O* row[Rows];
  LSTM_FUSED_FN RowPointers from(const O* const* rows) {
    RowPointers a;
    for (int i = 0; i < Rows; ++i) a.row[i] = rows[i];
    return a;
  }
  LSTM_FUSED_INLINE O operator()(int i, int64_t k) const { return row[i][k]; }
};

template <typename O, int Rows>
struct PackedRows {
  const O* data;
  LSTM_FUSED_INLINE O operator()(int i, int64_t k) const { return data[k * Rows + i]; }
};

template <int N>
struct Constant {
  static constexpr int value = N;
};

// f(Constant<rows>) for rows in 1..kTileRows.
template <class F, int N = kTileRows>
LSTM_FUSED_FN void with_rows(int64_t rows, F f) {
  if constexpr (N == 1) {
    f(Constant<1>{});
  } else {
    if (rows == N)
      f(Constant<N>{});
    else
      with_rows<F, N - 1>(rows, f);
  }
}

// f(tile, first, Constant<rows>) over tiles of nearly equal height that cover rows 0..count-1.
template <class F>
LSTM_FUSED_FN void for_each_tile(int64_t count, F f) {
  const int64_t tiles = ceil_div(count, kTileRows);
  for (int64_t tile = 0, first = 0; tile < tiles; ++tile) {
    const int64_t rows = ceil_div(count - first, tiles - tile);
    with_rows(rows, [&](auto constant) LSTM_FUSED_INLINE { f(tile, first, constant); });
    first += rows;
  }
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

// f(member, first, last) for pieces of [0, count), on the threads of the team. f is copied for each: what it captures
// by value stays in registers, while a reference would be read again after every store.
template <class F>
LSTM_FUSED_FN void share_out(const Team& team, int64_t count, bool backwards, const F& f) {
  const Team::Piece piece = [](const void* closure, int64_t member, int64_t first, int64_t last) {
    const F copy = *static_cast<const F*>(closure);
    copy(member, first, last);
  };
  if (team.members == 1 || count == 1)
    piece(&f, 0, 0, count);
  else
    team.share(team.work, count, backwards, piece, &f);
}

// f(member, p, next) for all panels; `next` is the distance to the panel that follows. A product with the same panels
// at every step takes them backwards at every other one: it starts with those that the cache still holds.
template <class F>
LSTM_FUSED_FN void for_each_panel(const Team& team, int64_t panels, bool backwards, const F& f) {
  share_out(team, panels, backwards, [f, backwards](int64_t member, int64_t first, int64_t last) {
    for (int64_t k = first; k < last; ++k) f(member, backwards ? first + last - 1 - k : k, backwards ? -1 : 1);
  });
}

// f(member, r) for rows r < count; `together` of them are done one after the other.
template <class F>
LSTM_FUSED_FN void for_each_row(const Team& team, int64_t count, int64_t together, const F& f) {
  share_out(team, ceil_div(count, together), false, [f, count, together](int64_t member, int64_t first, int64_t last) {
    const int64_t end = last * together < count ? last * together : count;
    for (int64_t r = first * together; r < end; ++r) f(member, r);
  });
}

// out[r] = bias + a[r] * panels for r < count. Panel p starts at packed + p * panel_size; bias: null or a row laid out
// like an output row.
template <typename T, typename O, class Columns>
LSTM_FUSED_FN void gemm_rows(const Team& team, bool backwards, int64_t count, const O* const* a, int64_t depth,
                             const O* packed, int64_t panel_size, Columns columns, const T* bias, T* const* out) {
  const auto multiply_panel = [=](int64_t, int64_t p, int64_t next) LSTM_FUSED_INLINE {
    Vec<T> bias_vectors[kPanelVectors] = {};
    int64_t offsets[kPanelVectors], lanes[kPanelVectors];
    for (int j = 0; j < kPanelVectors; ++j) {
      offsets[j] = columns.template offset<T>(p, j);
      lanes[j] = columns.template lanes<T>(p, j);
      if (bias && lanes[j] > 0) bias_vectors[j] = load(bias + offsets[j], lanes[j]);
    }
    const O* const panel = packed + p * panel_size;
    for_each_tile(count, [&](int64_t tile, int64_t first, auto rows) LSTM_FUSED_INLINE {
      constexpr int R = decltype(rows)::value;
      for (int i = 0; i < R; ++i)
        for (int j = 0; j < kPanelVectors; ++j) __builtin_prefetch(out[first + i] + offsets[j], 1);
      gemm_tile<T, R>(
          RowPointers<O, R>::from(a + first), depth, panel, kPanelColumns<T>,
          [&](int, int j) LSTM_FUSED_INLINE { return bias_vectors[j]; },
          [&](int i, int j, Vec<T> v) LSTM_FUSED_INLINE {
            if (lanes[j] > 0) store(out[first + i] + offsets[j], v, lanes[j]);
          },
          Prefetch::share(panel + next * panel_size, depth, tile));
    });
  };
  for_each_panel(team, columns.template panels<T>(), backwards, multiply_panel);
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

// Rows of W that gemm_unpacked multiplies side by side: enough chains of sums to keep the multipliers busy, few enough
// rows to stay in the first-level cache for the next row of a.
template <typename T>
constexpr int kRowsSideBySide = kLanes<T> < 8 ? kLanes<T> : 8;
// Bytes of W from which on it is worth asking for the rows ahead, which the hardware does not foresee across pages;
// what is nearer comes by itself, and asking takes the time of a load.
constexpr int64_t kFarWeight = int64_t{4} << 20;

// out[r] = bias + W a[r] for r < count, W [N, K] as it lies: for products so small that packing W would cost more than
// it saves. The sums of as many rows of W as a vector has lanes make one vector.
template <typename T>
LSTM_FUSED_FN void gemm_unpacked(int64_t count, const T* const* a, int64_t depth, const T* weight, int64_t columns,
                                 const T* bias, T* const* out) {
  constexpr int L = kLanes<T>, R = kRowsSideBySide<T>;
  constexpr int64_t kLine = 64 / sizeof(T);
  const bool far = columns * depth * static_cast<int64_t>(sizeof(T)) > kFarWeight;
  for (int64_t n = 0; n < columns; n += L) {
    const int64_t width = columns - n < L ? columns - n : L;
    for (int64_t r = 0; r < count; ++r) {
      Vec<T> sums[L];
#pragma GCC unroll 1
      for (int first = 0; first < L; first += R) {
        const T* row[R];
        for (int i = 0; i < R; ++i) row[i] = weight + (n + (first + i < width ? first + i : 0)) * depth;
        Vec<T> acc[R] = {};
        for_each_vector_of<T>(depth, [&](int64_t k, int64_t lanes) LSTM_FUSED_INLINE {
          if (far && k % kLine == 0)
#pragma GCC unroll 8
            for (int i = 0; i < R; ++i) __builtin_prefetch(row[i] + R * depth + k, 0, 2);
          const Vec<T> x = load(a[r] + k, lanes);
#pragma GCC unroll 8
          for (int i = 0; i < R; ++i) acc[i] += load(row[i] + k, lanes) * x;
        });
#pragma GCC unroll 8
        for (int i = 0; i < R; ++i) sums[first + i] = acc[i];
      }
      Vec<T> result = sums_of_lanes<T>(sums);
      if (bias) result += load(bias + n, width);
      store(out[r] + n, result, width);
    }
  }
}

// Of the rows of gradients that become weight gradients (4H columns: of gates), and of the sums of weight gradients.
template <typename T>
int64_t gradient_stride(int64_t columns) {
  // Whole panels, and one vector more: a stride of a power of two would map all rows to the same cache sets.
  return round_up(columns, kPanelColumns<T>) + kLanes<T>;
}

// Asks for the square of lanes x lanes values that transpose_square will read, and the one that it will write.
template <typename T, typename O>
LSTM_FUSED_FN void prefetch_squares(const T* from, int64_t from_stride, const O* to, int64_t to_stride) {
#pragma GCC unroll 16
  for (int row = 0; row < kLanes<T>; ++row) {
    __builtin_prefetch(from + row * from_stride, 0, 2);
    __builtin_prefetch(to + row * to_stride, 1, 2);
  }
}

// Panels [first, last) of a [K, N] matrix, which is read as it lies.
template <typename T, typename O>
void pack_plain(const T* matrix, int64_t depth, int64_t columns, int64_t first, int64_t last, void* packed) {
  for (int64_t k = 0; k < depth; k += kGroup<O>)
    for (int64_t p = first; p < last; ++p) {
      const int64_t group = k / kGroup<O>;
      O* const to = static_cast<O*>(packed) + (p * operands<O>(depth) + group) * kPanelColumns<T>;
      for (int j = 0; j < kPanelVectors; ++j) {
        const int64_t column = p * kPanelColumns<T> + j * kLanes<T>, lanes = columns - column;
        if (lanes < kLanes<T>) std::memset(to + j * kLanes<T>, 0, sizeof(O) * kLanes<T>);
        if (lanes <= 0) continue;
        const T* rows[kGroup<O>];
        for (int64_t row = 0; row < kGroup<O>; ++row)
          rows[row] = k + row < depth ? matrix + (k + row) * columns + column : nullptr;
        store_group(rows, lanes, to + j * kLanes<T>);
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
      O* const to = packed + p * panel_size + j * L;
      const T* const from = weight + columns.template offset<T>(p, j) * depth;
      const int64_t left = columns.template lanes<T>(p, j), units = left < L ? left : L;
      // The vector after this one; beyond the last it asks for nothing useful.
      const bool ends_panel = j + 1 == kPanelVectors;
      const T* const next_from = weight + columns.template offset<T>(p + ends_panel, ends_panel ? 0 : j + 1) * depth;
      const O* const next_to = ends_panel ? packed + (p + 1) * panel_size : to + L;
      int64_t k = 0;  // operands
      if (units == L)
        for (; (k + L) * G <= depth; k += L) {
          prefetch_squares(next_from + k * G, depth, next_to + k * kPanelColumns<T>, kPanelColumns<T>);
          transpose_operands(from + k * G, depth, to + k * kPanelColumns<T>, kPanelColumns<T>);
        }
      for (; k < operands<O>(depth); ++k)
        for (int64_t lane = 0; lane < L; ++lane) {
          const int64_t numbers = depth - k * G < G ? depth - k * G : G;
          O buffer{};
          if (lane < units) buffer = *operand_row(from + lane * depth + k * G, numbers, &buffer, 0);
          to[k * kPanelColumns<T> + lane] = buffer;
        }
    }
}

// Gate panels of W^T, W [4H, K], from row `row` (operands) of every panel on.
template <typename T, typename O>
void pack_gates(const T* weight, int64_t hidden_size, int64_t depth, int64_t first, int64_t last, void* packed,
                int64_t panel_size, int64_t row) {
  pack_weight(weight, GateColumns{hidden_size}, depth, first, last, static_cast<O*>(packed) + row * kPanelColumns<T>,
              panel_size);
}

// Plain panels of W^T, W [N, K].
template <typename T, typename O>
void pack_plain_weight(const T* weight, int64_t columns, int64_t depth, int64_t first, int64_t last, void* packed) {
  pack_weight(weight, PlainColumns{columns}, depth, first, last, static_cast<O*>(packed),
              operands<O>(depth) * kPanelColumns<T>);
}

}  // namespace lstm_fused::cpu::LSTM_FUSED_ISA_NAME
