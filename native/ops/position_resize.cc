// CPU position resizing (position_resize.h). Bound by the filter's taps. A row of an image first combines rows of the
// grid, which gives (G, D), and then that one's columns; both passes stay in cache. Backward walks over all rows of all
// images in order, each thread on channels of its own, so sums do not depend on the number of threads.
#include "position_resize.h"
#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <vector>
#include "../cpu/resize.h"
#include "../cpu/threads.h"
#include "../op.h"

namespace siglip2::cpu::ISA {

namespace {

constexpr int64_t kBlocks = 64;    // of rows in the forward pass
constexpr int64_t kChannels = 64;  // of one work item in the backward pass

// Weights of an axis, made once for each length. A training run sees at most a few hundred lengths.
std::shared_ptr<const ResizeAxis> axis_of(int64_t in, int64_t out) {
  constexpr size_t kMost = 2048;
  static auto* const mutex = new std::mutex;
  static auto* const cache =
      new std::map<std::pair<int64_t, int64_t>, std::shared_ptr<const ResizeAxis>>;
  const std::lock_guard lock(*mutex);
  if (cache->size() >= kMost) cache->clear();
  auto& axis = (*cache)[{in, out}];
  if (!axis) axis = std::make_shared<const ResizeAxis>(in, out);
  return axis;
}

// One row of one image.
struct Row {
  const ResizeAxis *down, *across;
  int64_t i, columns, token;  // its place in the image, its length, its first token
};

// f(a, weight) for every input a that output i takes part of.
template <class F> void taps(const ResizeAxis& axis, int64_t i, F&& f) {
  const auto n = static_cast<size_t>(i);
  for (int64_t k = 0; k < axis.count[n]; ++k) {
    const auto w = static_cast<float>(axis.weight[static_cast<size_t>(i * axis.taps + k)]);
    if (w != 0) f(axis.first[n] + k, w);
  }
}

void add_scaled(float* to, const float* from, float w, int64_t n) {
  for (int64_t c = 0; c < n; ++c) to[c] += w * from[c];
}

struct Rows {
  std::vector<Row> list;
  std::map<int64_t, std::shared_ptr<const ResizeAxis>> axes;  // of this call

  Rows(Tensor shapes, Tensor offsets, int64_t S, int64_t T, int64_t G) {
    const auto *grid = shapes.as<const int32_t>(2 * S), *first = offsets.as<const int32_t>(S + 1);
    const auto axis = [&](int64_t n) {
      auto& a = axes[n];
      if (!a) a = axis_of(G, n);
      return a.get();
    };
    int64_t token = 0;
    for (int64_t s = 0; s < S; ++s) {
      const int64_t rows = grid[2 * s], columns = grid[2 * s + 1];
      if (rows < 1 || columns < 1 || first[s] != token)
        throw std::invalid_argument(
            "the shapes and offsets of a batch of images do not fit together");
      for (int64_t i = 0; i < rows; ++i, token += columns)
        list.push_back({axis(rows), axis(columns), i, columns, token});
    }
    if (token != T || first[S] != token)
      throw std::invalid_argument(
          "the shapes of a batch of images do not have as many patches as it has");
  }
};

}  // namespace

void position_resize_forward(Stream& stream, Tensor y, Tensor position, Tensor shapes,
                             Tensor offsets, int64_t S, int64_t T, int64_t G, int64_t D) {
  auto* out = y.as<float>(T * D);
  const auto* grid = position.as<const float>(G * G * D);
  const Rows rows(shapes, offsets, S, T, G);
  const auto n = static_cast<int64_t>(rows.list.size()), blocks = std::min(n, kBlocks);
  Scratch<float> middle(stream, blocks * G * D);
  parallel_ranges(blocks, 1, [&](int64_t b0, int64_t b1) {
    for (int64_t b = b0; b < b1; ++b) {
      float* combined = middle.data() + b * G * D;
      for (int64_t r = n * b / blocks; r < n * (b + 1) / blocks; ++r) {
        const Row& row = rows.list[static_cast<size_t>(r)];
        std::fill(combined, combined + G * D, 0.0f);
        taps(*row.down, row.i,
             [&](int64_t a, float w) { add_scaled(combined, grid + a * G * D, w, G * D); });
        for (int64_t j = 0; j < row.columns; ++j) {
          float* token = out + (row.token + j) * D;
          std::fill(token, token + D, 0.0f);
          taps(*row.across, j,
               [&](int64_t a, float w) { add_scaled(token, combined + a * D, w, D); });
        }
      }
    }
  });
}

void position_resize_backward(Stream& stream, Tensor dposition, Tensor dy, Tensor shapes,
                              Tensor offsets, int64_t S, int64_t T, int64_t G, int64_t D) {
  auto* out = dposition.as_or_null<float>(G * G * D);
  const auto* gradient = dy.as<const float>(T * D);
  if (!out) return;
  const Rows rows(shapes, offsets, S, T, G);
  const int64_t slices = (D + kChannels - 1) / kChannels;
  Scratch<float> middle(stream, slices * G * kChannels);
  parallel_items(slices, [&](int64_t slice) {
    const int64_t c0 = slice * kChannels, n = std::min(kChannels, D - c0);
    float* combined = middle.data() + slice * G * kChannels;
    for (const Row& row : rows.list) {
      std::fill(combined, combined + G * kChannels, 0.0f);
      for (int64_t j = 0; j < row.columns; ++j)
        taps(*row.across, j, [&](int64_t b, float w) {
          add_scaled(combined + b * kChannels, gradient + (row.token + j) * D + c0, w, n);
        });
      taps(*row.down, row.i, [&](int64_t a, float w) {
        for (int64_t b = 0; b < G; ++b)
          add_scaled(out + (a * G + b) * D + c0, combined + b * kChannels, w, n);
      });
    }
  });
}

}  // namespace siglip2::cpu::ISA

OP(position_resize_forward);
OP(position_resize_backward);
