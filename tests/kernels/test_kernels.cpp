// The CPU kernels alone: no torch, no Python, so that they can run under the sanitizers and on an emulated CPU.
//
// Forward against a scalar loop written from the equations; backward against finite differences of the forward pass;
// float against double; one thread against several, bit for bit; activations against long double; Philox against the
// published vectors. Every buffer has exactly the size it needs and starts as NaN, so that the address sanitizer sees a
// step too far and a comparison sees a value that was never written.
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "cases.h"
#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cpu/layer.h"
#include "lstm/dropout.h"

using namespace lstm_fused;

// The linker sends the kernels' allocations here (--wrap): after so many good ones they fail; -1: never.
static int allocations_left = -1;
extern "C" int __real_posix_memalign(void** p, size_t alignment, size_t size);
extern "C" int __wrap_posix_memalign(void** p, size_t alignment, size_t size) {
  if (allocations_left == 0) return ENOMEM;
  if (allocations_left > 0) --allocations_left;
  return __real_posix_memalign(p, alignment, size);
}

namespace {

std::mt19937_64 generator;  // each case starts it anew, and so can be run alone

template <typename T>
using Values = std::vector<T>;

template <typename T>
Values<T> empty(int64_t count) {
  return Values<T>(count, std::numeric_limits<T>::quiet_NaN());
}

Values<double> normal(int64_t count, double scale = 1, double mean = 0) {
  std::normal_distribution<double> distribution(mean, scale);
  Values<double> values(count);
  // Rounded to float, so that both precisions see the same numbers.
  for (double& v : values) v = static_cast<float>(distribution(generator));
  return values;
}

template <typename T>
Values<T> cast(const Values<double>& from) {
  return Values<T>(from.begin(), from.end());
}

// As if there were many threads, but one does all the tasks, the last one first.
cpu::Executor last_task_first(int64_t threads) {
  cpu::Executor e;
  e.threads = threads;
  e.run = [](int64_t tasks, const std::function<void(int64_t)>& f) {
    for (int64_t task = tasks - 1; task >= 0; --task) f(task);
  };
  return e;
}

// The parameters and inputs of a layer, in the order of LayerInputs.
constexpr int kInputs = 15;
struct Problem {
  LayerSizes sizes;
  LayerOptions options;
  std::vector<int64_t> lengths;
  std::vector<uint8_t> reset;  // of 0 and 1: read as bool
  std::string name;
  Values<double> in[kInputs];
};

int64_t input_size_of(const Problem& p, int k) {
  const auto [T, B, I, H, P] = p.sizes;
  const int64_t norm = has_layer_norm(p.options);
  const int64_t projection = p.options.projection, peephole = p.options.peephole;
  const int64_t counts[kInputs] = {T * B * I,    B * P,        B * H,        4 * H * I, 4 * H * P, 4 * H,
                                   4 * H,        norm * 4 * H, norm * 4 * H, norm * H,  norm * H,  projection * P * H,
                                   peephole * H, peephole * H, peephole * H};
  return counts[k];
}

template <typename T>
LayerInputs<T> pointers(const Problem& p, const Values<T> (&in)[kInputs]) {
  const auto at = [&](int k) { return in[k].empty() ? nullptr : in[k].data(); };
  return {at(0),
          at(1),
          at(2),
          at(3),
          at(4),
          at(5),
          at(6),
          at(7),
          at(8),
          at(9),
          at(10),
          at(11),
          at(12),
          at(13),
          at(14),
          p.lengths.empty() ? nullptr : p.lengths.data(),
          p.reset.empty() ? nullptr : reinterpret_cast<const bool*>(p.reset.data())};
}

template <typename T>
struct Result {
  Values<T> output, h_n, c_n, hidden, cells, gates, recurrent, stats;
  Values<T> gradients[kInputs];
};

template <typename T>
Result<T> run(const Problem& p, bool saves, const cpu::Executor& executor, const Values<double>* d_outputs = nullptr) {
  const auto [T_, B, I, H, P] = p.sizes;
  Values<T> in[kInputs];
  for (int k = 0; k < kInputs; ++k) in[k] = cast<T>(p.in[k]);
  const bool norm = has_layer_norm(p.options), keeps_hidden = p.options.training && p.options.dropout > 0;
  const bool all = p.options.recompute == 0;
  const int64_t states = saves && !all ? segments(p.sizes, p.options) + 1 : 0, steps = saves && all ? T_ : 0;
  Result<T> r{empty<T>(T_ * B * P),
              empty<T>(B * P),
              empty<T>(B * H),
              empty<T>((states + (keeps_hidden ? steps : 0)) * B * P),
              empty<T>((states + steps) * B * H),
              empty<T>(steps * B * 4 * H),
              empty<T>(norm ? steps * B * 4 * H : 0),
              empty<T>(norm ? steps * B * 6 : 0),
              {}};
  const auto at = [](Values<T>& v) { return v.empty() ? nullptr : v.data(); };
  const LayerOutputs<T> out = {
      at(r.output), at(r.h_n), at(r.c_n), {at(r.hidden), at(r.cells), at(r.gates), at(r.recurrent), at(r.stats)}};
  cpu::layer_forward<T>(p.sizes, p.options, pointers(p, in), out, executor);
  if (!d_outputs) return r;

  const Values<T> d_output = cast<T>(d_outputs[0]), d_h_n = cast<T>(d_outputs[1]), d_c_n = cast<T>(d_outputs[2]);
  for (int k = 0; k < kInputs; ++k) r.gradients[k] = empty<T>(input_size_of(p, k));
  Values<T>* const g = r.gradients;
  const LayerGradients<T> gradients = {d_output.data(), d_h_n.data(), d_c_n.data(), at(g[0]),  at(g[1]), at(g[2]),
                                       at(g[3]),        at(g[4]),     at(g[5]),     at(g[7]),  at(g[8]), at(g[9]),
                                       at(g[10]),       at(g[11]),    at(g[12]),    at(g[13]), at(g[14])};
  cpu::layer_backward<T>(p.sizes, p.options, pointers(p, in), out, gradients, executor);
  g[6] = g[5];  // both biases have the same gradient
  return r;
}

template <typename T>
Result<T> run(const Problem& p, bool saves, int64_t threads, const Values<double>* d_outputs = nullptr) {
  return run<T>(p, saves, executor(threads), d_outputs);
}

// The equations, one number at a time.
uint32_t random_bits(const LayerOptions& o, MaskUse use, int64_t t, int64_t b, int64_t h) {
  uint32_t c[4] = {static_cast<uint32_t>(h / 4), static_cast<uint32_t>(b), static_cast<uint32_t>(t),
                   stream_number(o.stream, use)};
  uint32_t key0 = static_cast<uint32_t>(o.seed), key1 = static_cast<uint32_t>(o.seed >> 32);
  for (int round = 0; round < kPhiloxRounds; ++round, key0 += kPhiloxWeyl0, key1 += kPhiloxWeyl1)
    philox_round(c[0], c[1], c[2], c[3], key0, key1);
  return c[h % 4];
}

bool hit(const LayerOptions& o, MaskUse use, double rate, int64_t t, int64_t b, int64_t h) {
  return random_bits(o, use, t, b, h) < drop_threshold(rate);
}

double activation(const LayerOptions& o, double x) { return o.activation == 1 ? std::max(x, 0.0) : std::tanh(x); }
double gate_activation(const LayerOptions& o, double x) {
  return o.recurrent_activation == 1 ? std::min(std::max(0.2 * x + 0.5, 0.0), 1.0) : 1 / (1 + std::exp(-x));
}

Values<double> normalized(Values<double> x, const double* gain, const double* bias, double eps) {
  double mean = 0, variance = 0;
  for (double v : x) mean += v / x.size();
  for (double v : x) variance += (v - mean) * (v - mean) / x.size();
  for (size_t k = 0; k < x.size(); ++k)
    x[k] = (x[k] - mean) / std::sqrt(variance + eps) * gain[k] + (bias ? bias[k] : 0);
  return x;
}

struct Plain {
  Values<double> output, h_n, c_n;
};

Plain equations(const Problem& p) {
  const auto [T, B, I, H, P] = p.sizes;
  const LayerOptions& o = p.options;
  const auto dropped = [&](MaskUse use, double rate, int64_t t, int64_t row, int64_t unit) {
    if (!o.training || rate == 0) return 1.0;
    return hit(o, use, rate, t, row, unit) ? 0 : 1 / (1 - rate);
  };
  Values<double> weight_hh = p.in[4];
  for (int64_t k = 0; k < 4 * H; ++k)
    for (int64_t j = 0; j < P; ++j) weight_hh[k * P + j] *= dropped(MaskUse::weight, o.weight_dropout, 0, k, j);
  Plain out{Values<double>(T * B * P, 0), p.in[1], p.in[2]};
  for (int64_t b = 0; b < B; ++b) {
    const int64_t steps = p.lengths.empty() ? T : p.lengths[b];
    double* const h = &out.h_n[b * P];
    double* const c = &out.c_n[b * H];
    for (int64_t s = 0; s < steps; ++s) {
      const int64_t t = o.reverse ? steps - 1 - s : s;
      if (!p.reset.empty() && p.reset[t * B + b]) {
        std::fill(h, h + P, 0);
        std::fill(c, c + H, 0);
      }
      Values<double> x(4 * H, 0), r(4 * H, 0), masked(h, h + P);
      for (int64_t j = 0; j < P; ++j) masked[j] *= dropped(MaskUse::hidden, o.recurrent_dropout, 0, b, j);
      for (int64_t k = 0; k < 4 * H; ++k) {
        for (int64_t i = 0; i < I; ++i) x[k] += p.in[3][k * I + i] * p.in[0][(t * B + b) * I + i];
        for (int64_t j = 0; j < P; ++j) r[k] += weight_hh[k * P + j] * masked[j];
      }
      if (has_layer_norm(o)) {
        x = normalized(x, p.in[7].data(), nullptr, o.eps);
        r = normalized(r, p.in[8].data(), nullptr, o.eps);
      }
      // The bit of a gate in open_gates is also the place of its peephole: 1, 2, 4 -> 12, 13, 14.
      const auto gate = [&](int64_t number, int64_t bit, int64_t j, double cell) {
        const int64_t k = number * H + j;
        const double peephole = o.peephole ? p.in[bit == 4 ? 14 : 11 + bit][j] * cell : 0;
        return o.open_gates & bit ? 1.0 : gate_activation(o, x[k] + r[k] + p.in[5][k] + p.in[6][k] + peephole);
      };
      Values<double> cell(H), hidden(H);
      for (int64_t j = 0; j < H; ++j) {
        const int64_t k = 2 * H + j;
        const double g = activation(o, x[k] + r[k] + p.in[5][k] + p.in[6][k]);
        cell[j] = gate(1, 2, j, c[j]) * c[j] +
                  gate(0, 1, j, c[j]) * g * dropped(MaskUse::candidate, o.candidate_dropout, t, b, j);
      }
      const Values<double> n = has_layer_norm(o) ? normalized(cell, p.in[9].data(), p.in[10].data(), o.eps) : cell;
      const auto zoneout = [&](double value, double previous, MaskUse use, double rate, int64_t j) {
        if (!o.training) return rate * previous + (1 - rate) * value;
        return rate > 0 && hit(o, use, rate, t, b, j) ? previous : value;
      };
      for (int64_t j = 0; j < H; ++j) {
        hidden[j] = gate(3, 4, j, cell[j]) * activation(o, n[j]);
        c[j] = zoneout(o.layer_norm == LayerNorm::carry ? n[j] : cell[j], c[j], MaskUse::zoneout_c, o.zoneout_c, j);
      }
      for (int64_t q = 0; q < P; ++q) {
        if (o.projection) {
          h[q] = 0;
          for (int64_t j = 0; j < H; ++j) h[q] += p.in[11][q * H + j] * hidden[j];
        } else {
          h[q] = zoneout(hidden[q], h[q], MaskUse::zoneout_h, o.zoneout_h, q);
        }
        out.output[(t * B + b) * P + q] = h[q] * dropped(MaskUse::output, o.dropout, o.variational ? 0 : t, b, q);
      }
    }
  }
  return out;
}

// The largest difference relative to the largest value (or to `floor`); infinite where a value is not finite.
template <typename A, typename B>
double difference(const Values<A>& a, const Values<B>& b, double floor = 1e-30) {
  double worst = 0, scale = floor;
  for (size_t k = 0; k < b.size(); ++k) {
    if (!std::isfinite(static_cast<double>(a[k]))) return INFINITY;
    worst = std::max(worst, std::abs(static_cast<double>(a[k]) - static_cast<double>(b[k])));
    scale = std::max(scale, std::abs(static_cast<double>(b[k])));
  }
  return worst / scale;
}

template <typename T>
bool same_bits(const Values<T>& a, const Values<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

template <typename T>
bool same_bits(const Result<T>& a, const Result<T>& b) {
  bool same = same_bits(a.output, b.output) && same_bits(a.h_n, b.h_n) && same_bits(a.c_n, b.c_n);
  for (int k = 0; k < kInputs; ++k) same = same && same_bits(a.gradients[k], b.gradients[k]);
  return same;
}

template <typename T>
void check_threads(const Problem& p, const Values<double>* d_outputs, const Result<T>& one) {
  for (int64_t threads : {2, 3, 16}) {
    const Result<T> many = run<T>(p, true, threads, d_outputs);
    check(same_bits(one, many), p.name + ": the same bits with " + std::to_string(threads) + " threads");
  }
  const Result<T> late = run<T>(p, true, last_task_first(4), d_outputs);
  check(same_bits(one, late), p.name + ": the same bits where three of four threads come too late");
}

template <typename T>
void check_recompute(Problem p, const Values<double>* d_outputs, const Result<T>& all_saved) {
  for (int64_t threads : {1, 3}) {
    p.options.recompute = 1 + p.sizes.steps / 2 * (threads > 1);
    const Result<T> replayed = run<T>(p, true, threads, d_outputs);
    check(same_bits(all_saved, replayed),
          p.name + ": the same bits with segments of " + std::to_string(p.options.recompute) + " steps");
  }
}

double to_bfloat16(double x) {
  const float single = static_cast<float>(x);
  uint32_t bits;
  std::memcpy(&bits, &single, sizeof bits);
  bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000;
  float rounded;
  std::memcpy(&rounded, &bits, sizeof bits);
  return rounded;
}

// The root of the mean squared difference.
template <typename A, typename B>
double mean_difference(const Values<A>& a, const Values<B>& b) {
  double sum = 0;
  for (size_t k = 0; k < b.size(); ++k)
    sum += std::pow(static_cast<double>(a[k]) - static_cast<double>(b[k]), 2) / b.size();
  return std::sqrt(sum);
}

// Products of bfloat16 against float64, of numbers that bfloat16 holds: no further off than a change of the last place
// of what is multiplied makes a result, a few times.
void check_bfloat16(Problem p, const Values<double>* d_outputs) {
  constexpr double kLastPlace = 1.0 / 256, kTimes = 6;
  p.name += ", bfloat16";
  for (Values<double>& values : p.in)
    for (double& v : values) v = to_bfloat16(v);
  const Result<double> exact = run<double>(p, true, 1, d_outputs);
  Problem moved = p;
  std::uniform_real_distribution<double> change(-kLastPlace, kLastPlace);
  for (int k : {0, 1, 3, 4, 11})
    for (double& v : moved.in[k]) v *= 1 + change(generator);
  const Result<double> sensitive = run<double>(moved, true, 1, d_outputs);
  const auto close = [&](const Values<float>& got, const Values<double>& want, const Values<double>& other) {
    return mean_difference(got, want) <= kTimes * mean_difference(other, want) + kLastPlace;
  };

  p.options.bfloat16 = true;
  const Result<float> rounded = run<float>(p, true, 1, d_outputs), inference = run<float>(p, false, 1);
  check(same_bits(rounded.output, inference.output), p.name + ": inference gives what training gives");
  check(close(rounded.output, exact.output, sensitive.output), p.name + ": output");
  for (int k = 0; k < kInputs; ++k)
    check(close(rounded.gradients[k], exact.gradients[k], sensitive.gradients[k]),
          p.name + ": gradient " + std::to_string(k));
  check_threads<float>(p, d_outputs, rounded);
  check_recompute<float>(p, d_outputs, rounded);
  // The first step multiplies nothing that has to be rounded, but for what masks and a projection make of it.
  const LayerOptions& o = p.options;
  const bool exact_products = !o.projection && o.recurrent_dropout == 0 && o.weight_dropout == 0;
  if (p.sizes.steps == 1 && exact_products)
    check(difference(rounded.output, exact.output) < 2e-5, p.name + ": the output of a single step");
}

void check_problem(Problem p) {
  const auto [T, B, I, H, P] = p.sizes;
  const bool norm = has_layer_norm(p.options);
  for (int k = 0; k < kInputs; ++k) {
    const bool gain = k >= 7 && k <= 9;
    const double scale = k == 3 ? 1 / std::sqrt(I) : k == 4 || k == 11 ? 1 / std::sqrt(H) : gain ? 0.3 : 1;
    p.in[k] = normal(input_size_of(p, k), scale, gain);
  }
  const Values<double> d_outputs[3] = {normal(T * B * P), normal(B * P), normal(B * H)};

  const Plain expected = equations(p);
  const Result<double> result = run<double>(p, true, 1, d_outputs), inference = run<double>(p, false, 1);
  check(difference(result.output, expected.output) < 1e-12, p.name + ": output");
  check(difference(result.h_n, expected.h_n) < 1e-12, p.name + ": h_n");
  check(difference(result.c_n, expected.c_n) < 1e-12, p.name + ": c_n");
  check(same_bits(result.output, inference.output) && same_bits(result.c_n, inference.c_n),
        p.name + ": inference gives what training gives");

  // Along a random direction of every input: the change of the loss is the gradient times the direction.
  for (int k = 0; k < kInputs; ++k) {
    if (p.in[k].empty()) continue;
    const double step = 2e-7, rounding = 1e-15 / step;
    const Values<double> direction = normal(p.in[k].size());
    double slope = 0, gradient = 0, scale = 1e-3, tolerance = 0;
    for (int sign : {1, -1}) {
      Problem moved = p;
      for (size_t e = 0; e < direction.size(); ++e) moved.in[k][e] += sign * step * direction[e];
      const Plain out = equations(moved);
      const Values<double>* const values[3] = {&out.output, &out.h_n, &out.c_n};
      for (int v = 0; v < 3; ++v)
        for (size_t e = 0; e < values[v]->size(); ++e) {
          const double term = d_outputs[v][e] * (*values[v])[e];
          slope += sign * term / (2 * step);
          tolerance += rounding * std::abs(term);
        }
    }
    for (size_t e = 0; e < direction.size(); ++e) {
      gradient += result.gradients[k][e] * direction[e];
      scale += std::abs(result.gradients[k][e] * direction[e]);
    }
    check(std::abs(slope - gradient) < tolerance + 1e-5 * scale, p.name + ": gradient of input " + std::to_string(k));
  }

  const Result<float> single = run<float>(p, true, 1, d_outputs);
  // A norm of few gates makes rounding errors larger at every step.
  const double tolerated = norm && H <= 3 ? 2e-4 : 2e-5;
  check(difference(single.output, result.output) < tolerated, p.name + ": float32 output");
  // A norm of one unit's gates has gradients near zero: what cancels is of order one.
  for (int k = 0; k < kInputs; ++k)
    check(difference(single.gradients[k], result.gradients[k], 0.1) < 2e-4,
          p.name + ": float32 gradient " + std::to_string(k));
  check_threads<double>(p, d_outputs, result);
  check_threads<float>(p, d_outputs, single);
  check_recompute<double>(p, d_outputs, result);
  check_recompute<float>(p, d_outputs, single);
  // A norm of few gates makes whatever is rounded as large as it likes.
  if (cpu::bfloat16_kernels(isa_in_use()) && (H > 3 || !norm)) check_bfloat16(p, d_outputs);
}

std::string layer_name(const LayerSizes& sizes, int variant) {
  const auto [T, B, I, H, P] = sizes;
  std::string name = "layer";
  for (const int64_t size : {T, B, I, H}) name += (name == "layer" ? " " : "x") + std::to_string(size);
  return name + " variant " + std::to_string(variant);
}

// One of 24 sets of options.
Problem layer_problem(const LayerSizes& sizes, int variant, int number) {
  Problem p{sizes, {}, {}, {}, "", {}};
  LayerOptions& o = p.options;
  o.seed = 0x9876543210abcdefull + number;
  o.stream = number % 5;
  o.layer_norm = variant % 2 ? LayerNorm::ba2016 : LayerNorm::none;
  o.reverse = variant % 3 == 1;
  o.training = variant != 10;
  if (variant >= 2) o.recurrent_dropout = variant % 5 ? 0.3 : 0;
  if (variant >= 4) o.dropout = 0.4, o.variational = variant % 4 < 2;
  if (variant >= 6) o.zoneout_h = variant % 4 ? 0.2 : 0;
  if (variant >= 6) o.zoneout_c = variant % 3 ? 0.3 : 0;
  if (variant % 4 >= 2) {
    std::uniform_int_distribution<int64_t> length(0, sizes.steps);
    for (int64_t b = 0; b < sizes.batch; ++b) p.lengths.push_back(length(generator));
  }
  if (variant >= 12) {
    const LayerNorm kinds[] = {LayerNorm::none, LayerNorm::ba2016, LayerNorm::carry};
    o.layer_norm = kinds[variant % 3];
    o.peephole = variant % 2;
    o.candidate_dropout = variant % 5 ? 0.3 : 0;
    o.weight_dropout = variant % 4 ? 0.25 : 0;
    o.open_gates = variant % 5 == 2 ? variant % 8 : 0;
    o.activation = variant % 5 == 3;
    o.recurrent_activation = variant % 4 == 1;
    o.projection = variant % 4 >= 2;
    if (o.projection) p.sizes.projection_size = (sizes.hidden_size + 1) / 2, o.zoneout_h = 0;
    if (variant % 5 < 3)
      for (int64_t k = 0; k < sizes.steps * sizes.batch; ++k) p.reset.push_back(generator() % 4 == 0);
  }
  p.name = layer_name(sizes, variant);
  return p;
}

std::vector<Case> layer_cases() {
  std::vector<Case> cases;
  const auto add = [&](const Problem& p) { cases.push_back({p.name, [p] { check_problem(p); }}); };
  // The lengths and resets of a problem are drawn when it runs.
  int number = 0;
  const auto add_variant = [&](const LayerSizes& sizes, int variant) {
    cases.push_back({layer_name(sizes, variant),
                     [sizes, variant, n = number] { check_problem(layer_problem(sizes, variant, n)); }});
    ++number;
  };
  const LayerSizes shapes[] = {{1, 1, 1, 1, 1},    {4, 3, 5, 7, 7},     {3, 20, 2, 17, 17},
                               {6, 2, 70, 33, 33}, {5, 18, 16, 65, 65}, {1, 18, 19, 35, 35}};
  for (const LayerSizes& sizes : shapes)
    for (int variant = 0; variant < 24; ++variant) add_variant(sizes, variant);
  // More rows than a chunk of the backward pass and than an input projection hold.
  Problem p{{200, 3, 2, 3, 3}, {}, {}, {}, "many chunks", {}};
  p.options.layer_norm = LayerNorm::ba2016;
  p.options.recurrent_dropout = 0.2;
  add(p);
  p.name = "many chunks with a projection";
  p.sizes.projection_size = 2;
  p.options.projection = true;
  add(p);
  Problem odd{{401, 3, 2, 5, 5}, {}, {}, {}, "many chunks, the last of odd length", {}};
  odd.options.dropout = 0.2;
  add(odd);
  odd.name += ", with a projection";
  odd.sizes.projection_size = 3;
  odd.options.projection = true;
  add(odd);
  // So large that threads share the panels and rows of a task; the last with two rows in a reduction block.
  const LayerSizes large[] = {{12, 1, 20, 140, 140}, {4, 3, 35, 140, 140}, {2, 20, 10, 140, 140}};
  for (const LayerSizes& sizes : large)
    for (int variant : {0, 5, 9, 13, 18, 23}) add_variant(sizes, variant);
  return cases;
}

// Scratch memory that cannot be had is an exception, and the next call is as if nothing had happened.
void check_failed_allocations() {
  Problem p{{12, 3, 40, 90, 90}, {}, {}, {}, "after a failed allocation", {}};
  p.options.layer_norm = LayerNorm::ba2016;
  p.options.recompute = 5;
  for (int k = 0; k < kInputs; ++k) p.in[k] = normal(input_size_of(p, k));
  const Values<double> d_outputs[3] = {normal(12 * 3 * 90), normal(3 * 90), normal(3 * 90)};
  const Result<float> expected = run<float>(p, true, 1, d_outputs);
  int refused = 0;
  for (int good = 0; good < 8; ++good) {
    // A new thread has no scratch memory yet: its first call asks for several blocks.
    std::thread([&] {
      allocations_left = good;
      try {
        run<float>(p, true, 1, d_outputs);
      } catch (const std::bad_alloc&) {
        ++refused;
      }
      allocations_left = -1;
      const Result<float> result = run<float>(p, true, 1, d_outputs);
      check(same_bits(result.output, expected.output) && same_bits(result.gradients[4], expected.gradients[4]), p.name);
    }).join();
  }
  check(refused >= 4, "memory that cannot be had is an exception");
}

// The distance from the correctly rounded value, in its units of the last place.
template <typename T>
double ulps(T got, long double want) {
  const T rounded = static_cast<T>(want);
  const T gap = std::max(std::nextafter(std::abs(rounded), std::numeric_limits<T>::infinity()) - std::abs(rounded),
                         std::numeric_limits<T>::min());
  return static_cast<double>(std::abs(got - rounded) / gap);
}

template <typename T>
void check_activations(double range, const char* type) {
  const cpu::Kernels<T>& k = cpu::kernels<T>(isa_in_use());
  std::uniform_real_distribution<double> exponent(-30, std::log2(range));
  double worst_sigmoid = 0, worst_tanh = 0;
  const int64_t count = 200003;
  Values<T> x(count), y = empty<T>(count), z = empty<T>(count);
  for (T& v : x) v = static_cast<T>(std::exp2(exponent(generator)) * (generator() % 2 ? 1 : -1));
  k.sigmoid(x.data(), y.data(), count);
  k.tanh(x.data(), z.data(), count);
  for (int64_t e = 0; e < count; ++e) {
    worst_sigmoid = std::max(worst_sigmoid, ulps<T>(y[e], 1 / (1 + std::exp(-static_cast<long double>(x[e])))));
    worst_tanh = std::max(worst_tanh, ulps<T>(z[e], std::tanh(static_cast<long double>(x[e]))));
  }
  std::printf("%s: sigmoid within %.0f, tanh within %.0f units of the last place\n", type, worst_sigmoid, worst_tanh);
  check(worst_sigmoid <= 2, std::string(type) + ": sigmoid");
  check(worst_tanh <= 2, std::string(type) + ": tanh");

  const T infinity = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
  const Values<T> special = {infinity, -infinity, nan, T(0), -T(0), T(1e30), T(-1e30)};
  Values<T> s = empty<T>(special.size()), t = empty<T>(special.size());
  k.sigmoid(special.data(), s.data(), special.size());
  k.tanh(special.data(), t.data(), special.size());
  check(s[0] == 1 && s[1] == 0 && std::isnan(s[2]) && s[3] == T(0.5) && s[4] == T(0.5) && s[5] == 1 && s[6] == 0,
        std::string(type) + ": sigmoid of special values");
  check(t[0] == 1 && t[1] == -1 && std::isnan(t[2]) && t[3] == 0 && std::signbit(t[4]) && t[5] == 1 && t[6] == -1,
        std::string(type) + ": tanh of special values");
}

void check_philox() {
  // Known answers of Random123 (Salmon et al. 2011).
  const uint32_t cases[][10] = {{0, 0, 0, 0, 0, 0, 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8},
                                {~0u, ~0u, ~0u, ~0u, ~0u, ~0u, 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd},
                                {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xa4093822, 0x299f31d0, 0xd16cfe09,
                                 0x94fdcceb, 0x5001e420, 0x24126ea1}};
  for (const auto& v : cases) {
    uint32_t c[4] = {v[0], v[1], v[2], v[3]}, key0 = v[4], key1 = v[5];
    for (int round = 0; round < kPhiloxRounds; ++round, key0 += kPhiloxWeyl0, key1 += kPhiloxWeyl1)
      philox_round(c[0], c[1], c[2], c[3], key0, key1);
    check(std::memcmp(c, v + 6, sizeof c) == 0, "Philox4x32-10 known answer");
  }
}

int passed = 0, failed = 0;

}  // namespace

void check(bool ok, const std::string& what) {
  ok ? ++passed : ++failed;
  if (!ok) std::printf("FAILED: %s\n", what.c_str());
}

cpu::Executor executor(int64_t threads) {
  cpu::Executor e;
  e.threads = threads;
  e.run = [](int64_t tasks, const std::function<void(int64_t)>& f) {
    std::vector<std::thread> running;
    for (int64_t task = 1; task < tasks; ++task) running.emplace_back(f, task);
    if (tasks > 0) f(0);
    for (std::thread& thread : running) thread.join();
  };
  return e;
}

// test_kernels [--list | --case NAME]: all cases, or those whose names begin with NAME.
int main(int count, char** arguments) {
  const std::string option = count > 1 ? arguments[1] : "", wanted = count > 2 ? arguments[2] : "";
  if (!option.empty() && option != "--list" && (option != "--case" || wanted.empty())) {
    std::fprintf(stderr, "usage: %s [--list | --case NAME]\n", arguments[0]);
    return 2;
  }
  std::vector<Case> cases = {{"philox", check_philox},
                             {"activations float32", [] { check_activations<float>(100, "float32"); }},
                             {"activations float64", [] { check_activations<double>(800, "float64"); }},
                             {"failed allocations", check_failed_allocations}};
  for (const auto& more : {team_cases(), layer_cases()}) cases.insert(cases.end(), more.begin(), more.end());
  std::printf("instruction set: %s\n", isa_name(isa_in_use()));
  int ran = 0;
  for (const Case& each : cases) {
    if (option == "--list") std::printf("%s\n", each.name.c_str());
    if (option == "--list" || each.name.compare(0, wanted.size(), wanted) != 0) continue;
    std::seed_seq seed(each.name.begin(), each.name.end());
    generator.seed(seed);
    each.run();
    ++ran;
  }
  if (option == "--case" && ran == 0)
    std::fprintf(stderr, "no case begins with '%s'; --list shows all\n", wanted.c_str());
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed != 0 || (option == "--case" && ran == 0);
}
