// The host runtime's device keeps the contract of native/device.h.
#include "../../native/device.h"
#include "../../cuda/errors.h"
#include "../../cuda/flavour.h"
#include "check.h"

namespace {

using siglip2::Stream;

TEST(device_is_labelled) {
  std::string why;
  const auto device = siglip2::make_cuda_device(0, &why);
  CHECK(device && device->is_cuda() && siglip2::cuda::is_host_runtime());
  CHECK(device->name().find("cuda-host") != std::string::npos);
  CHECK(!siglip2::make_cuda_device(1, &why));
  CHECK(why.find("index 0, not 1") != std::string::npos);
}

TEST(device_copies_and_orders) {
  const auto device = siglip2::make_cuda_device(0, nullptr);
  auto p = static_cast<float*>(device->allocate(4 * sizeof(float)));
  float from[4] = {1, 2, 3, 4}, to[4] = {};
  device->upload(p, from, sizeof from);
  from[0] = 9;  // the source may be used again
  device->enqueue("double", [&](Stream&) {
    for (int i = 0; i < 4; ++i) p[i] *= 2;
  });
  device->fill(p + 3, 0, sizeof(float));
  device->download(to, p, sizeof to);
  int told = 0;
  device->notify([&](const std::string& error) { told += error.empty(); });
  device->synchronize();
  CHECK(told == 1 && to[0] == 2 && to[1] == 4 && to[2] == 6 && to[3] == 0);
  device->release(p, 4 * sizeof(float));
}

TEST(device_reports_the_op_that_threw) {
  const auto device = siglip2::make_cuda_device(0, nullptr);
  bool ran_after = false;
  device->enqueue("layer_norm_forward",
                  [](Stream&) { throw std::invalid_argument("weight is too short"); });
  device->enqueue("later", [&](Stream&) { ran_after = true; });
  std::string first, second = "unset";
  device->notify([&](const std::string& error) { first = error; });
  device->notify([&](const std::string& error) { second = error; });
  CHECK(first == "layer_norm_forward: weight is too short");
  CHECK(second.empty());
  CHECK(!ran_after);
}

TEST(device_reports_a_fault_of_a_kernel) {
  const auto device = siglip2::make_cuda_device(0, nullptr);
  device->enqueue("broken", [](Stream& s) {
    siglip2::cuda::launch(
        +[] {
          if (threadIdx.x < 31) __syncthreads();
        },
        1, 32, 0, s);
  });
  std::string error;
  device->notify([&](const std::string& e) { error = e; });
  CHECK(error.find("broken: deadlock") == 0);
}

TEST(device_records_and_replays) {
  const auto device = siglip2::make_cuda_device(0, nullptr);
  int runs = 0;
  device->begin_recording();
  device->enqueue("count", [&](Stream&) { ++runs; });
  const int64_t recording = device->end_recording();
  CHECK(runs == 0);
  device->replay(recording);
  device->replay(recording);
  CHECK(runs == 2);
  device->forget(recording);
}

TEST(errors_are_sentences) {
  using namespace siglip2::cuda;
  CHECK(why_no_device(kErrorNoDevice, "no device", 0, 13000) == "this machine has no CUDA device");
  CHECK(why_no_device(kErrorInsufficientDriver, "", 0, 13000) == "this machine has no CUDA device");
  CHECK(
      why_no_device(kErrorInsufficientDriver, "", 12040, 13000) ==
      "the NVIDIA driver supports CUDA 12.4 and is too old for CUDA 13.0; install a newer driver");
  CHECK(why_no_device(999, "unknown error", 13000, 13000) == "CUDA does not start: unknown error");
  CHECK(explain(700, "illegal address") ==
        "the GPU failed (illegal address) and this process cannot use it any more; start it again "
        "from its last checkpoint");
  CHECK(explain(kErrorMemory, "out of memory").find("use a smaller batch") != std::string::npos);
  CHECK(explain(1, "invalid argument") == "invalid argument");
}

TEST(device_counts_workspace) {
  const auto device = siglip2::make_cuda_device(0, nullptr);
  device->enqueue("scratch", [](Stream& s) {
    const siglip2::Scratch<float> a(s, 100);
    { const siglip2::Scratch<float> b(s, 50); }
    const siglip2::Scratch<float> c(s, 20), none(s, 0);
    CHECK(reinterpret_cast<uintptr_t>(a.data()) % 64 == 0 && !none.data());
  });
  CHECK(device->scratch_peak() == 600);
  device->reset_scratch_peak();
  CHECK(device->scratch_peak() == 0);
}

}  // namespace
