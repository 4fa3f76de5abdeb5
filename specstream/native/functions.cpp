// Matmuls and attention for the few rows of a pass, in float32 with float16 weights, and a softmax's denominator.
//
// Every sum runs in an order that doesn't depend on other rows, or on where a row's keys lie among masked ones. So a
// row's result doesn't either.

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#if !defined(__AVX2__) || !defined(__FMA__) || !defined(__F16C__)
#error "This processor lacks AVX2, FMA or F16C."
#endif
#include <immintrin.h>

extern "C" __m256 Sleef_expf8_u10avx2(__m256);  // in PyTorch's library

namespace {

constexpr int64_t kLanes = 8;    // floats of a register
constexpr int64_t kPanel = 16;   // outputs of a panel: two registers
constexpr int64_t kRows = 6;     // most rows at a time: 12 sums, 2 of weights and an input fill the 16 registers
constexpr int64_t kAhead = 512;  // weights that are fetched in advance
constexpr int64_t kBlock = 64;   // most keys, or dimensions of a value, at a time
constexpr float kHidden = std::numeric_limits<float>::lowest() / 2;  // a mask hides a key by adding at most this

// ---- y = W x -------------------------------------------------------------------------------------------------------

template <int M>
void panel(const float* x, int64_t in, const uint16_t* weights, float* out, int64_t stride, int64_t valid) {
  __m256 low[M], high[M];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) low[m] = high[m] = _mm256_setzero_ps();
  for (int64_t i = 0; i < in; ++i, weights += kPanel) {
    _mm_prefetch(reinterpret_cast<const char*>(weights + kAhead), _MM_HINT_T0);
    const __m256 first = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(weights)));
    const __m256 second = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(weights + kLanes)));
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const __m256 value = _mm256_broadcast_ss(x + m * in + i);
      low[m] = _mm256_fmadd_ps(value, first, low[m]);
      high[m] = _mm256_fmadd_ps(value, second, high[m]);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
    float sums[kPanel];
    _mm256_storeu_ps(sums, low[m]);
    _mm256_storeu_ps(sums + kLanes, high[m]);
    for (int64_t j = 0; j < valid; ++j) out[m * stride + j] = sums[j];
  }
}

using Panel = void (*)(const float*, int64_t, const uint16_t*, float*, int64_t, int64_t);
constexpr Panel kPanels[kRows] = {panel<1>, panel<2>, panel<3>, panel<4>, panel<5>, panel<6>};

// ---- attention -----------------------------------------------------------------------------------------------------

struct Sizes {
  int64_t heads, shared, rows, dim, value_dim, capacity;  // shared: heads of keys and values
  float scale, softcap;                                   // softcap 0: none
};

// Sums of up to eight registers: factors[i] times the floats at rows + i * stride, one i after the other.
template <int R>
void weighted(const float* factors, int64_t count, const float* rows, int64_t stride, float* out) {
  __m256 sums[R];
#pragma GCC unroll 8
  for (int j = 0; j < R; ++j) sums[j] = _mm256_setzero_ps();
  for (int64_t i = 0; i < count; ++i) {
    if (factors[i] == 0) continue;  // as of a masked key
    const __m256 factor = _mm256_broadcast_ss(factors + i);
#pragma GCC unroll 8
    for (int j = 0; j < R; ++j)
      sums[j] = _mm256_fmadd_ps(factor, _mm256_loadu_ps(rows + i * stride + j * kLanes), sums[j]);
  }
#pragma GCC unroll 8
  for (int j = 0; j < R; ++j) _mm256_storeu_ps(out + j * kLanes, sums[j]);
}

using Weighted = void (*)(const float*, int64_t, const float*, int64_t, float*);
constexpr Weighted kWeighted[kBlock / kLanes] = {weighted<1>, weighted<2>, weighted<3>, weighted<4>,
                                                 weighted<5>, weighted<6>, weighted<7>, weighted<8>};

bool any_seen(const float* mask, int64_t keys) {
  __m256 seen = _mm256_setzero_ps();
  for (int64_t k = 0; k < keys; k += kLanes)
    seen = _mm256_or_ps(seen, _mm256_cmp_ps(_mm256_loadu_ps(mask + k), _mm256_set1_ps(kHidden), _CMP_GT_OQ));
  return _mm256_movemask_ps(seen);
}

__m256 capped(__m256 score, float softcap) {
  float each[kLanes];
  _mm256_storeu_ps(each, score);
  for (float& e : each) e = std::tanh(e / softcap) * softcap;
  return _mm256_loadu_ps(each);
}

float highest_of(__m256 lanes) {
  float each[kLanes], most = -INFINITY;
  _mm256_storeu_ps(each, lanes);
  for (const float e : each) most = e > most ? e : most;
  return most;
}

// Scores [capacity] of one query; -inf where the mask hides the key. Returns the highest.
float scores_of(const Sizes& n, const float* query, const float* keys, const float* mask, float* scores) {
  for (int64_t from = 0; from < n.capacity; from += kBlock) {
    const int64_t width = n.capacity - from < kBlock ? n.capacity - from : kBlock;
    if (any_seen(mask + from, width))
      kWeighted[width / kLanes - 1](query, n.dim, keys + from, n.capacity, scores + from);
  }
  const __m256 nothing = _mm256_set1_ps(-INFINITY), scale = _mm256_set1_ps(n.scale);
  __m256 highest = nothing;
  for (int64_t k = 0; k < n.capacity; k += kLanes) {
    __m256 score = _mm256_mul_ps(_mm256_loadu_ps(scores + k), scale);
    const __m256 added = _mm256_loadu_ps(mask + k);
    if (n.softcap != 0) score = capped(score, n.softcap);
    const __m256 seen = _mm256_cmp_ps(added, _mm256_set1_ps(kHidden), _CMP_GT_OQ);
    score = _mm256_blendv_ps(nothing, _mm256_add_ps(score, added), seen);
    highest = _mm256_max_ps(highest, score);
    _mm256_storeu_ps(scores + k, score);
  }
  return highest_of(highest);
}

// Turns scores into weights, unnormalised, and returns their sum. They are multiples of 2^-24, so it is exact.
double weights_of(float* scores, int64_t keys, float highest) {
  const __m256 one = _mm256_set1_ps(1);
  __m256d low = _mm256_setzero_pd(), high = _mm256_setzero_pd();
  for (int64_t k = 0; k < keys; k += kLanes) {
    __m256 weight = Sleef_expf8_u10avx2(_mm256_sub_ps(_mm256_loadu_ps(scores + k), _mm256_set1_ps(highest)));
    weight = _mm256_sub_ps(_mm256_add_ps(weight, one), one);
    low = _mm256_add_pd(low, _mm256_cvtps_pd(_mm256_castps256_ps128(weight)));
    high = _mm256_add_pd(high, _mm256_cvtps_pd(_mm256_extractf128_ps(weight, 1)));
    _mm256_storeu_ps(scores + k, weight);
  }
  double each[kLanes / 2];
  _mm256_storeu_pd(each, _mm256_add_pd(low, high));
  return each[0] + each[1] + each[2] + each[3];
}

// One row of one head. sink: a further score without a value; null: none.
void attend(const Sizes& n, const float* query, const float* keys, const float* values, const float* mask,
            const float* sink, float* weights, float* out) {
  float highest = scores_of(n, query, keys, mask, weights);
  if (sink && *sink > highest) highest = *sink;
  double total = weights_of(weights, n.capacity, highest);
  if (sink) total += std::exp(*sink - highest);
  for (int64_t from = 0; from < n.value_dim; from += kBlock) {
    const int64_t width = n.value_dim - from < kBlock ? n.value_dim - from : kBlock;
    kWeighted[width / kLanes - 1](weights, n.capacity, values + from, n.value_dim, out + from);
  }
  const __m256 share = _mm256_set1_ps(static_cast<float>(1 / total));
  for (int64_t d = 0; d < n.value_dim; d += kLanes)
    _mm256_storeu_ps(out + d, _mm256_mul_ps(_mm256_loadu_ps(out + d), share));
}

template <typename T>
T* data(AtenTensorHandle tensor) {
  void* pointer = nullptr;
  aoti_torch_get_data_ptr(tensor, &pointer);
  return static_cast<T*>(pointer);
}

int64_t* sizes(AtenTensorHandle tensor) {
  int64_t* found = nullptr;
  aoti_torch_get_sizes(tensor, &found);
  return found;
}

float* made(int64_t rows, int64_t columns, AtenTensorHandle* out) {
  const int64_t size[] = {rows, columns}, stride[] = {columns, 1};
  aoti_torch_empty_strided(2, size, stride, aoti_torch_dtype_float32(), aoti_torch_device_type_cpu(), -1, out);
  return data<float>(*out);
}

}  // namespace

extern "C" {

// x is [rows, in], weights [ceil(outputs / 16), in, 16], out [rows, outputs].
void specstream_linear_half(const float* x, int64_t rows, int64_t in, const uint16_t* weights, int64_t outputs,
                            float* out) {
  const int64_t panels = (outputs + kPanel - 1) / kPanel, tiles = (rows + kRows - 1) / kRows;
#pragma omp parallel for schedule(static)
  for (int64_t p = 0; p < panels; ++p) {
    const int64_t first = p * kPanel, valid = outputs - first < kPanel ? outputs - first : kPanel;
    for (int64_t t = 0; t < tiles; ++t) {  // rows are shared out evenly: 7 are 4 and 3, not 6 and 1
      const int64_t from = rows * t / tiles, count = rows * (t + 1) / tiles - from;
      kPanels[count - 1](x + from * in, in, weights + first * in, out + from * outputs + first, outputs, valid);
    }
  }
}

// query is [heads, rows, dim], keys [shared, dim, capacity], values [shared, capacity, value_dim], mask [rows, capacity]
// (added to the scores), sinks [heads] or null, out [rows, heads, value_dim]. sizes: heads, shared, rows, dim, value_dim,
// capacity; the last two must be multiples of 8.
void specstream_attend(const float* query, const float* keys, const float* values, const float* mask,
                       const float* sinks, const int64_t* sizes, double scale, double softcap, float* out) {
  const Sizes n{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], static_cast<float>(scale),
                static_cast<float>(softcap)};
#pragma omp parallel
  {
    std::vector<float> weights(n.capacity);
#pragma omp for collapse(2) schedule(static)
    for (int64_t h = 0; h < n.heads; ++h)
      for (int64_t r = 0; r < n.rows; ++r) {
        const int64_t of = h * n.shared / n.heads;
        attend(n, query + (h * n.rows + r) * n.dim, keys + of * n.dim * n.capacity,
               values + of * n.capacity * n.value_dim, mask + r * n.capacity, sinks ? sinks + h : nullptr,
               weights.data(), out + (r * n.heads + h) * n.value_dim);
      }
  }
}

// log(sum(exp(x))) of count numbers; NaN if one of them is.
float specstream_log_total(const float* x, int64_t count) {
  const int64_t whole = count / kLanes * kLanes;
  __m256 most = _mm256_set1_ps(-INFINITY), sums[4];
  for (__m256& sum : sums) sum = _mm256_setzero_ps();
  for (int64_t i = 0; i < whole; i += kLanes) most = _mm256_max_ps(_mm256_loadu_ps(x + i), most);
  float highest = highest_of(most);
  for (int64_t i = whole; i < count; ++i) highest = x[i] > highest ? x[i] : highest;
  const __m256 below = _mm256_set1_ps(highest);
  for (int64_t i = 0; i < whole; i += kLanes) {
    __m256& sum = sums[i / kLanes % 4];
    sum = _mm256_add_ps(sum, Sleef_expf8_u10avx2(_mm256_sub_ps(_mm256_loadu_ps(x + i), below)));
  }
  double total = 0;
  for (int64_t i = whole; i < count; ++i) total += std::exp(x[i] - highest);
  for (const __m256& sum : sums) {
    float each[kLanes];
    _mm256_storeu_ps(each, sum);
    for (const float e : each) total += e;
  }
  return static_cast<float>(std::log(total) + highest);
}

// The first two for compiled layers, which find them by these names.

AOTITorchError aoti_torch_cpu_linear_half(AtenTensorHandle x, AtenTensorHandle packed, int64_t outputs,
                                          AtenTensorHandle* out) {
  const int64_t* size = sizes(x);
  float* result = made(size[0], outputs, out);
  specstream_linear_half(data<float>(x), size[0], size[1], data<uint16_t>(packed), outputs, result);
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_cpu_attend(AtenTensorHandle query, AtenTensorHandle keys, AtenTensorHandle values,
                                     AtenTensorHandle mask, double scale, double softcap, AtenTensorHandle* sinks,
                                     AtenTensorHandle* out) {
  const int64_t *q = sizes(query), *k = sizes(keys), *v = sizes(values);
  const int64_t all[] = {q[1], k[1], q[2], q[3], v[3], k[3]};
  specstream_attend(data<float>(query), data<float>(keys), data<float>(values), data<float>(mask),
                    sinks ? data<float>(*sinks) : nullptr, all, scale, softcap, made(q[2], q[1] * v[3], out));
  return AOTI_TORCH_SUCCESS;
}
}
