// The state of one environment (main thread, Worker, jest file): its devices, its tensors' slots, and the way back to
// JavaScript. Created by the addon's init and never shared. Devices start on first use, so a Worker that only resizes
// images starts no thread.
#pragma once
#include <napi.h>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>
#include "allocator.h"
#include "device.h"
#include "slots.h"

namespace siglip2 {

constexpr int kMostDevices = 19, kDryCpu = 17,
              kDryCuda = 18;  // 0 is the CPU, 1 + n is cuda:n; as in lib/tensor.ts

class Instance {
 public:
  explicit Instance(napi_env env) : env_(env) {}
  ~Instance() { shutdown(); }

  // What a device and its allocator share a life with.
  struct Place {
    std::unique_ptr<Device> device;
    std::unique_ptr<Allocator> allocator;
    int64_t recording_set = 0;        // memory of the recording that is being made; 0: none is
    std::map<int64_t, int64_t> sets;  // memory of each recording
  };
  Place& place(int index) {
    if (closed_) throw std::runtime_error("the native core was shut down");
    if (index < 0 || index >= kMostDevices) throw std::runtime_error("no such device");
    Place& p = places_[index];
    if (!p.device) {
      std::string why;
      p.device = index == 0                              ? make_cpu_device()
                 : index == kDryCpu || index == kDryCuda ? make_dry_device(index == kDryCuda)
                                                         : make_cuda_device(index - 1, &why);
      if (!p.device) throw std::runtime_error(why);
      p.allocator = std::make_unique<Allocator>(*p.device);
    }
    return p;
  }
  void refuse_while_recording(int index, const char* what) {
    if (place(index).recording_set)
      throw std::runtime_error(std::string("a step that is being recorded cannot ") + what);
  }
  Place* started(int index) { return places_[index].device ? &places_[index] : nullptr; }

  // Stops the devices' threads; safe to call more than once, from process 'exit' and from the cleanup hook.
  void shutdown() {
    if (closed_) return;
    closed_ = true;
    for (Place& p : places_)
      if (p.device) p.device->cancel();
    slots.~Slots();
    new (&slots) Slots();
    for (Place& p : places_) {
      p.allocator.reset();
      p.device.reset();
    }
    if (completed_) napi_release_threadsafe_function(completed_, napi_tsfn_release);
    completed_ = nullptr;
  }

  // Adds a copy of the package's JavaScript; its number is the upper part of the ids that it passes to notify(). Test
  // runners make several over one instance, module resets too, and each is called back for what it asked. Errors are made by
  // the newest.
  int64_t start(Napi::Function make_error, Napi::Function complete) {
    if (!completed_) {
      napi_value name;
      napi_create_string_utf8(env_, "siglip2", NAPI_AUTO_LENGTH, &name);
      napi_create_threadsafe_function(env_, nullptr, nullptr, name, 0, 1, nullptr, nullptr, this,
                                      call_js, &completed_);
      napi_unref_threadsafe_function(env_, completed_);
    }
    make_error_ = Napi::Persistent(make_error);
    Copy copy;
    napi_create_reference(
        env_, complete, 0,
        &copy.complete);  // weak: a copy that is gone and waits for nothing may go
    copies_.push_back(copy);
    return static_cast<int64_t>(copies_.size()) - 1;
  }

  // Calls JavaScript's complete(id, error) once everything enqueued so far is done; id is copy · 2³² and the copy's own.
  void notify(Device& device, double id) {
    Copy& copy = copy_of(id);
    if (copy.pending++ == 0) napi_reference_ref(env_, copy.complete, nullptr);
    if (pending_++ == 0) napi_ref_threadsafe_function(env_, completed_);
    device.notify([this, id](const std::string& error) {
      bool first;
      {
        std::lock_guard lock(mutex_);
        first = results_.empty();
        results_.emplace_back(id, error);
      }
      if (first) napi_call_threadsafe_function(completed_, nullptr, napi_tsfn_nonblocking);
    });
  }

  // Errors are made by JavaScript's factory, so that they are of the caller's realm and class.
  napi_value raise(const char* code, const std::string& message) {
    Napi::HandleScope scope(env_);
    if (make_error_.IsEmpty()) {
      napi_throw_error(env_, code, message.c_str());
    } else {
      try {
        Napi::Value e =
            make_error_.Call({Napi::String::New(env_, code), Napi::String::New(env_, message)});
        napi_throw(env_, e);
      } catch (const Napi::Error&) {  // no JavaScript runs in a Worker that is being terminated
      }
    }
    return nullptr;
  }

  Slots slots;
  napi_env env() const { return env_; }

 private:
  struct Copy {
    napi_ref complete = nullptr;
    int64_t pending = 0;  // the reference is strong while there is something
  };
  Copy& copy_of(double id) {
    const auto copy = static_cast<size_t>(id / 4294967296.0);
    if (copy >= copies_.size()) throw std::runtime_error("no copy of the package has this number");
    return copies_[copy];
  }

  static void call_js(napi_env env, napi_value, void* context, void*) {
    auto* self = static_cast<Instance*>(context);
    if (!env) return;
    std::vector<std::pair<double, std::string>> results;
    {
      std::lock_guard lock(self->mutex_);
      results.swap(self->results_);
    }
    for (auto& [id, error] : results) {
      if (--self->pending_ == 0 && self->completed_)
        napi_unref_threadsafe_function(env, self->completed_);
      Copy& copy = self->copy_of(id);
      napi_value undefined, complete = nullptr, args[2];
      napi_get_reference_value(env, copy.complete, &complete);
      if (--copy.pending == 0) napi_reference_unref(env, copy.complete, nullptr);
      if (!complete) continue;
      napi_get_undefined(env, &undefined);
      napi_create_double(env, id, &args[0]);
      napi_create_string_utf8(env, error.c_str(), error.size(), &args[1]);
      napi_call_function(env, undefined, complete, 2, args, nullptr);
    }
  }

  napi_env env_;
  bool closed_ = false;
  Place places_[kMostDevices];
  Napi::FunctionReference make_error_;
  napi_threadsafe_function completed_ = nullptr;
  std::vector<Copy> copies_;
  std::mutex mutex_;
  std::vector<std::pair<double, std::string>> results_;
  int64_t pending_ = 0;
};

}  // namespace siglip2
