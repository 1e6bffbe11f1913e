// softmax_cross_entropy.cu against double precision; the gradient may take the logits' memory.
#include "../../cuda/softmax_cross_entropy.cu"
#include "check.h"

namespace {

using test::Buffer;
using test::Random;

template <class T>
void run(int64_t R, int64_t V, float smoothing, bool weighted, bool in_place, float scale = 2) {
  const std::string what =
      std::string(test::type_name<T>) + " " + std::to_string(R) + "×" + std::to_string(V);
  test::HostStream stream;
  Random random(static_cast<unsigned>(R + V));
  const auto logits = random.buffer<T>(R * V, scale);
  const auto weights = weighted ? random.buffer<float>(R, 0.1f, 1) : Buffer<float>();
  const Buffer<int32_t> targets(R);
  const Buffer<float> loss(1);
  const Buffer<T> other(in_place ? 0 : R * V);
  const Buffer<T>& dlogits = in_place ? logits : other;
  loss[0] = 0.5f;
  double counted = 0, total = 0.5;
  for (int64_t r = 0; r < R; ++r) {
    targets[r] = static_cast<int32_t>(r % 3 == 1 ? -1 : r * (V - 1) % V);
    if (targets[r] >= 0) counted += weighted ? weights.at(r) : 1;
  }
  std::vector<double> want(static_cast<size_t>(R * V));
  for (int64_t r = 0; r < R; ++r) {
    if (targets[r] < 0) continue;
    const double w = (weighted ? weights.at(r) : 1) / counted, s = static_cast<double>(smoothing);
    double most = -INFINITY, sum = 0, plain = 0;
    for (int64_t v = 0; v < V; ++v) most = std::max(most, logits.at(r * V + v));
    for (int64_t v = 0; v < V; ++v) {
      sum += std::exp(logits.at(r * V + v) - most);
      plain += logits.at(r * V + v);
    }
    total += w * (most + std::log(sum) - (1 - s) * logits.at(r * V + targets[r]) -
                  s / static_cast<double>(V) * plain);
    for (int64_t v = 0; v < V; ++v)
      want[static_cast<size_t>(r * V + v)] =
          w * (std::exp(logits.at(r * V + v) - most) / sum - (v == targets[r] ? 1 - s : 0) -
               s / static_cast<double>(V));
  }
  siglip2::cuda::softmax_cross_entropy_forward_backward(stream, loss, dlogits, logits, targets,
                                                        weights, R, V, 0, smoothing);
  CHECK_CLOSE(loss, std::vector<double>{total}, 1e-11, what + " loss");
  CHECK_CLOSE(dlogits, want, test::tolerance<T>, what + " dlogits");
}

TEST(softmax_cross_entropy) {
  run<float>(1, 2, 0, false, false);
  run<__nv_bfloat16>(5, 63, 0.1f, true, true);
  run<float>(4, 300, 0.2f, true, true, 40);
  if (test::small) return;
  run<__nv_bfloat16>(7, 4096, 0, false, false);
  run<float>(2, 20001, 0, false, false);
}

TEST(softmax_cross_entropy_reports_targets_that_are_no_class) {
  test::HostStream stream;
  const Buffer<float> logits(6), dlogits(6), loss(1);
  const Buffer<int32_t> targets(2);
  for (int64_t i = 0; i < 6; ++i) logits[i] = 1;
  targets[0] = -1, targets[1] = 3;
  loss[0] = 0;
  siglip2::cuda::softmax_cross_entropy_forward_backward(stream, loss, dlogits, logits, targets,
                                                        siglip2::Tensor{}, 2, 3, 0, 0);
  CHECK(loss[0] == 0 && dlogits[5] == 0);
  CHECK(stream.noted.take() ==
        "target 3 of row 1 is neither a class in [0, 3) nor -1, which ignores the row");
}

}  // namespace
