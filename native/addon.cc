// The door between JavaScript and the native core: devices, tensors, and one function per registered op.
#include <napi.h>
#include "cpu/matmul.h"
#include "cpu/threads.h"
#include "heap.h"
#include "instance.h"
#include "op.h"
#include "resize_job.h"

namespace siglip2 {
#if defined(SIGLIP2_WITH_CUDA)
namespace cuda {
bool is_host_runtime();      // the kernels run on CPU threads: a build for tests
std::string gemm_library();  // which library multiplies on the GPU, or why none does
}  // namespace cuda
#endif
namespace {

Instance& instance_of(napi_env env) {
  void* data = nullptr;
  napi_get_instance_data(env, &data);
  return *static_cast<Instance*>(data);
}

// Runs f and turns C++ exceptions into JavaScript ones.
template <class F> napi_value guarded(Instance& self, F&& f) {
  try {
    return f();
  } catch (const OutOfMemory& e) {
    return self.raise("ERR_MEMORY", e.what());
  } catch (const BadHandle& e) {
    return self.raise("ERR_DISPOSED", e.what());
  } catch (const std::bad_alloc&) {
    return self.raise("ERR_MEMORY", "the host has no memory left");
  } catch (const std::exception& e) {
    return self.raise("ERR_DEVICE", e.what());
  }
}

// One op: decode by the entry's signature, pick the device, enqueue. The hot path, hence raw Node-API.
napi_value call_op(napi_env env, napi_callback_info info) {
  napi_value argv[most_arguments];
  size_t argc = most_arguments;
  void* data;
  napi_get_cb_info(env, info, &argc, argv, nullptr, &data);
  const auto& entry = *static_cast<const OpEntry*>(data);
  Instance& self = instance_of(env);
  return guarded(self, [&]() -> napi_value {
    if (argc != entry.args.size())
      throw std::invalid_argument(std::string(entry.name) + " takes " +
                                  std::to_string(entry.args.size()) + " arguments but got " +
                                  std::to_string(argc));
    std::vector<Value> values(argc);
    int device = -1;
    for (size_t i = 0; i < argc; ++i) {
      double& number = values[i].number;
      if (entry.args[i] == Arg::boolean) {
        bool b;
        if (napi_get_value_bool(env, argv[i], &b) != napi_ok)
          throw std::invalid_argument(std::string(entry.name) + ": argument " + std::to_string(i) +
                                      " must be a boolean");
        number = b;
        continue;
      }
      if (napi_get_value_double(env, argv[i], &number) != napi_ok)
        throw std::invalid_argument(std::string(entry.name) + ": argument " + std::to_string(i) +
                                    " must be a number");
      if (entry.args[i] != Arg::tensor || number == 0) continue;
      auto& slot = self.slots.at(number);
      if (device >= 0 && slot.device != device)
        throw std::invalid_argument(std::string(entry.name) +
                                    ": its tensors are on different devices");
      device = slot.device;
      values[i].tensor = slot.view;
    }
    if (device < 0) throw std::invalid_argument(std::string(entry.name) + " got no tensor");
    Device& d = *self.place(device).device;
    if (d.is_dry() && !entry.sized) return nullptr;
    const auto& kernel = d.is_cuda() && !d.is_dry() ? entry.cuda : entry.cpu;
    if (!kernel)
      throw std::runtime_error(std::string(entry.name) +
                               " has no CUDA kernel; run it on device 'cpu'");
    d.enqueue(entry.name,
              [&kernel, values = std::move(values)](Stream& s) { kernel(s, values.data()); });
    return nullptr;
  });
}

using Napi::CallbackInfo;
using Napi::Value;

double number_at(const CallbackInfo& info, size_t i) {
  return info[i].As<Napi::Number>().DoubleValue();
}
int int_at(const CallbackInfo& info, size_t i) { return info[i].As<Napi::Number>().Int32Value(); }
std::pair<uint8_t*, size_t> bytes_at(const CallbackInfo& info, size_t i) {
  if (!info[i].IsTypedArray()) throw std::invalid_argument("a typed array is expected");
  auto a = info[i].As<Napi::TypedArray>();
  return {static_cast<uint8_t*>(a.ArrayBuffer().Data()) + a.ByteOffset(), a.ByteLength()};
}

template <Value (*F)(Instance&, const CallbackInfo&)> Value function(const CallbackInfo& info) {
  Instance& self = instance_of(info.Env());
  return Value(info.Env(), guarded(self, [&]() -> napi_value { return F(self, info); }));
}

Value start(Instance& self, const CallbackInfo& info) {
  const int64_t copy = self.start(info[0].As<Napi::Function>(), info[1].As<Napi::Function>());
  return Napi::Number::New(info.Env(), static_cast<double>(copy));
}
// allocate(device, bytes, dtype) → handle
Value allocate(Instance& self, const CallbackInfo& info) {
  const int device = int_at(info, 0);
  Allocator& allocator = *self.place(device).allocator;
  try {
    return Napi::Number::New(
        info.Env(), self.slots.allocate(device, allocator, info[1].As<Napi::Number>().Int64Value(),
                                        static_cast<DType>(int_at(info, 2))));
  } catch (const OutOfMemory& e) {
    const std::string largest = self.slots.largest(device);
    throw OutOfMemory(e.what() +
                      (largest.empty() ? std::string() : "\nlargest live tensors: " + largest));
  }
}
// view(handle, byteOffset, bytes, dtype) → handle
Value view(Instance& self, const CallbackInfo& info) {
  return Napi::Number::New(
      info.Env(), self.slots.view(number_at(info, 0), info[1].As<Napi::Number>().Int64Value(),
                                  info[2].As<Napi::Number>().Int64Value(),
                                  static_cast<DType>(int_at(info, 3))));
}
Value free_slot(Instance& self, const CallbackInfo& info) {
  self.slots.free(number_at(info, 0));
  return info.Env().Undefined();
}
// write(handle, typedArray)
Value write(Instance& self, const CallbackInfo& info) {
  auto& slot = self.slots.at(number_at(info, 0));
  if (self.place(slot.device).device->is_dry())
    return info.Env().Undefined();  // the data may stand for more than fits an array
  auto [data, bytes] = bytes_at(info, 1);
  if (static_cast<int64_t>(bytes) != slot.view.bytes)
    throw std::invalid_argument("a tensor of " + std::to_string(slot.view.bytes) +
                                " bytes was given " + std::to_string(bytes));
  self.refuse_while_recording(slot.device,
                              "take data from the host; write() its inputs before run()");
  self.place(slot.device).device->upload(slot.view.data, data, bytes);
  return info.Env().Undefined();
}
// read(handle, typedArray, id): fills the array, then complete(id, error)
Value read(Instance& self, const CallbackInfo& info) {
  auto& slot = self.slots.at(number_at(info, 0));
  auto [data, bytes] = bytes_at(info, 1);
  if (static_cast<int64_t>(bytes) != slot.view.bytes)
    throw std::invalid_argument("a tensor of " + std::to_string(slot.view.bytes) +
                                " bytes is read into " + std::to_string(bytes));
  self.refuse_while_recording(slot.device,
                              "be read inside; return the tensors that run() shall hand out");
  Device& device = *self.place(slot.device).device;
  device.download(data, slot.view.data, bytes);
  self.notify(device, number_at(info, 2));
  return info.Env().Undefined();
}
// synchronize(device, id)
Value synchronize(Instance& self, const CallbackInfo& info) {
  self.refuse_while_recording(int_at(info, 0), "be waited for inside");
  self.notify(*self.place(int_at(info, 0)).device, number_at(info, 1));
  return info.Env().Undefined();
}
// beginRecording(device) → false when this device replays nothing
Value begin_recording(Instance& self, const CallbackInfo& info) {
  const int device = int_at(info, 0);
  auto& place = self.place(device);
  if (!place.device->can_record()) return Napi::Boolean::New(info.Env(), false);
  self.refuse_while_recording(device, "contain another");
  place.recording_set = place.allocator->begin_private();
  place.device->begin_recording();
  return Napi::Boolean::New(info.Env(), true);
}
// endRecording(device, keep) → number of the recording; 0 when it is not kept
Value end_recording(Instance& self, const CallbackInfo& info) {
  auto& place = self.place(int_at(info, 0));
  const int64_t set = std::exchange(place.recording_set, 0);
  place.allocator->end_private();
  try {
    const int64_t recording = place.device->end_recording();
    if (info[1].As<Napi::Boolean>()) {
      place.sets[recording] = set;
      return Napi::Number::New(info.Env(), static_cast<double>(recording));
    }
    place.device->forget(recording);
  } catch (...) {
    place.allocator->give_up(set);
    throw;
  }
  place.allocator->give_up(set);
  return Napi::Number::New(info.Env(), 0);
}
// replay(device, recording)
Value replay(Instance& self, const CallbackInfo& info) {
  self.place(int_at(info, 0)).device->replay(info[1].As<Napi::Number>().Int64Value());
  return info.Env().Undefined();
}
// forget(device, recording)
Value forget(Instance& self, const CallbackInfo& info) {
  auto& place = self.place(int_at(info, 0));
  const int64_t recording = info[1].As<Napi::Number>().Int64Value();
  place.device->forget(recording);
  place.allocator->give_up(place.sets.at(recording));
  place.sets.erase(recording);
  return info.Env().Undefined();
}
Value fill_byte(Instance& self, const CallbackInfo& info) {
  auto& slot = self.slots.at(number_at(info, 0));
  self.place(slot.device)
      .device->fill(slot.view.data, static_cast<uint8_t>(int_at(info, 1)),
                    static_cast<size_t>(slot.view.bytes));
  return info.Env().Undefined();
}
Value memory(Instance& self, const CallbackInfo& info) {
  auto o = Napi::Object::New(info.Env());
  auto* p = self.started(int_at(info, 0));
  const auto set = [&](const char* key, size_t v) {
    o.Set(key, Napi::Number::New(info.Env(), static_cast<double>(v)));
  };
  set("live", p ? p->allocator->live() : 0);
  set("peak", p ? p->allocator->peak() : 0);
  set("reserved", p ? p->allocator->reserved() : 0);
  set("scratchPeak", p ? p->device->scratch_peak() : 0);
  set("guardViolations", p ? static_cast<size_t>(p->allocator->guard_violations()) : 0);
  return o;
}
Value reset_peak(Instance& self, const CallbackInfo& info) {
  if (auto* p = self.started(int_at(info, 0))) {
    p->allocator->reset_peak();
    p->device->reset_scratch_peak();
  }
  return info.Env().Undefined();
}
// setMemoryLimit(device, bytes); bytes <= 0 lifts it
Value set_limit(Instance& self, const CallbackInfo& info) {
  const double bytes = number_at(info, 1);
  self.place(int_at(info, 0)).allocator->limit = bytes > 0 ? static_cast<size_t>(bytes) : SIZE_MAX;
  return info.Env().Undefined();
}
Value set_debug(Instance& self, const CallbackInfo& info) {
  self.place(int_at(info, 0)).allocator->set_debug(info[1].As<Napi::Boolean>());
  return info.Env().Undefined();
}
Value live_count(Instance& self, const CallbackInfo& info) {
  return Napi::Number::New(info.Env(), static_cast<double>(self.slots.live()));
}
Value shutdown(Instance& self, const CallbackInfo& info) {
  self.shutdown();
  return info.Env().Undefined();
}
// resizeImage(source, height, width, channels, target, outHeight, outWidth, method[, done]): without a device, in the
// calling thread; with `done`, on libuv's thread pool, then done(error or undefined)
Value resize_image(Instance&, const CallbackInfo& info) {
  auto [in, in_bytes] = bytes_at(info, 0);
  auto [out, out_bytes] = bytes_at(info, 4);
  const ResizeJob job({in, int_at(info, 1), int_at(info, 2), int_at(info, 3)},
                      {out, int_at(info, 5), int_at(info, 6), int_at(info, 3)},
                      static_cast<ResizeMethod>(int_at(info, 7)), in_bytes, out_bytes);
  if (info.Length() > 8) AsyncResize::start(info.Env(), job, {info[0], info[4], info[8]});
  else job.run();
  return info.Env().Undefined();
}
// release(typedArray): detaches its memory, which its owner then frees at once instead of with the next collection of
// garbage; memory that cannot be detached stays
Value release(Instance&, const CallbackInfo& info) {
  napi_detach_arraybuffer(info.Env(), info[0].As<Napi::TypedArray>().ArrayBuffer());
  return info.Env().Undefined();
}
// setBatchInvariant(device, on): for what is enqueued after it; only the CPU's products know the difference
Value set_batch_invariance(Instance& self, const CallbackInfo& info) {
  const bool on = info[1].As<Napi::Boolean>();
  Device& device = *self.place(int_at(info, 0)).device;
  if (!device.is_cuda() && !device.is_dry())
    device.enqueue("batch_invariant", [on](Stream&) { set_batch_invariant(on); });
  return info.Env().Undefined();
}
// takeProfile(device): [{op, calls, seconds}] since the last call
Value take_profile(Instance& self, const CallbackInfo& info) {
  auto list = Napi::Array::New(info.Env());
  uint32_t n = 0;
  for (auto& t : self.place(int_at(info, 0)).device->take_profile()) {
    auto o = Napi::Object::New(info.Env());
    o.Set("op", t.op);
    o.Set("calls", Napi::Number::New(info.Env(), static_cast<double>(t.calls)));
    o.Set("seconds", t.seconds);
    list.Set(n++, o);
  }
  return list;
}
// activeThreads(device, hold): waits for the device; see Device::active_threads
Value active_threads(Instance& self, const CallbackInfo& info) {
  return Napi::Number::New(info.Env(),
                           self.place(int_at(info, 0)).device->active_threads(int_at(info, 1)));
}
// deviceName(index): starts the device, or throws the sentence that says why there is none
Value device_name(Instance& self, const CallbackInfo& info) {
  return Napi::String::New(info.Env(), self.place(int_at(info, 0)).device->name());
}
Value build_info(Instance&, const CallbackInfo& info) {
  auto o = Napi::Object::New(info.Env());
#if defined(SIGLIP2_WITH_CUDA)
  o.Set("cuda", cuda::is_host_runtime() ? "cuda-host" : "cuda");
  o.Set("cudaProducts", cuda::gemm_library());
#else
  o.Set("cuda", "none");
  o.Set("cudaProducts", "");
#endif
  o.Set("isa", use_avx512() && has_avx512_kernels ? "avx512" : "avx2");
  o.Set("nativeBf16", has_native_bf16());
  o.Set("onednn", onednn_version());
  o.Set("threads", thread_count());
  auto ops = Napi::Array::New(info.Env());
  uint32_t n = 0;
  for (auto& e : op_table()) {
    auto op = Napi::Object::New(info.Env());
    op.Set("name", e.name);
    op.Set("cuda", static_cast<bool>(e.cuda));
    ops.Set(n++, op);
  }
  o.Set("ops", ops);
  return o;
}

Napi::Object init(Napi::Env env, Napi::Object exports) {
#if defined(__x86_64__)
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) {
    napi_throw_error(env, "ERR_DEVICE", "siglip2 needs a CPU with AVX2 and FMA (2013 or later)");
    return exports;
  }
#endif
  keep_freed_blocks();
  auto* self = new Instance(env);
  napi_set_instance_data(
      env, self, [](napi_env, void* p, void*) { delete static_cast<Instance*>(p); }, nullptr);
  napi_add_env_cleanup_hook(
      env, [](void* p) { static_cast<Instance*>(p)->shutdown(); }, self);
  const auto set = [&](const char* name, auto f) {
    exports.Set(name, Napi::Function::New(env, f, name));
  };
  set("start", function<start>);
  set("allocate", function<allocate>);
  set("view", function<view>);
  set("free", function<free_slot>);
  set("write", function<write>);
  set("read", function<read>);
  set("fillByte", function<fill_byte>);
  set("synchronize", function<synchronize>);
  set("memory", function<memory>);
  set("resetPeak", function<reset_peak>);
  set("setMemoryLimit", function<set_limit>);
  set("setDebug", function<set_debug>);
  set("liveCount", function<live_count>);
  set("shutdown", function<shutdown>);
  set("resizeImage", function<resize_image>);
  set("release", function<release>);
  set("setBatchInvariant", function<set_batch_invariance>);
  set("beginRecording", function<begin_recording>);
  set("endRecording", function<end_recording>);
  set("replay", function<replay>);
  set("forget", function<forget>);
  set("takeProfile", function<take_profile>);
  set("activeThreads", function<active_threads>);
  set("deviceName", function<device_name>);
  set("buildInfo", function<build_info>);
  auto ops = Napi::Object::New(env);
  for (auto& entry : op_table()) {
    napi_value f;
    napi_create_function(env, entry.name, NAPI_AUTO_LENGTH, call_op, const_cast<OpEntry*>(&entry),
                         &f);
    ops.Set(entry.name, Value(env, f));
  }
  exports.Set("ops", ops);
  return exports;
}

}  // namespace

NODE_API_MODULE(siglip2, init)

}  // namespace siglip2
