#include "cuda/forward_pass.h"

namespace lstm_fused::cuda {

template <typename T>
void layer_forward(const Arguments& arguments, const Forward& out, cudaStream_t stream) {
  const Call<T> call(arguments, stream);
  const int64_t steps = call.sizes.steps, B = call.sizes.batch, H = call.sizes.hidden_size,
                P = call.sizes.projection_size;
  if (B == 0) return;

  // The state: h in h_n, c in c_n where that is of the type it is computed in.
  const bool saves = out.gates.has_value(), saves_states = !saves && out.cells;
  const bool own_cell = accumulator_of(arguments.type) != arguments.type;
  const Tensor h = *out.h_n, cell = own_cell ? arguments.empty_accumulators({B, H}) : *out.c_n;
  ForwardSteps<T> pass(call, call.options, h, cell, saves, stream);
  pass.start(call.in.h_0, call.in.c_0, 0);
  const auto save_state = [&](int64_t number) {
    Tensor saved_h = rows_of(*out.hidden, number * B, B, P), saved_cell = rows_of(*out.cells, number * B, B, H);
    torch::stable::copy_(saved_h, h);
    torch::stable::copy_(saved_cell, cell);
  };
  if (saves_states) {
    for (int64_t segment = 0; segment < call.segments; ++segment) {
      save_state(segment);
      pass.run(call.begin_of(segment), call.begin_of(segment + 1), out, 0);
    }
    save_state(call.segments);
  } else {
    pass.run(0, steps, out, 0);
  }
  if (own_cell) {
    Tensor c_n = *out.c_n;
    torch::stable::copy_(c_n, cell);
  }
}

#define LSTM_FUSED_INSTANTIATE(T) template void layer_forward<T>(const Arguments&, const Forward&, cudaStream_t);
LSTM_FUSED_INSTANTIATE(float)
LSTM_FUSED_INSTANTIATE(double)
LSTM_FUSED_INSTANTIATE(__half)
LSTM_FUSED_INSTANTIATE(__nv_bfloat16)
#undef LSTM_FUSED_INSTANTIATE

}  // namespace lstm_fused::cuda
