// The forward steps of a layer: of a call, and of the segments that a backward pass computes again.
#pragma once

#include "cuda/call.h"

namespace lstm_fused::cuda {

// Runs of forward steps, each from the state that the one before has left in h [B, P] and cell [B, H].
template <typename T>
class ForwardSteps {
  using A = Accumulator<T>;

 public:
  ForwardSteps(const Call<T>& call, const LayerOptions& options, const Tensor& h, const Tensor& cell, bool saves,
               cudaStream_t stream)
      : call_(call),
        stream_(stream),
        h_(h),
        cell_(cell),
        operand_(has_own_operand(call) ? call.arguments.empty({call.sizes.batch, call.sizes.projection_size}) : h),
        weight_ih_t_(transposed(*call.arguments.weight_ih, 4 * call.sizes.hidden_size, call.sizes.input_size)),
        weight_hh_t_(transposed(call.weight_hh, 4 * call.sizes.hidden_size, call.sizes.projection_size)) {
    const int64_t B = call.sizes.batch, H = call.sizes.hidden_size, P = call.sizes.projection_size;
    if (!saves || !call.norm) recurrent_ = call.arguments.empty({B, 4 * H});
    if (options.projection) {
      unprojected_ = call.arguments.empty({B, H});
      projected_ = call.arguments.empty({B, P});
      weight_hr_t_ = transposed(*call.arguments.weight_hr, P, H);
    }
    step_.sizes = call.sizes;
    step_.options = StepOptions<A>(options);
    step_.sequence = call.sequence;
    step_.seed = call.seed;
    step_.in = call.in;
    step_.saves = saves;
    step_.h = pointer<T>(h_);
    step_.operand = has_own_operand(call) ? pointer<T>(operand_) : nullptr;
    step_.cell = pointer<A>(cell_);
    step_.unprojected = pointer<T>(unprojected_);
    step_.projected = pointer<T>(projected_);
  }

  // The state before step `begin`; steps are counted in the order in which they run. The cell is c_0's, in its type.
  void start(const T* h_0, const T* c_0, int64_t begin) {
    check(cuda::start<T>({step_.sizes, step_.options, step_.sequence, call_.time_of(begin), step_.seed, h_0, c_0,
                          step_.h, step_.operand, step_.cell},
                         stream_));
  }

  // Steps [begin, end). The tensors of `out` begin with step t = `first`.
  void run(int64_t begin, int64_t end, const Forward& out, int64_t first) {
    const int64_t B = call_.sizes.batch, I = call_.sizes.input_size, H = call_.sizes.hidden_size,
                  P = call_.sizes.projection_size;
    if (begin == end) return;
    const bool saves = step_.saves;
    const int64_t chunk_steps = saves ? end - begin : std::clamp<int64_t>(chunk_values / (4 * B * H), 1, end - begin);
    const Tensor gates = saves ? *out.gates : call_.arguments.empty({chunk_steps, B, 4 * H});
    const Tensor& recurrent = recurrent_ ? *recurrent_ : *out.recurrent;
    step_.width = std::min(call_.inputs_width,
                           width_of<T>(call_.sizes, {step_.h, step_.operand, step_.cell, pointer<T>(out.output)}));
    step_.spill = call_.spill(register_units<T>(step_.width), kForwardSlots, spill_);
    for (int64_t chunk = begin; chunk < end; chunk += chunk_steps) {
      const int64_t count = std::min(chunk_steps, end - chunk), chunk_first = call_.first_time(chunk, chunk + count);
      multiply(rows_of(gates, 0, count * B, 4 * H), rows_of(*call_.arguments.input, chunk_first * B, count * B, I),
               weight_ih_t_);
      for (int64_t s = chunk; s < chunk + count; ++s) {
        const int64_t t = call_.time_of(s), row = (t - first) * B, recurrent_row = recurrent_ ? 0 : row;
        multiply(rows_of(recurrent, recurrent_row, B, 4 * H), operand_, weight_hh_t_);
        step_.t = t;
        step_.gates = pointer<T>(gates) + (t - chunk_first) * B * 4 * H;
        step_.recurrent = pointer<T>(recurrent) + recurrent_row * 4 * H;
        step_.stats = out.stats ? pointer<A>(out.stats) + row * 6 : nullptr;
        step_.cells = saves && out.cells ? pointer<A>(out.cells) + row * H : nullptr;
        step_.hidden = saves && out.hidden ? pointer<T>(out.hidden) + row * P : nullptr;
        step_.output = pointer<T>(out.output) + row * P;
        check(forward_step(step_, stream_));
        if (unprojected_) {
          multiply(*projected_, *unprojected_, *weight_hr_t_);
          check(project_step(step_, stream_));
        }
      }
    }
  }

 private:
  static bool has_own_operand(const Call<T>& call) { return call.drops_hidden || call.sequence.reset; }

  const Call<T>& call_;
  const cudaStream_t stream_;
  const Tensor h_, cell_;
  const Tensor operand_;  // [B, P] h~, the left operand of the product with W_hh
  const Tensor weight_ih_t_, weight_hh_t_;
  MaybeTensor spill_, recurrent_, unprojected_, projected_, weight_hr_t_;
  ForwardStep<T> step_{};
};

}  // namespace lstm_fused::cuda
