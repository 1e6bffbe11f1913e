// embedding.cu against double precision: one id in most rows, ids outside the table, levels of the scatter-add.
#include "../../cuda/embedding.cu"
#include "check.h"

namespace {

using test::Buffer;
using test::Random;

template <class T>
void run(int64_t B, int64_t L, int64_t V, int64_t D, int64_t one_id_in, int64_t shift = 0) {
  const int64_t R = B * L;
  const std::string what =
      std::string(test::type_name<T>) + " " + std::to_string(R) + " of " + std::to_string(V);
  test::HostStream stream;
  Random random(static_cast<unsigned>(R + D));
  const auto table = random.buffer<float>(V * D, 1, 0, shift),
             position = random.buffer<float>(L * D);
  const auto dy = random.buffer<T>(R * D, 1, 0, shift);
  const auto dtable = random.buffer<float>(V * D, 1, 0, shift),
             dposition = random.buffer<float>(L * D);
  const Buffer<int32_t> ids(R);
  for (int64_t r = 0; r < R; ++r)
    ids[r] = static_cast<int32_t>(one_id_in && r % one_id_in ? V / 2 : r * 7919 % V);
  const Buffer<T> y(R * D);
  std::vector<double> want(static_cast<size_t>(R * D)), want_table, want_position;
  for (int64_t i = 0; i < V * D; ++i) want_table.push_back(dtable.at(i));
  for (int64_t i = 0; i < L * D; ++i) want_position.push_back(dposition.at(i));
  for (int64_t r = 0; r < R; ++r)
    for (int64_t d = 0; d < D; ++d) {
      want[static_cast<size_t>(r * D + d)] = table.at(ids[r] * D + d) + position.at(r % L * D + d);
      want_table[static_cast<size_t>(ids[r] * D + d)] += dy.at(r * D + d);
      want_position[static_cast<size_t>(r % L * D + d)] += dy.at(r * D + d);
    }
  siglip2::cuda::embedding_forward(stream, y, ids, table, position, R, V, L, D);
  siglip2::cuda::embedding_backward(stream, dtable, dposition, dy, ids, R, V, L, D);
  CHECK_CLOSE(y, want, test::tolerance<T>, what + " y");
  CHECK_CLOSE(dtable, want_table, 1e-10, what + " dtable");
  CHECK_CLOSE(dposition, want_position, 1e-10, what + " dposition");
  CHECK(stream.noted.take().empty());
}

TEST(embedding) {
  run<float>(1, 1, 1, 1, 0);
  run<__nv_bfloat16>(3, 7, 300, 8, 3);  // two digits
  run<float>(50, 2, 5, 4, 0, 1);        // unaligned
  if (test::small) return;
  run<__nv_bfloat16>(40, 64, 70000, 16,
                     10);  // three digits, more than one tile, one long run over several levels
  run<float>(33, 33, 3, 520, 0);  // more columns than one block
}

TEST(embedding_reports_ids_outside_the_table) {
  test::HostStream stream;
  const Buffer<int32_t> ids(4);
  ids[0] = 4, ids[1] = -1, ids[2] = 5, ids[3] = 0;
  const Buffer<float> table(10), position(4), y(8), dy(8), dtable(10);
  for (int64_t i = 0; i < 10; ++i) table[i] = 1, dtable[i] = 0;
  for (int64_t i = 0; i < 8; ++i) dy[i] = static_cast<float>(i + 1);
  for (int64_t i = 0; i < 4; ++i) position[i] = 0;
  siglip2::cuda::embedding_forward(stream, y, ids, table, position, 4, 5, 2, 2);
  siglip2::cuda::embedding_backward(stream, dtable, siglip2::Tensor{}, dy, ids, 4, 5, 2, 2);
  CHECK(y[0] == 1 && y[2] == 0 && y[4] == 0 && y[6] == 1);
  CHECK(dtable[0] == 7 && dtable[1] == 8 && dtable[8] == 1 && dtable[9] == 2 && dtable[4] == 0);
  CHECK(
      stream.noted.take() ==
      "token id -1 at position 1 is outside the table of 5 rows; check the tokenizer's vocabulary");
  CHECK(stream.noted.take().empty());
}

}  // namespace
