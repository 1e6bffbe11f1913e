// teacher_centre.cu against double precision.
#include "../../cuda/teacher_centre.cu"
#include "check.h"

namespace {

using test::Buffer;
using test::Random;

template <class T> void run(int64_t R, int64_t K) {
  const double temperature = 0.25, momentum = 0.75;
  test::HostStream stream;
  Random random(static_cast<unsigned>(R * 17 + K));
  const auto teacher = random.buffer<T>(R * K);
  const auto centre = random.buffer<float>(K, 0.3f);
  const auto columns = static_cast<size_t>(K);
  std::vector<double> want_mean(columns), want_centre(columns), share(columns), p(columns);
  double entropy = 0, entropy_of_mean = 0, largest = 0;
  for (int64_t r = 0; r < R; ++r) {
    double most = -INFINITY, sum = 0;
    for (int64_t k = 0; k < K; ++k) {
      p[static_cast<size_t>(k)] = (teacher.at(r * K + k) - centre.at(k)) / temperature;
      most = std::max(most, p[static_cast<size_t>(k)]);
    }
    for (const double l : p) sum += std::exp(l - most);
    const double lse = most + std::log(sum);
    for (size_t k = 0; k < columns; ++k) {
      entropy -= std::exp(p[k] - lse) * (p[k] - lse) / static_cast<double>(R);
      share[k] += std::exp(p[k] - lse) / static_cast<double>(R);
      want_mean[k] += teacher.at(r * K + static_cast<int64_t>(k)) / static_cast<double>(R);
    }
  }
  for (size_t k = 0; k < columns; ++k) {
    want_centre[k] = momentum * centre.at(static_cast<int64_t>(k)) + (1 - momentum) * want_mean[k];
    entropy_of_mean -= share[k] * std::log(share[k]);
    largest = std::max(largest, share[k]);
  }
  const std::string what =
      std::string(test::type_name<T>) + " (" + std::to_string(R) + ", " + std::to_string(K) + ")";
  const Buffer<float> mean(K), statistics(3);
  siglip2::cuda::teacher_statistics(stream, statistics, teacher, centre, R, K, 0.25f);
  siglip2::cuda::teacher_mean(stream, mean, teacher, R, K);
  siglip2::cuda::centre_update(stream, centre, mean, K, 0.75f);
  CHECK_CLOSE(statistics, (std::vector<double>{entropy, entropy_of_mean, largest}), 1e-11,
              what + " statistics");
  CHECK_CLOSE(mean, want_mean, 1e-11, what + " mean");
  CHECK_CLOSE(centre, want_centre, 1e-11, what + " centre");
}

TEST(teacher_centre) {
  run<float>(1, 2);
  run<float>(5, 33);
  run<float>(3, test::small ? 300 : 1030);
  run<__nv_bfloat16>(4, 270);
}

}  // namespace
