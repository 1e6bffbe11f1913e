// One image resized for JavaScript, in the calling thread or on libuv's thread pool.
#pragma once
#include <node_api.h>
#include <array>
#include <memory>
#include <stdexcept>
#include <string>
#include "ops/resize_image.h"

namespace siglip2 {

// Checked arguments of one resize; the pixels belong to typed arrays that the caller keeps.
class ResizeJob {
 public:
  template <class Byte> struct Pixels {
    Byte* data;
    int64_t height, width, channels;
  };
  ResizeJob(Pixels<const uint8_t> in, Pixels<uint8_t> out, ResizeMethod method, size_t in_bytes,
            size_t out_bytes)
      : in_(in), out_(out), method_(method) {
    if (method < ResizeMethod::pil_bilinear || method > ResizeMethod::f32)
      throw std::invalid_argument("resizeImage: no such method");
    const int64_t element = method == ResizeMethod::f32 ? 4 : 1;
    if (!fits(in, in_bytes, 1) || !fits(out, out_bytes, element))
      throw std::invalid_argument("resizeImage: sizes do not fit the buffers");
  }
  void run() const {
    cpu::avx2::resize_image(method_, in_.data, in_.height, in_.width, in_.channels, out_.data,
                            out_.height, out_.width);
  }

 private:
  template <class Byte> static bool fits(const Pixels<Byte>& p, size_t bytes, int64_t element) {
    return p.height > 0 && p.width > 0 && p.channels > 0 && p.channels <= 4 &&
           static_cast<int64_t>(bytes) == p.height * p.width * p.channels * element;
  }
  Pixels<const uint8_t> in_;
  Pixels<uint8_t> out_;
  ResizeMethod method_;
};

// Raw Node-API: in a Worker that is being terminated every call into JavaScript fails, and node-addon-api would throw
// where nobody catches.
class AsyncResize {
 public:
  // Runs the job on the thread pool, then calls done(error or undefined). `kept`: source, target, done.
  static void start(napi_env env, const ResizeJob& job, std::array<napi_value, 3> kept) {
    std::unique_ptr<AsyncResize> task(new AsyncResize(job));
    for (size_t i = 0; i < kept.size(); ++i)
      napi_create_reference(env, kept[i], 1, &task->keep_[i]);
    napi_value name;
    napi_create_string_utf8(env, "siglip2.resizeImage", NAPI_AUTO_LENGTH, &name);
    napi_create_async_work(env, nullptr, name, execute, complete, task.get(), &task->work_);
    if (napi_queue_async_work(env, task->work_) != napi_ok)
      throw std::runtime_error("the thread pool takes no more work");
    task.release();
  }

 private:
  explicit AsyncResize(const ResizeJob& job) : job_(job) {}
  static void execute(napi_env, void* data) {
    auto* self = static_cast<AsyncResize*>(data);
    try {
      self->job_.run();
    } catch (const std::exception& e) {
      self->error_ = e.what();
    }
  }
  static void complete(napi_env env, napi_status, void* data) {
    std::unique_ptr<AsyncResize> self(static_cast<AsyncResize*>(data));
    napi_value done = nullptr, undefined = nullptr, argument = nullptr;
    napi_get_reference_value(env, self->keep_[2], &done);
    for (napi_ref r : self->keep_) napi_delete_reference(env, r);
    napi_delete_async_work(env, self->work_);
    if (!done || napi_get_undefined(env, &undefined) != napi_ok) return;
    argument = undefined;
    if (!self->error_.empty())
      napi_create_string_utf8(env, self->error_.c_str(), self->error_.size(), &argument);
    napi_call_function(env, undefined, done, 1, &argument, nullptr);
  }

  ResizeJob job_;
  std::string error_;
  std::array<napi_ref, 3> keep_{};
  napi_async_work work_ = nullptr;
};

}  // namespace siglip2
