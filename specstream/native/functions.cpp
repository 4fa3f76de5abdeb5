// Matmuls, attention and norms for the few rows of a pass, and what a step needs of its logits.
//
// Weights are in float16 with rows in float32, or both are in bfloat16 or in bytes; sums are in float32, or integers.
// Every sum runs in an order that doesn't depend on other rows, or on where a row's keys lie among masked ones. So a
// row's result doesn't either.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <limits>
#include <mutex>
#include <system_error>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#if !defined(__AVX2__) || !defined(__FMA__) || !defined(__F16C__)
#error "This processor lacks AVX2, FMA or F16C."
#endif
#include <immintrin.h>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define WIDE
#endif
#if defined(WIDE) && defined(__AVX512BF16__)
#define BFLOAT16
#endif
#if defined(WIDE) && defined(__AVX512VNNI__) || !defined(WIDE) && defined(__AVXVNNI__)
#define BYTES
#endif
#if defined(BFLOAT16) && defined(BYTES) && defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AMX_INT8__) && \
    defined(__linux__)
#define TILES
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace at {
int get_num_threads();  // in PyTorch's library
}

namespace {

struct Half {
  uint16_t bits;
};
struct Brain {  // bfloat16
  uint16_t bits;
};

}  // namespace

// ---- a register of floats ------------------------------------------------------------------------------------------

#ifdef WIDE

extern "C" __m512 Sleef_expf16_u10avx512f(__m512);  // in PyTorch's library

namespace {

using Floats = __m512;
using Doubles = __m512d;
using Integers = __m512i;
using Mask = __mmask16;
constexpr int64_t kLanes = 16;  // floats of a register
constexpr int kRows = 14;  // most rows of a matmul at a time: 28 sums, 2 of weights and an input, of 32 registers
constexpr int64_t kAhead = 8192;  // bytes of weights that are fetched in advance
constexpr int kWidth = 4;  // registers of keys, or of a value, that attention takes at a time

inline Floats all(float x) { return _mm512_set1_ps(x); }
inline Floats load(const float* x) { return _mm512_loadu_ps(x); }
inline Floats load(const Half* x) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x))); }
inline Floats load(const Brain* x) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
inline void store(float* to, Floats x) { _mm512_storeu_ps(to, x); }
inline Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline Floats larger(Floats a, Floats b) { return _mm512_max_ps(a, b); }
inline Floats exp(Floats x) { return Sleef_expf16_u10avx512f(x); }
inline Mask above(Floats x, Floats y) { return _mm512_cmp_ps_mask(x, y, _CMP_GT_OQ); }
inline Floats chosen(Mask mask, Floats yes, Floats no) { return _mm512_mask_blend_ps(mask, no, yes); }
inline bool any(Mask mask) { return mask; }
inline Floats magnitude(Floats x) { return _mm512_abs_ps(x); }
inline Integers integers(const void* x) { return _mm512_loadu_si512(x); }
inline Integers all_integers(int32_t x) { return _mm512_set1_epi32(x); }
inline Integers rounded(Floats x) { return _mm512_cvtps_epi32(x); }
inline Floats floats(Integers x) { return _mm512_cvtepi32_ps(x); }
inline Integers minus(Integers x, Integers y) { return _mm512_sub_epi32(x, y); }
inline Doubles low(Floats x) { return _mm512_cvtps_pd(_mm512_castps512_ps256(x)); }
inline Doubles high(Floats x) { return _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1)); }

}  // namespace

#else

extern "C" __m256 Sleef_expf8_u10avx2(__m256);  // in PyTorch's library

namespace {

using Floats = __m256;
using Doubles = __m256d;
using Integers = __m256i;
using Mask = __m256;
constexpr int64_t kLanes = 8;
constexpr int kRows = 6;  // 12 sums, 2 of weights and an input, of 16 registers
constexpr int64_t kAhead = 1024;
constexpr int kWidth = 2;

inline Floats all(float x) { return _mm256_set1_ps(x); }
inline Floats load(const float* x) { return _mm256_loadu_ps(x); }
inline Floats load(const Half* x) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x))); }
inline void store(float* to, Floats x) { _mm256_storeu_ps(to, x); }
inline Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
inline Floats larger(Floats a, Floats b) { return _mm256_max_ps(a, b); }
inline Floats exp(Floats x) { return Sleef_expf8_u10avx2(x); }
inline Mask above(Floats x, Floats y) { return _mm256_cmp_ps(x, y, _CMP_GT_OQ); }
inline Floats chosen(Mask mask, Floats yes, Floats no) { return _mm256_blendv_ps(no, yes, mask); }
inline bool any(Mask mask) { return _mm256_movemask_ps(mask); }
inline Floats magnitude(Floats x) { return _mm256_andnot_ps(all(-0.0f), x); }
inline Integers integers(const void* x) { return _mm256_loadu_si256(static_cast<const __m256i*>(x)); }
inline Integers all_integers(int32_t x) { return _mm256_set1_epi32(x); }
inline Integers rounded(Floats x) { return _mm256_cvtps_epi32(x); }
inline Floats floats(Integers x) { return _mm256_cvtepi32_ps(x); }
inline Integers minus(Integers x, Integers y) { return _mm256_sub_epi32(x, y); }
inline Doubles low(Floats x) { return _mm256_cvtps_pd(_mm256_castps256_ps128(x)); }
inline Doubles high(Floats x) { return _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1)); }

}  // namespace

#endif

namespace {

constexpr int64_t kPanel = 2 * kLanes;  // outputs of a panel
constexpr int kQueries = 4;             // most queries that attention takes at a time
constexpr int64_t kBlock = 64;          // keys that are left out if no query sees them
constexpr float kHidden = std::numeric_limits<float>::lowest() / 2;  // a mask hides a key by adding at most this

inline float number(float x) { return x; }

#ifdef BFLOAT16
inline float number(Brain x) { return _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(x.bits << 16))); }
inline void store(Brain* to, Floats x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh(x));
}
#endif

float highest_of(Floats lanes) {
  float each[kLanes], most = -INFINITY;
  store(each, lanes);
  for (const float e : each) most = e > most ? e : most;
  return most;
}

// ---- threads -------------------------------------------------------------------------------------------------------

// Threads that share a job: each takes small parts of its own share, then of what others have left. With OpenMP a job
// ends when every thread has come, so that a pass takes a hundred times as long if another program has one of the cores.
// Here nobody waits for a thread that has taken nothing. Between jobs, while one thread does what can't be shared, the
// others fetch the weights that the next matmul will read.
class Pool {
 public:
  struct Weights {
    const char* first = nullptr;
    int64_t bytes = 0;
  };

  // Calls work(from, to) for parts of 0 .. count - 1, in several threads. They read ``weights`` in equal shares.
  template <typename Work>
  void run(int64_t count, const Work& work, Weights weights = {}) {
    const int64_t threads = std::min<int64_t>(at::get_num_threads(), kMost);
    const std::unique_lock<std::mutex> alone(busy_, std::try_to_lock);  // taken: another run has the pool
    if (threads < 2 || count < 2 || !alone) return work(0, count);
    start(threads - 1);
    const uint32_t job = jobs_ + 1;
    call_ = [](const void* work, int64_t from, int64_t to) { (*static_cast<const Work*>(work))(from, to); };
    work_ = &work, count_ = count, threads_ = threads, done_ = 0;
    for (int64_t t = 0; t < threads; ++t) next_[t].value = uint64_t{job} << 32;
    if (weights.first) expect(weights);
    jobs_ = job;
    if (asleep_) jobs_.notify_all();
    take(job, 0);
    for (int spins = 0; done_ < threads * kParts; ++spins) pause(spins);
  }

 private:
  static constexpr int64_t kMost = 64;  // threads
  static constexpr int64_t kParts = 4;  // of a thread's share
  static constexpr int kPauses = 2000;  // some 100 microseconds, after which others may have the core
  static constexpr int kSpins = 6000;   // for which a thread waits before it sleeps: waking it takes long, above all in
                                        // a virtual machine, and the rest of a step comes between two passes
  static constexpr int64_t kFetched = 768 << 10;  // most bytes that a thread fetches: its second-level cache holds them
  static constexpr int64_t kAtATime = 1024;       // bytes fetched before it looks for another job
  static constexpr size_t kRemembered = 4096;     // matmuls of which it is known what follows
  struct alignas(64) Counter {
    std::atomic<uint64_t> value{0};
  };

  // Notes that these weights are being read, and expects those that followed them the last time.
  void expect(Weights weights) {
    if (after_.size() > kRemembered) after_.clear();
    after_[last_] = weights;
    last_ = weights.first;
    const Weights next = after_[last_];
    expected_bytes_ = next.bytes;
    expected_ = next.first;
  }

  // Fetches a thread's share of the expected weights until there is another job. ``fetched`` is what it has of them. They
  // may have been freed: fetching what isn't there does nothing.
  void fetch(int64_t self, uint32_t seen, Weights& fetched) {
    const char* weights = expected_;
    if (fetched.first != weights) fetched = {weights, 0};
    const int64_t bytes = expected_bytes_, threads = threads_, from = bytes * self / threads;
    const int64_t end = std::min(bytes * (self + 1) / threads - from, kFetched);
    for (; fetched.bytes < end && jobs_ == seen; fetched.bytes += kAtATime)
      for (int64_t line = 0; line < kAtATime; line += 64)
        _mm_prefetch(weights + from + fetched.bytes + line, _MM_HINT_T1);
  }

  static void pause(int spins) {
    if (spins < kPauses)
      _mm_pause();
    else
      std::this_thread::yield();
  }

  void start(int64_t helpers) {
    try {
      while (helpers_ < helpers) std::thread(&Pool::help, this, ++helpers_).detach();
    } catch (const std::system_error&) {  // no more threads: the others do the work
      helpers_ = kMost;
    }
  }

  // Parts of a job. A part is taken only if the job is still the same, and the job doesn't end before that part is done.
  // So what describes the job, read before, belongs to it.
  void take(uint32_t job, int64_t self) {
    const auto call = call_.load();
    const void* work = work_;
    const int64_t count = count_, threads = threads_, parts = threads * kParts;
    for (int64_t i = 0; i < threads; ++i) {
      const int64_t owner = (self + i) % threads;
      uint64_t next = next_[owner].value;
      while (next >> 32 == job && static_cast<int64_t>(next & UINT32_MAX) < kParts)
        if (next_[owner].value.compare_exchange_weak(next, next + 1)) {
          const int64_t part = owner * kParts + (next & UINT32_MAX);
          if (count * part / parts < count * (part + 1) / parts)
            call(work, count * part / parts, count * (part + 1) / parts);
          ++done_;
          next = next_[owner].value;
        }
    }
  }

  [[noreturn]] void help(int64_t self) {
    Weights fetched;
    for (uint32_t seen = 0;;) {
      if (self < threads_) fetch(self, seen, fetched);
      for (int spins = 0; jobs_ == seen && spins < kSpins; ++spins) pause(spins);
      if (jobs_ == seen) {
        ++asleep_;
        jobs_.wait(seen);
        --asleep_;
      }
      seen = jobs_;
      if (self < threads_) take(seen, self);
    }
  }

  std::mutex busy_;
  std::atomic<void (*)(const void*, int64_t, int64_t)> call_{nullptr};
  std::atomic<const void*> work_{nullptr};
  std::atomic<int64_t> count_{0}, threads_{0}, done_{0}, asleep_{0};
  std::atomic<uint32_t> jobs_{0};
  std::atomic<const char*> expected_{nullptr};
  std::atomic<int64_t> expected_bytes_{0};
  std::unordered_map<const char*, Weights> after_;
  const char* last_ = nullptr;
  Counter next_[kMost];  // the number of the job, and of the next part to take
  int64_t helpers_ = 0;
};

Pool& pool() {
  static Pool* one = new Pool;  // never destroyed: its threads use it until the process ends
  return *one;
}

// ---- y = W x + b ---------------------------------------------------------------------------------------------------

// Rows take the outputs' number format: float32, or bfloat16.
inline void put(float* to, Floats sums, int64_t count) {
  float each[kLanes];
  store(each, sums);
  std::copy(each, each + count, to);
}
#ifdef BFLOAT16
inline void put(Brain* to, Floats sums, int64_t count) {
  Brain each[kLanes];
  store(each, sums);
  std::copy(each, each + count, to);
}
#endif

struct HalfProduct {  // float16 weights and float32 rows
  using Row = float;
  using Weight = Half;
  using Weights = Floats;
  using Sum = Floats;
  static constexpr int64_t kInputs = 1;  // inputs of a step
  static Weights weights(const Weight* from) { return load(from); }
  static Floats input(const Row* from) { return all(*from); }
  static Floats plus(Floats sum, Floats input, Weights weights) { return fma(input, weights, sum); }
};

#ifdef BFLOAT16
struct BrainProduct {  // both in bfloat16, by an instruction that adds two products
  using Row = Brain;
  using Weight = Brain;
  using Weights = __m512bh;
  using Sum = Floats;
  static constexpr int64_t kInputs = 2;
  static Weights weights(const Weight* from) { return (__m512bh)_mm512_loadu_si512(from); }
  static __m512bh input(const Row* from) {
    int32_t both;
    __builtin_memcpy(&both, from, sizeof both);
    return (__m512bh)_mm512_set1_epi32(both);
  }
  static Floats plus(Floats sum, __m512bh input, Weights weights) { return _mm512_dpbf16_ps(sum, input, weights); }
};

struct BrainInFloats {  // the same weights with rows in float32, by two multiply-adds for every two products
  using Row = float;
  using Weight = Brain;
  using Weights = Integers;
  using Sum = Floats;
  static constexpr int64_t kInputs = 2;
  static Weights weights(const Weight* from) { return integers(from); }
  static const float* input(const Row* from) { return from; }
  static Floats plus(Floats sum, const float* input, Weights both) {
    const Floats even = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
    const Floats odd = _mm512_castsi512_ps(_mm512_and_si512(both, all_integers(static_cast<int32_t>(0xffff0000))));
    return fma(all(input[1]), odd, fma(all(input[0]), even, sum));
  }
};
#endif

#ifdef BYTES
struct ByteProduct {  // unsigned rows and signed weights, by an instruction that adds four products
  using Row = uint8_t;
  using Weight = int8_t;
  using Weights = Integers;
  using Sum = Integers;
  static constexpr int64_t kInputs = 4;
  static Weights weights(const Weight* from) { return integers(from); }
  static Integers input(const Row* from) {
    int32_t four;
    __builtin_memcpy(&four, from, sizeof four);
    return all_integers(four);
  }
  static Integers plus(Integers sum, Integers input, Weights weights) {
#ifdef WIDE
    return _mm512_dpbusd_epi32(sum, input, weights);
#else
    return _mm256_dpbusd_avx_epi32(sum, input, weights);
#endif
  }
};
#endif

// Outputs [M, kPanel] of a panel of weights [in / kInputs, kPanel, kInputs], of which the first ``valid`` exist.
// finish(sums, row, output) makes outputs, from ``output`` on, of the sums of a row.
template <typename P, typename Out, int M, typename Finish>
void panel(const typename P::Row* x, int64_t in, const typename P::Weight* weights, const Finish& finish, Out* out,
           int64_t stride, int64_t valid) {
  constexpr int64_t step = kLanes * P::kInputs;
  typename P::Sum sums[M][2] = {};
  for (int64_t i = 0; i < in; i += P::kInputs, weights += 2 * step) {
    const char* ahead = reinterpret_cast<const char*>(weights) + kAhead;
    _mm_prefetch(ahead, _MM_HINT_T0);
    if (2 * step * sizeof *weights > 64) _mm_prefetch(ahead + 64, _MM_HINT_T0);
    const typename P::Weights first = P::weights(weights), second = P::weights(weights + step);
#pragma GCC unroll 14
    for (int m = 0; m < M; ++m) {
      const auto input = P::input(x + m * in + i);
      sums[m][0] = P::plus(sums[m][0], input, first);
      sums[m][1] = P::plus(sums[m][1], input, second);
    }
  }
#pragma GCC unroll 14
  for (int m = 0; m < M; ++m) {
    put(out + m * stride, finish(sums[m][0], m, 0), std::min(kLanes, valid));
    if (valid > kLanes) put(out + m * stride + kLanes, finish(sums[m][1], m, kLanes), valid - kLanes);
  }
}

template <typename Weight>
Pool::Weights all_of(const Weight* weights, int64_t panels, int64_t in) {
  return {reinterpret_cast<const char*>(weights), panels * kPanel * in * static_cast<int64_t>(sizeof *weights)};
}

// x is [rows, in], weights [ceil(outputs / kPanel), in / kInputs, kPanel, kInputs], out [rows, outputs].
template <typename P, typename Out, typename Finish>
void product(const typename P::Row* x, int64_t rows, int64_t in, const typename P::Weight* weights, int64_t outputs,
             const Finish& finish, Out* out) {
  const int64_t panels = (outputs + kPanel - 1) / kPanel, tiles = (rows + kRows - 1) / kRows;
  const auto some = [&](int64_t p, int64_t end) {
    for (; p < end; ++p) {
      const int64_t first = p * kPanel, valid = std::min(outputs - first, kPanel);
      for (int64_t t = 0; t < tiles; ++t) {  // rows are shared out evenly: 15 are 8 and 7, not 14 and 1
        const int64_t from = rows * t / tiles, count = rows * (t + 1) / tiles - from;
        const auto finish_here = [&](typename P::Sum sums, int64_t row, int64_t output) {
          return finish(sums, from + row, first + output);
        };
        [&]<int... I>(std::integer_sequence<int, I...>) {
          using Panel = decltype(&panel<P, Out, 1, decltype(finish_here)>);
          constexpr Panel by_rows[] = {panel<P, Out, I + 1>...};
          by_rows[count - 1](x + from * in, in, weights + first * in, finish_here, out + from * outputs + first,
                             outputs, valid);
        }(std::make_integer_sequence<int, kRows>{});
      }
    }
  };
  pool().run(panels, some, all_of(weights, panels, in));
}

#ifdef TILES
// ---- the same in tiles (AMX) ---------------------------------------------------------------------------------------

// Whether Linux lets this process use tiles, which it must ask for.
const bool kTiles = [] {
  constexpr int kAsk = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kAsk, kTileData) == 0;
}();

constexpr int64_t kTileRows = 16, kTileBytes = 64;  // most rows of a tile, and the bytes of each

// Tiles 0 to 3 hold sums: of the first and second half of a panel's outputs, for up to sixteen rows and for up to
// sixteen more. Tiles 4 and 5 hold weights, 6 and 7 the inputs of these rows.
struct alignas(64) Shapes {
  uint8_t palette = 1, start = 0, unused[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
  explicit Shapes(int64_t count) {
    const uint8_t first = std::min(count, kTileRows), second = count - first;
    const uint8_t each[] = {first, first, second, second, kTileRows, kTileRows, first, second};
    for (int t = 0; t < 8; ++t) rows[t] = each[t], bytes[t] = each[t] ? kTileBytes : 0;
  }
};

// The instructions take numbers of tiles only as literals, so that each kind spells them out.
struct BrainTiles : BrainProduct {
  using Sum = float;
  static Floats sums(const Sum* from) { return load(from); }
  template <bool More>
  static void add() {
    _tile_dpbf16ps(0, 6, 4);
    _tile_dpbf16ps(1, 6, 5);
    if (!More) return;
    _tile_dpbf16ps(2, 7, 4);
    _tile_dpbf16ps(3, 7, 5);
  }
};

struct ByteTiles : ByteProduct {
  using Sum = int32_t;
  static Integers sums(const Sum* from) { return integers(from); }
  template <bool More>
  static void add() {
    _tile_dpbusd(0, 6, 4);
    _tile_dpbusd(1, 6, 5);
    if (!More) return;
    _tile_dpbusd(2, 7, 4);
    _tile_dpbusd(3, 7, 5);
  }
};

// Adds up a panel for up to sixteen rows of x, or with More for up to 32: sums [rows, kPanel].
template <typename P, bool More>
void tiled_panel(const typename P::Row* x, int64_t in, const typename P::Weight* weights, typename P::Sum* sums) {
  constexpr int64_t inputs = kTileBytes / sizeof *x, step = inputs * kPanel;
  constexpr int64_t apart = kPanel * P::kInputs * sizeof *weights, sums_apart = kPanel * sizeof *sums;
  const int64_t x_apart = in * sizeof *x;
  _tile_zero(0);
  _tile_zero(1);
  if (More) {
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t i = 0; i < in; i += inputs, weights += step) {
    const char* ahead = reinterpret_cast<const char*>(weights) + kAhead;
    for (int64_t line = 0; line < static_cast<int64_t>(step * sizeof *weights); line += 64)
      _mm_prefetch(ahead + line, _MM_HINT_T0);
    _tile_loadd(4, weights, apart);
    _tile_loadd(5, weights + kLanes * P::kInputs, apart);
    _tile_loadd(6, x + i, x_apart);
    if (More) _tile_loadd(7, x + kTileRows * in + i, x_apart);
    P::template add<More>();
  }
  _tile_stored(0, sums, sums_apart);
  _tile_stored(1, sums + kLanes, sums_apart);
  if (!More) return;
  sums += kTileRows * kPanel;
  _tile_stored(2, sums, sums_apart);
  _tile_stored(3, sums + kLanes, sums_apart);
}

// Whether the inputs fill whole tiles. It doesn't depend on the rows, since sums of tiles are rounded in their own way.
template <typename P>
bool fills_tiles(int64_t in) {
  return kTiles && in % (kTileBytes / sizeof(typename P::Row)) == 0;
}

// product by tiles, if the inputs fill them.
template <typename P, typename Out, typename Finish>
void tiled_product(const typename P::Row* x, int64_t rows, int64_t in, const typename P::Weight* weights,
                   int64_t outputs, const Finish& finish, Out* out) {
  constexpr int64_t most = 2 * kTileRows;
  const int64_t panels = (outputs + kPanel - 1) / kPanel;
  const auto some = [&](int64_t p, int64_t end) {
    typename P::Sum sums[most * kPanel];
    std::atomic_signal_fence(std::memory_order_seq_cst);  // rows are written before tiles are loaded
    for (int64_t shaped = 0; p < end; ++p) {
      const int64_t first = p * kPanel, valid = std::min(outputs - first, kPanel);
      for (int64_t from = 0; from < rows; from += most) {
        const int64_t count = std::min(rows - from, most);
        if (count != shaped) {
          const Shapes shapes(shaped = count);
          _tile_loadconfig(&shapes);
        }
        (count > kTileRows ? tiled_panel<P, true> : tiled_panel<P, false>)(x + from * in, in, weights + first * in, sums);
        for (int64_t m = 0; m < count; ++m) {
          const typename P::Sum* row = sums + m * kPanel;
          Out* to = out + (from + m) * outputs + first;
          put(to, finish(P::sums(row), from + m, first), std::min(kLanes, valid));
          if (valid > kLanes)
            put(to + kLanes, finish(P::sums(row + kLanes), from + m, first + kLanes), valid - kLanes);
        }
      }
    }
    _tile_release();
  };
  pool().run(panels, some, all_of(weights, panels, in));
}
#endif

struct Biased {
  const float* bias;  // [outputs, filled up to whole panels] or null
  Floats operator()(Floats sums, int64_t, int64_t output) const { return bias ? sums + load(bias + output) : sums; }
};

// y = W x + b; for bias see Biased.
template <typename P, typename Out>
void linear(const void* x, int64_t rows, int64_t in, const void* weights, const float* bias, int64_t outputs,
            void* out) {
  product<P>(static_cast<const typename P::Row*>(x), rows, in, static_cast<const typename P::Weight*>(weights), outputs,
             Biased{bias}, static_cast<Out*>(out));
}

#ifdef BFLOAT16
// Rounds its numbers to bfloat16.
struct Rounded {
  float number;
};
inline void put(Rounded* to, Floats sums, int64_t count) {
  Brain each[kLanes];
  store(each, sums);
  for (int64_t i = 0; i < count; ++i) to[i].number = number(each[i]);
}

// Whether the processor's instruction for bfloat16 is slower than two multiply-adds. On Intel's, thirteen rows take 1.4
// times as long with it; on AMD's it is the faster one.
const bool kSlowBrain = __builtin_cpu_is("intel");

// linear for weights and rows in bfloat16.
template <typename Out>
void linear_in_brain(const void* x, int64_t rows, int64_t in, const void* weights, const float* bias, int64_t outputs,
                     void* out) {
#ifdef TILES
  if (fills_tiles<BrainTiles>(in))
    return tiled_product<BrainTiles>(static_cast<const Brain*>(x), rows, in, static_cast<const Brain*>(weights), outputs,
                                     Biased{bias}, static_cast<Out*>(out));
#endif
  if (!kSlowBrain) return linear<BrainProduct, Out>(x, rows, in, weights, bias, outputs, out);
  std::vector<float> wide(rows * in);
  const Brain* from = static_cast<const Brain*>(x);
  int64_t i = 0;
  for (; i + kLanes <= rows * in; i += kLanes) store(&wide[i], load(from + i));
  for (; i < rows * in; ++i) wide[i] = number(from[i]);
  linear<BrainInFloats, Out>(wide.data(), rows, in, weights, bias, outputs, out);
}
#endif

#ifdef BYTES
// The vectors of a linear layer in bytes, all float32 but the offsets: ``smooth`` [in] scales the inputs; weights have
// the ``scale`` [outputs]; ``offset`` [outputs] is what the rows' zero point adds to a sum; bias [outputs] or null.
// Those of outputs are filled up to whole panels.
struct ByteLayer {
  const float *smooth, *scale, *bias;
  const int32_t* offset;
};

constexpr int kTop = 127, kMiddle = 128;  // largest magnitude of a byte, and zero of a row
constexpr float kTiny = 1e-20f;           // a row with smaller numbers is zero

// Quantises a row x [in], with a scale of its own, which it returns. Inputs must be a multiple of kLanes.
template <typename T>
float quantised(const T* x, const float* smooth, int64_t in, uint8_t* out) {
  Floats largest = all(kTiny), odd = all(0);
  for (int64_t i = 0; i < in; i += kLanes) {
    const Floats scaled = load(x + i) * load(smooth + i);
    largest = larger(magnitude(scaled), largest);
    odd += scaled * all(0);  // NaN if one of them is no finite number, and then so is the scale
  }
  float top = highest_of(largest);
  for (int64_t i = 0; i < kLanes; ++i) top += odd[i];
  const Floats factor = all(kTop / top);
  for (int64_t i = 0; i < in; i += kLanes) {
    int32_t each[kLanes];
    const Integers here = rounded(load(x + i) * load(smooth + i) * factor);
    __builtin_memcpy(each, &here, sizeof each);
    for (int64_t j = 0; j < kLanes; ++j) out[i + j] = static_cast<uint8_t>(each[j] + kMiddle);
  }
  return top / kTop;
}

template <typename T, typename Out>
void linear_in_bytes(const void* rows_of_x, int64_t rows, int64_t in, const int8_t* weights, const ByteLayer& layer,
                     int64_t outputs, void* out) {
  const T* x = static_cast<const T*>(rows_of_x);
  std::vector<uint8_t> bytes(rows * in);
  std::vector<float> shares(rows);
  for (int64_t r = 0; r < rows; ++r) shares[r] = quantised(x + r * in, layer.smooth, in, bytes.data() + r * in);
  const auto finish = [&](Integers sums, int64_t row, int64_t output) {
    const Floats scaled =
        floats(minus(sums, integers(layer.offset + output))) * load(layer.scale + output) * all(shares[row]);
    return layer.bias ? scaled + load(layer.bias + output) : scaled;
  };
#ifdef TILES
  if (fills_tiles<ByteTiles>(in))
    return tiled_product<ByteTiles>(bytes.data(), rows, in, weights, outputs, finish, static_cast<Out*>(out));
#endif
  product<ByteProduct>(bytes.data(), rows, in, weights, outputs, finish, static_cast<Out*>(out));
}
#endif

// ---- norm ----------------------------------------------------------------------------------------------------------

// out = x / sqrt(mean(x^2) + eps) * weight for every row of x [rows, size]; size must be a multiple of kLanes.
template <typename T>
void rms_norm(const T* x, int64_t rows, int64_t size, const T* weight, float eps, T* out) {
  for (int64_t row = 0; row < rows; ++row, x += size, out += size) {
    Floats squares = all(0);
    for (int64_t i = 0; i < size; i += kLanes) squares = fma(load(x + i), load(x + i), squares);
    double sum = 0;
    for (int64_t i = 0; i < kLanes; ++i) sum += squares[i];
    const Floats scale = all(1 / std::sqrt(static_cast<float>(sum / size) + eps));
    for (int64_t i = 0; i < size; i += kLanes) store(out + i, load(x + i) * scale * load(weight + i));
  }
}

// ---- attention -----------------------------------------------------------------------------------------------------

struct Sizes {
  int64_t heads, shared, rows, dim, value_dim, capacity;  // shared: heads of keys and values
  float scale, softcap;                                   // softcap 0: none
};

// Adds to sums [Q, R * kLanes] factors[q, i] times the floats at rows + i * stride, one i after the other. factors and
// sums of a query are ``apart`` and ``sums_apart`` after those of the query before.
template <typename F, typename T, int Q, int R>
void add_weighted(const F* factors, int64_t apart, int64_t count, const T* rows, int64_t stride, float* sums,
                  int64_t sums_apart) {
  Floats total[Q][R];
#pragma GCC unroll 4
  for (int q = 0; q < Q; ++q)
#pragma GCC unroll 4
    for (int j = 0; j < R; ++j) total[q][j] = load(sums + q * sums_apart + j * kLanes);
  for (int64_t i = 0; i < count; ++i) {
    Floats row[R];
#pragma GCC unroll 4
    for (int j = 0; j < R; ++j) row[j] = load(rows + i * stride + j * kLanes);
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q)
#pragma GCC unroll 4
      for (int j = 0; j < R; ++j) total[q][j] = fma(all(number(factors[q * apart + i])), row[j], total[q][j]);
  }
#pragma GCC unroll 4
  for (int q = 0; q < Q; ++q)
#pragma GCC unroll 4
    for (int j = 0; j < R; ++j) store(sums + q * sums_apart + j * kLanes, total[q][j]);
}

// The same for any number of floats.
template <typename F, typename T, int Q>
void add_all_weighted(const F* factors, int64_t apart, int64_t count, const T* rows, int64_t stride, int64_t floats,
                      float* sums, int64_t sums_apart) {
  int64_t j = 0;
  for (; j + kWidth * kLanes <= floats; j += kWidth * kLanes)
    add_weighted<F, T, Q, kWidth>(factors, apart, count, rows + j, stride, sums + j, sums_apart);
  for (; j < floats; j += kLanes)
    add_weighted<F, T, Q, 1>(factors, apart, count, rows + j, stride, sums + j, sums_apart);
}

template <typename T>
bool any_seen(const T* mask, int64_t keys) {
  bool seen = false;
  for (int64_t k = 0; k < keys && !seen; k += kLanes) seen = any(above(load(mask + k), all(kHidden)));
  return seen;
}

Floats capped(Floats score, float softcap) {
  float each[kLanes];
  store(each, score);
  for (float& e : each) e = std::tanh(e / softcap) * softcap;
  return load(each);
}

// Scales scores [capacity] of one query, which become -inf where the mask hides the key. Returns the highest.
template <typename T>
float masked(const Sizes& n, const T* mask, float* scores) {
  Floats highest = all(-INFINITY);
  for (int64_t k = 0; k < n.capacity; k += kLanes) {
    Floats score = load(scores + k) * all(n.scale);
    const Floats added = load(mask + k);
    if (n.softcap != 0) score = capped(score, n.softcap);
    score = chosen(above(added, all(kHidden)), score + added, all(-INFINITY));
    highest = larger(highest, score);
    store(scores + k, score);
  }
  return highest_of(highest);
}

// Turns scores into weights, unnormalised, and returns their sum. They are multiples of 2^-24, so it is exact.
double weights_of(float* scores, int64_t keys, float highest) {
  Doubles sum = low(all(0));
  for (int64_t k = 0; k < keys; k += kLanes) {
    const Floats weight = exp(load(scores + k) - all(highest)) + all(1) - all(1);
    sum += low(weight) + high(weight);
    store(scores + k, weight);
  }
  double total = 0;
  for (int64_t i = 0; i < kLanes / 2; ++i) total += sum[i];
  return total;
}

// The tensors of attend_all, which describes them.
template <typename T>
struct Tensors {
  const T *query, *keys, *values, *mask;
  const float* sinks;
  T* out;
};

// Queries ``first`` to first + Q - 1 of one head of keys, which are numbered by head, then row. scratch has room for
// capacity + value_dim floats for each.
template <typename T, int Q>
void attend(const Sizes& n, const Tensors<T>& t, int64_t first, float* scratch) {
  float *scores = scratch, *sums = scratch + Q * n.capacity;
  std::fill(scratch, sums + Q * n.value_dim, 0.0f);
  const int64_t head = first / n.rows * n.shared / n.heads;
  const T *keys = t.keys + head * n.dim * n.capacity, *values = t.values + head * n.capacity * n.value_dim;
  const T* mask[Q];
  for (int q = 0; q < Q; ++q) mask[q] = t.mask + (first + q) % n.rows * n.capacity;
  const auto seen = [&](int64_t from, int64_t count) {
    return std::any_of(mask, mask + Q, [=](const T* m) { return any_seen(m + from, count); });
  };
  const auto blocks = [&](const auto& work) {
    for (int64_t from = 0; from < n.capacity; from += kBlock) {
      const int64_t count = std::min(kBlock, n.capacity - from);
      if (seen(from, count)) work(from, count);
    }
  };
  blocks([&](int64_t from, int64_t count) {
    add_all_weighted<T, T, Q>(t.query + first * n.dim, n.dim, n.dim, keys + from, n.capacity, count, scores + from,
                              n.capacity);
  });
  double totals[Q];
  for (int q = 0; q < Q; ++q) {
    const float* sink = t.sinks ? t.sinks + (first + q) / n.rows : nullptr;
    float highest = masked(n, mask[q], scores + q * n.capacity);
    if (sink && *sink > highest) highest = *sink;
    totals[q] = weights_of(scores + q * n.capacity, n.capacity, highest);
    if (sink) totals[q] += std::exp(*sink - highest);
  }
  blocks([&](int64_t from, int64_t count) {
    add_all_weighted<float, T, Q>(scores + from, n.capacity, count, values + from * n.value_dim, n.value_dim,
                                  n.value_dim, sums, n.value_dim);
  });
  for (int q = 0; q < Q; ++q) {
    const int64_t h = (first + q) / n.rows, r = (first + q) % n.rows;
    T* out = t.out + (r * n.heads + h) * n.value_dim;
    const Floats share = all(static_cast<float>(1 / totals[q]));
    for (int64_t d = 0; d < n.value_dim; d += kLanes) store(out + d, load(sums + q * n.value_dim + d) * share);
  }
}

// query is [heads, rows, dim], keys [shared, dim, capacity], values [shared, capacity, value_dim], mask [rows, capacity]
// (added to the scores), sinks [heads] (further scores, without values) or null, out [rows, heads, value_dim]. capacity
// and value_dim must be multiples of kLanes.
template <typename T>
void attend_all(const Sizes& n, const Tensors<T>& t) {
  const int64_t of_one = n.heads / n.shared * n.rows;  // queries of one head of keys
  const int64_t groups = (of_one + kQueries - 1) / kQueries;
  pool().run(n.shared * groups, [&](int64_t i, int64_t end) {
    std::vector<float> scratch(kQueries * (n.capacity + n.value_dim));
    for (; i < end; ++i) {
      const int64_t from = i % groups * kQueries, count = std::min<int64_t>(kQueries, of_one - from);
      const int64_t first = i / groups * of_one + from;
      if (count == kQueries)
        attend<T, kQueries>(n, t, first, scratch.data());
      else
        for (int64_t q = 0; q < count; ++q) attend<T, 1>(n, t, first + q, scratch.data());
    }
  });
}

// ---- for compiled layers -------------------------------------------------------------------------------------------

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

int32_t dtype(AtenTensorHandle tensor) {
  int32_t found = 0;
  aoti_torch_get_dtype(tensor, &found);
  return found;
}

void* made(int64_t rows, int64_t columns, int32_t dtype, AtenTensorHandle* out) {
  const int64_t size[] = {rows, columns}, stride[] = {columns, 1};
  aoti_torch_empty_strided(2, size, stride, dtype, aoti_torch_device_type_cpu(), -1, out);
  return data<void>(*out);
}

}  // namespace

extern "C" {

// Outputs whose weights lie together, the floats of a register, the rows of a matmul that are computed at a time, and
// the formats that the processor multiplies.
int64_t specstream_panel() { return kPanel; }
int64_t specstream_lanes() { return kLanes; }
int64_t specstream_rows() { return kRows; }
bool specstream_has_bfloat16() {
#ifdef BFLOAT16
  return true;
#else
  return false;
#endif
}
bool specstream_has_bytes() {
#ifdef BYTES
  return true;
#else
  return false;
#endif
}

// See linear above. brain: whether weights and x are in bfloat16; else weights are in float16 and x in float32. out is in
// bfloat16 if brain, and in float32 otherwise or if wide: the same numbers.
void specstream_linear(bool brain, bool wide, const void* x, int64_t rows, int64_t in, const void* weights,
                       const float* bias, int64_t outputs, void* out) {
#ifdef BFLOAT16
  if (brain && wide) return linear_in_brain<Rounded>(x, rows, in, weights, bias, outputs, out);
  if (brain) return linear_in_brain<Brain>(x, rows, in, weights, bias, outputs, out);
#endif
  linear<HalfProduct, float>(x, rows, in, weights, bias, outputs, out);
}

// See ByteLayer above, and specstream_linear about brain and wide.
void specstream_linear_in_bytes(bool brain, bool wide, const void* x, int64_t rows, int64_t in, const void* weights,
                                const float* smooth, const float* scale, const int32_t* offset, const float* bias,
                                int64_t outputs, void* out) {
#ifdef BYTES
  const ByteLayer layer{smooth, scale, bias, offset};
  const auto* bytes = static_cast<const int8_t*>(weights);
#ifdef BFLOAT16
  if (brain && wide) return linear_in_bytes<Brain, Rounded>(x, rows, in, bytes, layer, outputs, out);
  if (brain) return linear_in_bytes<Brain, Brain>(x, rows, in, bytes, layer, outputs, out);
#endif
  linear_in_bytes<float, float>(x, rows, in, bytes, layer, outputs, out);
#endif
}

// See attend_all above. brain: whether all but the sinks are in bfloat16; else in float32. sizes: heads, shared, rows,
// dim, value_dim, capacity.
void specstream_attend(bool brain, const void* query, const void* keys, const void* values, const void* mask,
                       const float* sinks, const int64_t* sizes, double scale, double softcap, void* out) {
  const Sizes n{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], static_cast<float>(scale),
                static_cast<float>(softcap)};
  const auto attend = [&]<typename T>(T*) {
    attend_all(n, Tensors<T>{static_cast<const T*>(query), static_cast<const T*>(keys), static_cast<const T*>(values),
                             static_cast<const T*>(mask), sinks, static_cast<T*>(out)});
  };
#ifdef BFLOAT16
  if (brain) return attend(static_cast<Brain*>(nullptr));
#endif
  attend(static_cast<float*>(nullptr));
}

// See rms_norm above. brain: whether all are in bfloat16; else in float32.
void specstream_rms_norm(bool brain, const void* x, int64_t rows, int64_t size, const void* weight, double eps,
                         void* out) {
#ifdef BFLOAT16
  if (brain)
    return rms_norm(static_cast<const Brain*>(x), rows, size, static_cast<const Brain*>(weight),
                    static_cast<float>(eps), static_cast<Brain*>(out));
#endif
  rms_norm(static_cast<const float*>(x), rows, size, static_cast<const float*>(weight), static_cast<float>(eps),
           static_cast<float*>(out));
}

}  // extern "C"

namespace {

// log(sum(exp(x))) of count numbers; NaN if one of them is.
float log_total(const float* x, int64_t count) {
  const int64_t whole = count / kLanes * kLanes;
  Floats most = all(-INFINITY), sums[4];
  for (Floats& sum : sums) sum = all(0);
  for (int64_t i = 0; i < whole; i += kLanes) most = larger(load(x + i), most);
  float highest = highest_of(most);
  for (int64_t i = whole; i < count; ++i) highest = x[i] > highest ? x[i] : highest;
  for (int64_t i = 0; i < whole; i += kLanes) {
    Floats& sum = sums[i / kLanes % 4];
    sum += exp(load(x + i) - all(highest));
  }
  double total = 0;
  for (int64_t i = whole; i < count; ++i) total += std::exp(x[i] - highest);
  for (const Floats& sum : sums)
    for (int64_t i = 0; i < kLanes; ++i) total += sum[i];
  return static_cast<float>(std::log(total) + highest);
}

// Indices and values of the k highest of count numbers, the highest first, of equal ones the first.
void highest_k(const float* x, int64_t count, int64_t k, int64_t* indices, float* values) {
  int64_t found = 0;
  const auto offer = [&](int64_t i) {
    if (found == k && !(x[i] > values[k - 1])) return;
    int64_t place = found < k ? found++ : k - 1;
    for (; place > 0 && x[i] > values[place - 1]; --place)
      values[place] = values[place - 1], indices[place] = indices[place - 1];
    values[place] = x[i], indices[place] = i;
  };
  int64_t i = 0;
  for (; i < k; ++i) offer(i);
  for (; i + kLanes <= count; i += kLanes)
    if (any(above(load(x + i), all(values[k - 1]))))
      for (int64_t j = i; j < i + kLanes; ++j) offer(j);
  for (; i < count; ++i) offer(i);
}

// The tables of a pair map; see specstream/streams/pair_map.py.
struct PairMap {
  const float *above, *below;  // [vocab, rank] and [drafted, rank]
  const int64_t* names;        // [drafted]: the tokens' ids
  int64_t rank;
};

// The likeliest ``count`` tokens of one depth with logits [drafted]: their places there, ids and probabilities.
void likeliest(const float* logits, int64_t drafted, int64_t count, const PairMap& map, int64_t* places,
               int64_t* tokens, float* alone) {
  const float total = log_total(logits, drafted);
  highest_k(logits, drafted, count, places, alone);
  for (int64_t c = 0; c < count; ++c) {
    tokens[c] = map.names[places[c]];
    alone[c] = std::exp(alone[c] - total);
  }
}

// The probabilities [count, count] of the candidates of one depth after each of their parents. They move only among
// the candidates.
void after_parents(const int64_t* parents, const int64_t* places, const float* alone, int64_t count,
                   const PairMap& map, float weight, float* probs) {
  std::vector<float> below(map.rank * count);  // [rank, count], so that the inner loop runs over candidates
  float mass = 0;
  for (int64_t c = 0; c < count; ++c) {
    mass += alone[c];
    for (int64_t r = 0; r < map.rank; ++r) below[r * count + c] = map.below[places[c] * map.rank + r] * weight;
  }
  for (int64_t p = 0; p < count; ++p, probs += count) {
    const float* parent = map.above + parents[p] * map.rank;
    std::fill(probs, probs + count, 0.0f);
    for (int64_t r = 0; r < map.rank; ++r)
      for (int64_t c = 0; c < count; ++c) probs[c] += parent[r] * below[r * count + c];
    const float most = *std::max_element(probs, probs + count);
    float sum = 0;
    for (int64_t c = 0; c < count; ++c) sum += probs[c] = alone[c] * std::exp(probs[c] - most);
    for (int64_t c = 0; c < count; ++c) probs[c] *= mass / sum;
  }
}

}  // namespace

extern "C" {

// The likeliest ``count`` candidates of every row of logits [depths, drafted]: their ids and probabilities by themselves
// [depths, count], and after each candidate of the depth above, at the first depth after ``root`` [depths, count, count].
// weight [depths] is that of the pair map; for its tables see PairMap.
void specstream_weigh(const float* logits, int64_t depths, int64_t drafted, int64_t count, int64_t root,
                      const float* above, const float* below, const int64_t* names, int64_t rank, const float* weight,
                      int64_t* tokens, float* alone, float* probs) {
  const PairMap map{above, below, names, rank};
  std::vector<int64_t> places(depths * count), roots(count, root);
  pool().run(depths, [&](int64_t d, int64_t end) {
    for (; d < end; ++d)
      likeliest(logits + d * drafted, drafted, count, map, &places[d * count], tokens + d * count, alone + d * count);
  });
  for (int64_t d = 0; d < depths; ++d)
    after_parents(d ? tokens + (d - 1) * count : roots.data(), &places[d * count], alone + d * count, count, map,
                  weight[d], probs + d * count * count);
}

// The logarithm of the sum of exponentials of some rows of x [any, count], those at ``chosen`` [rows]; NaN if one of a
// row's numbers is.
void specstream_log_totals(const float* x, const int64_t* chosen, int64_t rows, int64_t count, float* out) {
  pool().run(rows, [=](int64_t row, int64_t end) {
    for (; row < end; ++row) out[row] = log_total(x + chosen[row] * count, count);
  });
}

// Indices and values [rows, k] of the k highest numbers of each row of x [rows, count], the highest first.
void specstream_highest_k(const float* x, int64_t rows, int64_t count, int64_t k, int64_t* indices, float* values) {
  pool().run(rows, [=](int64_t row, int64_t end) {
    for (; row < end; ++row) highest_k(x + row * count, count, k, indices + row * k, values + row * k);
  });
}

// Matmul and attention by the names by which compiled layers find them.

AOTITorchError aoti_torch_cpu_packed_linear(AtenTensorHandle x, AtenTensorHandle packed, AtenTensorHandle* bias,
                                            int64_t outputs, AtenTensorHandle* out) {
  const int64_t* size = sizes(x);
  const int32_t kind = dtype(x);
  void* result = made(size[0], outputs, kind, out);
  specstream_linear(kind == aoti_torch_dtype_bfloat16(), false, data<void>(x), size[0], size[1], data<void>(packed),
                    bias ? data<float>(*bias) : nullptr, outputs, result);
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_cpu_byte_linear(AtenTensorHandle x, AtenTensorHandle packed, AtenTensorHandle smooth,
                                          AtenTensorHandle scale, AtenTensorHandle offset, AtenTensorHandle* bias,
                                          int64_t outputs, AtenTensorHandle* out) {
  const int64_t* size = sizes(x);
  const int32_t kind = dtype(x);
  void* result = made(size[0], outputs, kind, out);
  specstream_linear_in_bytes(kind == aoti_torch_dtype_bfloat16(), false, data<void>(x), size[0], size[1], data<void>(packed),
                             data<float>(smooth), data<float>(scale), data<int32_t>(offset),
                             bias ? data<float>(*bias) : nullptr, outputs, result);
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_cpu_attend(AtenTensorHandle query, AtenTensorHandle keys, AtenTensorHandle values,
                                     AtenTensorHandle mask, double scale, double softcap, AtenTensorHandle* sinks,
                                     AtenTensorHandle* out) {
  const int64_t *q = sizes(query), *k = sizes(keys), *v = sizes(values);
  const int64_t all[] = {q[1], k[1], q[2], q[3], v[3], k[3]};
  const int32_t kind = dtype(query);
  void* result = made(q[2], q[1] * v[3], kind, out);
  specstream_attend(kind == aoti_torch_dtype_bfloat16(), data<void>(query), data<void>(keys), data<void>(values),
                    data<void>(mask), sinks ? data<float>(*sinks) : nullptr, all, scale, softcap, result);
  return AOTI_TORCH_SUCCESS;
}
}
