// attention_forward and attention_backward against the formulas in double. In bf16 the error may be
// twice that of the same formulas with every intermediate rounded to bf16, as a chain of separate
// kernels would.
#include "../../cuda/attention/attention.cu"
#include "../../cuda/attention/attention_backward.cu"
#include "../../cuda/attention/attention_forward.cu"
#include "../../cuda/attention/attention_plain.cu"
#include "../../cuda/attention/attention_single.cu"
#include "../../cuda/attention/attention_sm90.cu"
#include "../../cuda/attention/attention_sm90_backward.cu"
#include "../../cuda/attention/attention_sm90_whole.cu"
#include <numeric>
#include "check.h"

namespace {

using test::Buffer;
using test::Random;
using Lengths = std::vector<int>;

struct Case {
  int B, H, Nq, Nk, D;
  bool causal = false, shared = false;
  Lengths key_lengths = {}, q_packed = {}, k_packed = {};  // lengths of packed samples
  bool fused = true;                                       // q, k and v in one tensor
  bool unaligned = false;  // rows of H·D + 1 elements: no whole packs
  bool want_dq = true, want_dkv = true;
};

int total(const Lengths& lengths) {
  int sum = 0;
  for (const int n : lengths) sum += n;
  return sum;
}
Buffer<int32_t> starts_of(const Lengths& lengths) {
  if (lengths.empty()) return {};
  Buffer<int32_t> starts(static_cast<int64_t>(lengths.size()) + 1);
  int at = 0;
  for (size_t b = 0; b < lengths.size(); ++b)
    starts[static_cast<int64_t>(b)] = at, at += lengths[b];
  starts[static_cast<int64_t>(lengths.size())] = at;
  return starts;
}

// Where rows of one of q, k, v, o are.
struct Rows {
  int64_t offset, row;
  int64_t at(int64_t t, int h, int D, int d) const { return offset + t * row + h * D + d; }
};
struct Results {
  std::vector<double> o, lse, dq, dk, dv;
};

template <class T> struct Inputs {
  const Buffer<T>&q, &k, &v, &d_o;
  Rows q_rows, k_rows, v_rows;
};

// The H·D columns of `rows`, dense. `alone`: nobody else writes to the tensor, so everything else must still be NaN.
template <class T> std::vector<double> columns_of(const Buffer<T>& t, const Rows& rows,
                                                  int64_t count, int64_t C, bool alone) {
  std::vector<double> x;
  for (int64_t r = 0; r < count; ++r)
    for (int64_t c = 0; c < C; ++c) x.push_back(t.at(rows.offset + r * rows.row + c));
  for (int64_t i = 0; alone && i < t.size(); ++i) {
    const int64_t c = i % rows.row - rows.offset;
    if (c < 0 || c >= C) CHECK(std::isnan(t.at(i)));
  }
  return x;
}

template <class T> double rounded(double x, bool round) {
  return round ? static_cast<double>(static_cast<float>(static_cast<T>(static_cast<float>(x)))) : x;
}

// With `round`, every intermediate is rounded to T. Gradients have the layout of the tensors they belong to; elements
// between the rows are NaN in what the kernels write, so only those inside are returned: (rows, H·D).
template <class T> Results reference(const Case& c, const Inputs<T>& in, int64_t q_total,
                                     int64_t k_total, int64_t Tq, bool round) {
  const int64_t H = c.H, D = c.D, C = H * D;
  const double scale = 1 / std::sqrt(static_cast<double>(D));
  const auto qs = columns_of(in.q, in.q_rows, q_total, C, false),
             ks = columns_of(in.k, in.k_rows, k_total, C, false);
  const auto vs = columns_of(in.v, in.v_rows, k_total, C, false),
             d_os = columns_of(in.d_o, {0, C}, Tq, C, false);
  Results r;
  r.o.assign(static_cast<size_t>(Tq * C), 0);
  r.lse.assign(static_cast<size_t>(Tq * H), 0);
  r.dq.assign(static_cast<size_t>(q_total * C), 0);
  r.dk.assign(static_cast<size_t>(k_total * C), 0);
  r.dv = r.dk;
  const auto f = [&](double x) { return rounded<T>(x, round); };
  const auto at = [](int64_t i) { return static_cast<size_t>(i); };
  int64_t q0 = 0, k0 = 0;
  for (int b = 0; b < c.B; ++b) {
    const auto sb = static_cast<size_t>(b);
    const int nq = c.q_packed.empty() ? c.Nq : c.q_packed[sb],
              nk = c.k_packed.empty() ? c.Nk : c.k_packed[sb];
    const int keys = c.key_lengths.empty() ? nk : c.key_lengths[sb];
    const int64_t qr = c.shared ? 0 : q0;
    for (int64_t h = 0; h < H; ++h)
      for (int64_t i = 0; i < nq; ++i) {
        const auto n = c.causal ? std::min<int64_t>(keys, i + 1) : keys;
        std::vector<double> p(at(n));
        double most = -INFINITY, sum = 0, delta = 0;
        const double *q = &qs[at((qr + i) * C + h * D)], *d_o = &d_os[at((q0 + i) * C + h * D)];
        const double *k = ks.data() + k0 * C + h * D, *v = vs.data() + k0 * C + h * D;
        double *o = &r.o[at((q0 + i) * C + h * D)], *dq = &r.dq[at((qr + i) * C + h * D)];
        double *dk = r.dk.data() + k0 * C + h * D, *dv = r.dv.data() + k0 * C + h * D;
        for (int64_t j = 0; j < n; ++j) {
          p[at(j)] = f(scale * std::inner_product(q, q + D, k + j * C, 0.0));
          most = std::max(most, p[at(j)]);
        }
        for (double& x : p) sum += x = std::exp(x - most);
        for (double& x : p) x = f(x / sum);
        r.lse[at(q0 * H + h * nq + i)] = n ? most + std::log(sum) : -INFINITY;
        for (int d = 0; d < D; ++d) {
          for (int64_t j = 0; j < n; ++j) o[d] += p[at(j)] * v[j * C + d];
          o[d] = f(o[d]);
          delta += o[d] * d_o[d];
        }
        for (int64_t j = 0; j < n; ++j) {
          const double dp = std::inner_product(d_o, d_o + D, v + j * C, 0.0);
          const double pj = p[at(j)], ds = f(pj * (f(dp) - delta));
          for (int d = 0; d < D; ++d) {
            dq[d] += scale * ds * k[j * C + d];
            dk[j * C + d] += scale * ds * q[d];
            dv[j * C + d] += pj * d_o[d];
          }
        }
      }
    q0 += nq;
    k0 += nk;
  }
  for (auto* x : {&r.dq, &r.dk, &r.dv})
    for (double& y : *x) y = f(y);
  return r;
}

double nmse(const std::vector<double>& got, const std::vector<double>& want) {
  double error = 0, norm = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    const double d = got[i] - want[i];
    error += d * d;
    norm += want[i] * want[i];
  }
  return norm > 0 ? error / norm : error;
}

template <class T> std::string name_of(const Case& c) {
  std::string s = std::string(test::type_name<T>) + " B" + std::to_string(c.B) + " H" +
                  std::to_string(c.H) + " Nq" + std::to_string(c.Nq) + " Nk" +
                  std::to_string(c.Nk) + " D" + std::to_string(c.D);
  if (c.causal) s += " causal";
  if (c.shared) s += " shared";
  if (!c.key_lengths.empty()) s += " lengths";
  if (!c.q_packed.empty()) s += " packed queries";
  if (!c.k_packed.empty()) s += " packed keys";
  if (c.unaligned) s += " unaligned";
  return s;
}

template <class T> void run(Case c) {
  constexpr bool kHalf = std::is_same_v<T, __nv_bfloat16>;
  const auto longest = [](const Lengths& list) {
    return *std::max_element(list.begin(), list.end());
  };
  if (!c.q_packed.empty()) c.B = static_cast<int>(c.q_packed.size()), c.Nq = longest(c.q_packed);
  if (!c.k_packed.empty()) c.B = static_cast<int>(c.k_packed.size()), c.Nk = longest(c.k_packed);
  const std::string what = name_of<T>(c);
  const int64_t C = static_cast<int64_t>(c.H) * c.D, odd = c.unaligned ? 1 : 0;
  const int64_t Tq = c.q_packed.empty() ? c.B * c.Nq : total(c.q_packed);
  const int64_t Tk = c.k_packed.empty() ? c.B * c.Nk : total(c.k_packed);
  const int64_t q_total = c.shared ? c.Nq : Tq;
  test::HostStream stream;
  Random random(static_cast<unsigned>(Tq * 31 + Tk * 7 + C));
  // Three tensors, or one that holds all three side by side.
  const int64_t row = c.fused ? 3 * C + odd : C + odd;
  const auto d_o = random.buffer<T>(Tq * C), q = random.buffer<T>(q_total * row);
  const int64_t apart = c.fused ? 0 : Tk * row;
  const auto k = random.buffer<T>(apart), v = random.buffer<T>(apart);
  const Buffer<T> dq(q_total * row), dk(apart), dv(apart);
  const Inputs<T> in{q,
                     c.fused ? q : k,
                     c.fused ? q : v,
                     d_o,
                     {0, row},
                     {c.fused ? C : 0, row},
                     {c.fused ? 2 * C : odd, row}};
  const Buffer<T>&dk_in = c.fused ? dq : dk, &dv_in = c.fused ? dq : dv;
  Buffer<int32_t> lengths;
  if (!c.key_lengths.empty()) {
    lengths = Buffer<int32_t>(c.B);
    for (int b = 0; b < c.B; ++b) lengths[b] = c.key_lengths[static_cast<size_t>(b)];
  }
  const auto q_starts = starts_of(c.q_packed), k_starts = starts_of(c.k_packed);
  const Buffer<T> o(Tq * C);
  const Buffer<float> lse(Tq * c.H);
  const float scale = 1 / std::sqrt(static_cast<float>(c.D));
  siglip2::cuda::attention_forward(stream, o, lse, in.q, in.k, in.v, lengths, q_starts, k_starts,
                                   c.B, c.H, c.Nq, c.Nk, Tq, Tk, c.D, 0, row, in.k_rows.offset, row,
                                   in.v_rows.offset, row, c.shared, c.causal, scale);
  const siglip2::Tensor none{}, dq_out = c.want_dq ? siglip2::Tensor(dq) : none,
                                dk_out = c.want_dkv ? siglip2::Tensor(dk_in) : none,
                                dv_out = c.want_dkv ? siglip2::Tensor(dv_in) : none;
  siglip2::cuda::attention_backward(stream, dq_out, dk_out, dv_out, in.d_o, in.q, in.k, in.v, o,
                                    lse, lengths, q_starts, k_starts, c.B, c.H, c.Nq, c.Nk, Tq, Tk,
                                    c.D, 0, row, in.k_rows.offset, row, in.v_rows.offset, row,
                                    c.shared, c.causal, scale);

  const Results want = reference<T>(c, in, q_total, Tk, Tq, false);
  const Results naive = kHalf ? reference<T>(c, in, q_total, Tk, Tq, true) : want;
  const auto judge = [&](const char* name, const std::vector<double>& got,
                         const std::vector<double>& exact, const std::vector<double>& rough) {
    const double error = nmse(got, exact), most = kHalf ? 4 * nmse(rough, exact) + 1e-12 : 1e-10;
    char text[160];
    std::snprintf(text, sizeof text, " %s: normalised error %.3g is more than %.3g", name, error,
                  most);
    test::check(error <= most, what + text, __FILE__, __LINE__);
  };
  judge("o", columns_of(o, {0, C}, Tq, C, true), want.o, naive.o);
  for (int64_t i = 0; i < lse.size(); ++i) {
    const double w = want.lse[static_cast<size_t>(i)];
    if (!(std::isinf(w) ? lse.at(i) == w : std::fabs(lse.at(i) - w) < 1e-5 * (1 + std::fabs(w)))) {
      test::check(false, what + " lse", __FILE__, __LINE__);
      break;
    }
  }
  if (c.want_dq) judge("dq", columns_of(dq, in.q_rows, q_total, C, !c.fused), want.dq, naive.dq);
  if (!c.want_dkv) return;
  judge("dk", columns_of(dk_in, in.k_rows, Tk, C, !c.fused), want.dk, naive.dk);
  judge("dv", columns_of(dv_in, in.v_rows, Tk, C, !c.fused), want.dv, naive.dv);
}

Case self(int B, int H, int N, int D) { return {B, H, N, N, D}; }
Case packed(int H, const Lengths& lengths, int D) {
  Case c{0, H, 0, 0, D};
  c.q_packed = c.k_packed = lengths;
  return c;
}
Case cross(int B, int H, int Nq, int Nk, int D) {
  Case c{B, H, Nq, Nk, D};
  c.fused = false;
  return c;
}
template <class F> Case with(Case c, F&& change) {
  change(c);
  return c;
}

template <class T> void run_plain() {
  run<T>(with(self(2, 2, 9, 3), [](Case& c) { c.unaligned = true; }));
  run<T>(with(packed(1, {3, 0, 35}, 6), [](Case& c) { c.causal = c.unaligned = true; }));
  if (test::small) return;
  run<T>(with(self(1, 1, 41, 256), [](Case& c) { c.key_lengths = {33}; }));
  run<T>(with(cross(3, 1, 5, 40, 5), [](Case& c) { c.shared = true, c.key_lengths = {40, 0, 1}; }));
  run<T>(with(cross(2, 1, 1, 70, 7), [](Case& c) { c.shared = true; }));
  run<T>(with(cross(1, 2, 11, 3, 7), [](Case& c) { c.want_dq = false; }));
  run<T>(with(cross(1, 2, 11, 3, 7), [](Case& c) { c.want_dkv = false; }));
}
TEST(attention_plain_f32) { run_plain<float>(); }
TEST(attention_plain_bf16) { run_plain<__nv_bfloat16>(); }

template <class T> void run_single() {
  run<T>(with(cross(3, 2, 1, 37, 64), [](Case& c) {
    c.shared = true, c.key_lengths = {37, 0, 1};
  }));
  run<T>(with(cross(0, 1, 1, 0, 72), [](Case& c) { c.shared = true, c.k_packed = {0, 40, 1}; }));
  if (test::small) return;
  run<T>(cross(2, 1, 1, 130, 128));
  run<T>(cross(1, 1, 1, 33, 256));
  run<T>(self(2, 2, 1, 8));
  run<T>(with(cross(2, 1, 1, 17, 96), [](Case& c) { c.want_dq = false; }));
  run<T>(with(cross(2, 1, 1, 17, 16), [](Case& c) { c.want_dkv = false; }));
}
TEST(attention_single_f32) { run_single<float>(); }
TEST(attention_single_bf16) { run_single<__nv_bfloat16>(); }

using half = __nv_bfloat16;

// Backward in one kernel: 2, 4 or 8 warps by the number of keys.
TEST(attention_whole_heads) {
  run<half>(self(1, 1, 63, 72));
  run<half>(with(packed(2, {0, 1, 33}, 64), [](Case& c) { c.causal = true; }));
  if (test::small) return;
  run<half>(with(self(2, 1, 65, 64), [](Case& c) { c.key_lengths = {0, 64}; }));
  run<half>(packed(1, {65, 130, 2}, 72));
  run<half>(with(self(1, 1, 130, 40), [](Case& c) { c.causal = true; }));
  run<half>(with(cross(2, 1, 7, 70, 72), [](Case& c) {
    c.shared = true, c.key_lengths = {70, 0};
  }));
  run<half>(with(cross(1, 1, 70, 7, 64), [](Case& c) { c.want_dq = false; }));
  run<half>(with(cross(1, 1, 40, 7, 64), [](Case& c) { c.want_dkv = false; }));
}
// Backward in two passes.
TEST(attention_two_passes) {
  run<half>(self(1, 1, 33, 96));
  if (test::small) return;
  run<half>(with(self(1, 1, 70, 128), [](Case& c) { c.causal = true; }));
  run<half>(with(cross(2, 1, 70, 140, 80), [](Case& c) { c.key_lengths = {129, 0}; }));
  run<half>(with(packed(1, {1, 64, 0, 67}, 128), [](Case& c) { c.causal = true; }));
  run<half>(with(cross(3, 1, 3, 20, 96), [](Case& c) { c.shared = true; }));
  run<half>(with(self(1, 1, 270, 72), [](Case& c) { c.key_lengths = {261}; }));
  run<half>(with(self(1, 1, 262, 64), [](Case& c) { c.causal = true; }));
}

// Without wgmma: long sequences, and whole heads of more than 128 keys.
TEST(attention_of_older_gpus) {
  if (test::small) return;
  cuda_host::config().wgmma = false;
  run<half>(packed(1, {65, 130, 2}, 64));
  run<half>(with(self(1, 1, 130, 40), [](Case& c) { c.causal = true; }));
  run<half>(with(self(1, 1, 270, 72), [](Case& c) { c.key_lengths = {261}; }));
  run<half>(with(self(1, 1, 262, 64), [](Case& c) { c.causal = true; }));
  run<half>(with(cross(2, 1, 140, 140, 128), [](Case& c) { c.key_lengths = {129, 0}; }));
  cuda_host::config().wgmma = true;
}

// Backward in one kernel by wgmma: several heads to a block, all tiles or one, keys that end anywhere.
TEST(attention_sm90_whole_heads) {
  run<half>(with(self(1, 2, 130, 64), [](Case& c) { c.key_lengths = {129}; }));
  if (test::small) return;
  run<half>(self(1, 1, 256, 64));
  run<half>(self(2, 3, 196, 64));
  run<half>(with(self(1, 1, 200, 40), [](Case& c) { c.causal = true; }));
  run<half>(with(self(5, 1, 144, 64), [](Case& c) { c.key_lengths = {0, 144, 1, 128, 65}; }));
  run<half>(packed(2, {65, 0, 256, 130, 2, 1}, 64));
  run<half>(with(packed(1, {7, 190, 129}, 56), [](Case& c) { c.causal = true; }));
  run<half>(with(cross(2, 1, 7, 170, 64), [](Case& c) {
    c.shared = true, c.key_lengths = {170, 0};
  }));
  run<half>(with(cross(3, 1, 200, 140, 64), [](Case& c) { c.want_dq = false; }));
  run<half>(with(cross(3, 1, 40, 140, 64), [](Case& c) { c.want_dkv = false; }));
}

// By wgmma: one and several tiles, every width, what needs fewer columns. Of 72 columns, up to 256 keys only forward.
TEST(attention_sm90) {
  run<half>(with(self(1, 1, 132, 96), [](Case& c) { c.key_lengths = {129}; }));
  run<half>(with(self(1, 2, 132, 72), [](Case& c) {
    c.key_lengths = {129};
    c.want_dq = c.want_dkv = false;
  }));
  if (test::small) return;
  run<half>(self(1, 1, 300, 64));
  run<half>(self(1, 2, 261, 72));
  run<half>(self(1, 1, 256, 64));
  run<half>(self(1, 1, 200, 128));
  run<half>(self(1, 1, 260, 40));
  run<half>(self(1, 1, 130, 104));
  run<half>(with(self(1, 1, 150, 96), [](Case& c) { c.want_dq = false; }));
  run<half>(with(self(1, 1, 150, 96), [](Case& c) { c.want_dkv = false; }));
  run<half>(with(self(4, 1, 150, 88), [](Case& c) { c.key_lengths = {0, 150, 1, 128}; }));
  run<half>(with(self(3, 1, 260, 72), [](Case& c) { c.key_lengths = {0, 257, 1}; }));
  run<half>(with(self(1, 1, 290, 64), [](Case& c) { c.causal = true; }));
  run<half>(with(self(1, 1, 290, 72), [](Case& c) { c.causal = true; }));
  run<half>(with(packed(2, {0, 1, 300, 63, 150}, 64), [](Case& c) { c.causal = true; }));
  run<half>(packed(1, {7, 0, 300, 63, 150}, 72));
  run<half>(packed(1, {190, 3, 131}, 128));
  run<half>(with(cross(2, 1, 140, 40, 96), [](Case& c) {
    c.shared = true, c.key_lengths = {40, 0};
  }));
  run<half>(with(cross(2, 1, 129, 270, 64), [](Case& c) { c.shared = true; }));
  run<half>(with(cross(2, 1, 270, 131, 72), [](Case& c) { c.causal = true; }));
}

// A GPU cannot say that starts are wrong; it must stay inside the tensors and do the others.
TEST(attention_leaves_bad_starts_out) {
  constexpr int T = 8, D = 64;
  std::vector<Lengths> lists = {
      {0, 2, 1, 8}, {0, 3, 2147483647, 8}, {-2147483647, 3, 8, 8}, {0, 8, 8, 9}, {3, -1, 2, 8}};
  // Two samples that claim one row: two blocks write it, which is a race and stays inside the tensors.
  if (!test::under_tsan) lists.push_back({0, 3, 2, 8});
  for (const Lengths& list : lists) {
    test::HostStream stream;
    Random random(1);
    const Buffer<int32_t> starts(4);
    for (int i = 0; i < 4; ++i) starts[i] = list[static_cast<size_t>(i)];
    const auto qkv = random.buffer<half>(T * 3 * D), d_o = random.buffer<half>(T * D);
    const Buffer<half> o(T * D), dqkv(T * 3 * D);
    const Buffer<float> lse(T);
    siglip2::cuda::attention_forward(stream, o, lse, qkv, qkv, qkv, {}, starts, starts, 3, 1, 6, 6,
                                     T, T, D, 0, 3 * D, D, 3 * D, 2 * D, 3 * D, false, false,
                                     0.125f);
    siglip2::cuda::attention_backward(stream, dqkv, dqkv, dqkv, d_o, qkv, qkv, qkv, o, lse, {},
                                      starts, starts, 3, 1, 6, 6, T, T, D, 0, 3 * D, D, 3 * D,
                                      2 * D, 3 * D, false, false, 0.125f);
    for (int b = 0; b < 3; ++b) {
      const int64_t first = list[static_cast<size_t>(b)], last = list[static_cast<size_t>(b) + 1];
      if (first < 0 || last > T || first >= last || last - first > 6) continue;
      CHECK(!std::isnan(o.at(first * D)) && !std::isnan(dqkv.at(first * 3 * D)));
    }
  }
}

// Packed keys of no sample: the shared query still gets its gradient, which is 0.
TEST(attention_of_no_sample) {
  test::HostStream stream;
  Buffer<int32_t> starts(1);
  starts[0] = 0;
  const Buffer<half> q(64), none(0), dq(64);
  const Buffer<float> lse(0);
  siglip2::cuda::attention_backward(stream, dq, none, none, none, q, none, none, none, lse, {}, {},
                                    starts, 0, 1, 1, 0, 0, 0, 64, 0, 64, 0, 128, 64, 128, true,
                                    false, 1);
  for (int i = 0; i < 64; ++i) CHECK(dq.at(i) == 0);
}

TEST(attention_rejects_what_does_not_fit) {
  test::HostStream stream;
  const Buffer<float> x(6 * 24), o(6 * 8), lse(6);
  const Buffer<int32_t> starts(3);
  int thrown = 0;
  const auto attempt = [&](int64_t Nq, int64_t D, int64_t v_offset, bool shared,
                           siglip2::Tensor sums) {
    try {
      siglip2::cuda::attention_forward(stream, o, lse, x, x, x, {}, sums, sums, 2, 1, Nq, Nq, 6, 6,
                                       D, 0, 24, 8, 24, v_offset, 24, shared, false, 1);
    } catch (const std::invalid_argument&) {
      ++thrown;
    }
  };
  attempt(4, 8, 16, false, {});     // 2 · 4 rows are not 6
  attempt(3, 300, 16, false, {});   // too many columns
  attempt(3, 8, 17, false, {});     // V would reach over the end of a row
  attempt(3, 8, 16, true, starts);  // packed and shared
  CHECK(thrown == 4);
}

}  // namespace
