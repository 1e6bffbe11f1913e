// distill_loss.cu against double precision: several views to a teacher row, weights, in place.
#include "../../cuda/distill_loss.cu"
#include "check.h"

namespace {

using test::Buffer;
using test::Random;

// softmax(scale·(x − shift)) of one row of K values; returns its log-sum-exp.
template <class T> double softmax(std::vector<double>& p, const Buffer<T>& x, int64_t row,
                                  int64_t K, double scale, const Buffer<float>& shift) {
  double most = -INFINITY, sum = 0;
  for (int64_t k = 0; k < K; ++k) {
    const double l = (x.at(row * K + k) - (shift.data() ? shift.at(k) : 0)) * scale;
    p[static_cast<size_t>(k)] = l;
    most = std::max(most, l);
  }
  for (double& v : p) sum += std::exp(v - most);
  const double lse = most + std::log(sum);
  for (double& v : p) v = std::exp(v - lse);
  return lse;
}

template <class T>
void distill(int64_t T_rows, int64_t views, int64_t K, bool in_place, bool weighted) {
  const int64_t R = T_rows * views;
  const float student_t = 0.5f, teacher_t = 0.2f, scale = 1.0f / static_cast<float>(R);
  test::HostStream stream;
  Random random(static_cast<unsigned>(R * 31 + K));
  const auto student = random.buffer<T>(R * K), teacher = random.buffer<T>(T_rows * K);
  const auto centre = random.buffer<float>(K, 0.3f);
  const auto weights = weighted ? random.buffer<float>(R, 0.1f, 1) : Buffer<float>();
  if (weighted) weights[0] = 0;
  const auto loss = random.buffer<float>(1);
  double want_loss = loss.at(0);
  std::vector<double> want(static_cast<size_t>(R * K)), p(static_cast<size_t>(K)), q(p.size());
  for (int64_t r = 0; r < R; ++r) {
    softmax(p, teacher, r % T_rows, K, 1 / static_cast<double>(teacher_t), centre);
    const double lse =
        softmax(q, student, r, K, 1 / static_cast<double>(student_t), Buffer<float>());
    const double w = scale * (weighted ? weights.at(r) : 1.0);
    for (int64_t k = 0; k < K; ++k) {
      const auto at = static_cast<size_t>(k);
      want_loss += w * p[at] * (lse - student.at(r * K + k) / static_cast<double>(student_t));
      want[static_cast<size_t>(r * K + k)] = w / static_cast<double>(student_t) * (q[at] - p[at]);
    }
  }
  const Buffer<T> separate(in_place ? 0 : R * K);
  const Buffer<T>& gradient = in_place ? student : separate;
  siglip2::cuda::distill_loss_forward_backward(stream, loss, gradient, student, teacher, centre,
                                               weights, R, T_rows, K, student_t, teacher_t, scale);
  const std::string what = std::string(test::type_name<T>) + " distill K=" + std::to_string(K);
  CHECK_CLOSE(gradient, want, test::tolerance<T>, what + " gradient");
  CHECK_CLOSE(loss, std::vector<double>{want_loss}, 1e-11, what + " loss");
  if (in_place) return;  // the logits are gone
  loss[0] = 0;
  siglip2::cuda::distill_loss_forward_backward(stream, loss, Buffer<T>(), student, teacher, centre,
                                               weights, R, T_rows, K, student_t, teacher_t, scale);
  CHECK(std::isfinite(loss.at(0)));
}

TEST(distill_loss) {
  distill<float>(1, 1, 1, false, false);
  distill<float>(3, 2, 77, false, true);
  distill<float>(2, 2, test::small ? 300 : 1030, true, false);
  distill<__nv_bfloat16>(2, 3, 300, false, true);
  distill<__nv_bfloat16>(1, 2, 41, true, false);
}

}  // namespace
