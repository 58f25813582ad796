// MicroAttention on the CPU: see contract.py for the arrays and reference.py for the meaning.
//
// A unit of work is one row, one KV head and one run of blocks; units are shared out over XLA's
// thread pool. Few queries (decode) read each key once and keep the queries in registers; many
// (prefill) go through two small matrix products a block. Long block lists are cut into runs whose
// partials are merged at the end, so that one long request keeps all threads busy.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <mutex>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

constexpr float kFloor = -1e30f;
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
constexpr int kRowColumns = 5;
constexpr int64_t kTokensPerRun = 2048;
constexpr int kManyQueries = 8;

struct Bf16 {
  uint16_t bits;
};

inline float ToFloat(float x) { return x; }
inline float ToFloat(Bf16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline void FromFloat(float x, float* to) { *to = x; }
inline void FromFloat(float x, Bf16* to) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  // Round to nearest, ties to even, as XLA does.
  to->bits = static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// exp for x <= 0 with a relative error below 2e-7, in a form that vectorises; 0 below -87.
inline float Exp(float x) {
  const float clamped = std::max(x, -87.0f);
  const float n = std::nearbyint(clamped * 1.44269504088896341f);
  const float r = (clamped - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const int32_t power = (static_cast<int32_t>(n) + 127) << 23;
  float scale;
  std::memcpy(&scale, &power, sizeof scale);
  return x < -87.0f ? 0.0f : p * scale;
}

// c[m, n] += a[m, k] * b[k, n], in tiles of kRows x kColumns that stay in registers.
template <int kRows, int kColumns>
void Multiply(int k, const float* a, int lda, const float* b, int ldb, float* c, int ldc) {
  float acc[kRows][kColumns];
  for (int i = 0; i < kRows; ++i)
    for (int j = 0; j < kColumns; ++j) acc[i][j] = c[i * ldc + j];
  for (int d = 0; d < k; ++d)
    for (int i = 0; i < kRows; ++i) {
      const float left = a[i * lda + d];
#pragma omp simd
      for (int j = 0; j < kColumns; ++j) acc[i][j] += left * b[d * ldb + j];
    }
  for (int i = 0; i < kRows; ++i)
    for (int j = 0; j < kColumns; ++j) c[i * ldc + j] = acc[i][j];
}

template <int kColumns>
void MultiplyRows(int m, int k, const float* a, int lda, const float* b, int ldb, float* c,
                  int ldc) {
  int i = 0;
  for (; i + 8 <= m; i += 8)
    Multiply<8, kColumns>(k, a + i * lda, lda, b, ldb, c + i * ldc, ldc);
  for (; i + 2 <= m; i += 2)
    Multiply<2, kColumns>(k, a + i * lda, lda, b, ldb, c + i * ldc, ldc);
  for (; i < m; ++i) Multiply<1, kColumns>(k, a + i * lda, lda, b, ldb, c + i * ldc, ldc);
}

void MatrixMultiply(int m, int n, int k, const float* a, int lda, const float* b, int ldb,
                    float* c, int ldc) {
  int j = 0;
  for (; j + 32 <= n; j += 32) MultiplyRows<32>(m, k, a, lda, b + j, ldb, c + j, ldc);
  for (; j + 16 <= n; j += 16) MultiplyRows<16>(m, k, a, lda, b + j, ldb, c + j, ldc);
  for (; j < n; ++j) MultiplyRows<1>(m, k, a, lda, b + j, ldb, c + j, ldc);
}

struct Shape {
  int64_t tiles, tile, q_heads, kv_heads, block_size, head_dim, rows;
  float scale, soft_cap;
  int64_t window;
  int64_t group() const { return q_heads / kv_heads; }
};

// Online softmax of `count` queries: running maximum, sum of weights, weighted sum of values.
struct Running {
  std::vector<float> top, total, acc;
  void Start(int64_t count, int64_t head_dim) {
    top.assign(count, kFloor);
    total.assign(count, 0.0f);
    acc.assign(count * head_dim, 0.0f);
  }
};

struct Unit {
  int64_t row, kv_head, begin, end;
  int64_t part;  // Index of its partial where the row was cut into runs, else -1.
};

struct Scratch {
  Running running;
  std::vector<float> queries, scores, keys, values;
};

// With a head width known to the compiler the loops over it become straight vector code; 0 takes
// it from the shape.
template <typename T, int kHeadDim>
struct Kernel {
  Shape shape;
  const T* q;
  const T* pool;
  const int32_t* block_ids;
  const int32_t* block_starts;
  const int32_t* rows;
  T* out;
  float* lse;
  std::vector<Unit> units;
  std::vector<Running> parts;
  std::atomic<int64_t> next{0}, done{0};
  std::mutex mutex;
  std::condition_variable finished;

  const int32_t* Row(int64_t row) const { return rows + row * kRowColumns; }
  int64_t HeadDim() const { return kHeadDim ? kHeadDim : shape.head_dim; }

  void MakeUnits() {
    for (int64_t row = 0; row < shape.rows; ++row) {
      const int32_t* r = Row(row);
      if (r[4] == 0) continue;
      const int64_t length = r[2] - r[1];
      const int64_t run = std::max<int64_t>(1, kTokensPerRun / shape.block_size);
      // Prefill rows are many already; cutting them too would only add merges.
      const int64_t runs = r[4] == 1 ? std::max<int64_t>(1, (length + run - 1) / run) : 1;
      for (int64_t head = 0; head < shape.kv_heads; ++head)
        for (int64_t i = 0; i < runs; ++i) {
          const int64_t begin = r[1] + length * i / runs, end = r[1] + length * (i + 1) / runs;
          int64_t part = -1;
          if (runs > 1) {
            part = static_cast<int64_t>(parts.size());
            parts.emplace_back();
          }
          units.push_back({row, head, begin, end, part});
        }
    }
  }

  // Takes units until none is left. Called by the caller's thread and by helpers of the pool.
  void Work() {
    Scratch scratch;
    const int64_t total = static_cast<int64_t>(units.size());
    for (int64_t i = next.fetch_add(1); i < total; i = next.fetch_add(1)) {
      Attend(units[i], scratch);
      if (done.fetch_add(1) + 1 == total) {
        std::lock_guard<std::mutex> lock(mutex);
        finished.notify_all();
      }
    }
  }

  void Wait() {
    std::unique_lock<std::mutex> lock(mutex);
    finished.wait(lock, [&] { return done.load() == static_cast<int64_t>(units.size()); });
  }

  void Attend(const Unit& unit, Scratch& scratch) {
    const int32_t* row = Row(unit.row);
    const int64_t group = shape.group(), head_dim = HeadDim();
    const int64_t num_queries = row[4] * group;
    // Query n is token n / group, head n % group of this KV head; scaled once here.
    scratch.queries.resize(num_queries * head_dim);
    for (int64_t n = 0; n < num_queries; ++n) {
      const T* from = QueryAt(row[0], n / group, unit.kv_head * group + n % group);
      for (int64_t d = 0; d < head_dim; ++d)
        scratch.queries[n * head_dim + d] = ToFloat(from[d]) * shape.scale;
    }
    Running& running = unit.part < 0 ? scratch.running : parts[unit.part];
    running.Start(num_queries, head_dim);
    for (int64_t entry = unit.begin; entry < unit.end; ++entry)
      Visit(unit, row, entry, num_queries, scratch, running);
    if (unit.part < 0) Write(unit, row, running);
  }

  const T* QueryAt(int64_t tile, int64_t token, int64_t head) const {
    return q + ((tile * shape.tile + token) * shape.q_heads + head) * HeadDim();
  }

  void Visit(const Unit& unit, const int32_t* row, int64_t entry, int64_t num_queries,
             Scratch& scratch, Running& running) {
    const int64_t size = shape.block_size, head_dim = HeadDim(), group = shape.group();
    const int64_t start = block_starts[entry];
    const int64_t first_at = row[3], last_at = row[3] + row[4] - 1;
    // Keys that some query sees: the only ones that are read, the others may hold anything.
    const int64_t lo = shape.window > 0 ? std::max<int64_t>(0, first_at - shape.window + 1 - start) : 0;
    const int64_t hi = std::min(size, last_at + 1 - start);
    if (lo >= hi) return;
    const int64_t num_keys = hi - lo;
    const T* block = pool + static_cast<int64_t>(block_ids[entry]) * 2 * shape.kv_heads * size * head_dim;
    const T* keys = block + (unit.kv_head * size + lo) * head_dim;
    const T* values = block + ((shape.kv_heads + unit.kv_head) * size + lo) * head_dim;
    scratch.scores.assign(num_queries * num_keys, 0.0f);
    float* scores = scratch.scores.data();
    const bool is_many = num_queries >= kManyQueries;
    if (is_many) {
      // Keys transposed, so that the products run along keys.
      scratch.keys.resize(head_dim * num_keys);
      for (int64_t s = 0; s < num_keys; ++s)
        for (int64_t d = 0; d < head_dim; ++d)
          scratch.keys[d * num_keys + s] = ToFloat(keys[s * head_dim + d]);
      MatrixMultiply(num_queries, num_keys, head_dim, scratch.queries.data(), head_dim,
                     scratch.keys.data(), num_keys, scores, num_keys);
    } else {
      Dots(num_queries, num_keys, scratch.queries.data(), keys, scores);
    }
    for (int64_t n = 0; n < num_queries; ++n)
      Weigh(first_at + n / group, start + lo, num_keys, scores + n * num_keys, n, running);
    if (is_many) {
      scratch.values.resize(num_keys * head_dim);
      for (int64_t i = 0; i < num_keys * head_dim; ++i) scratch.values[i] = ToFloat(values[i]);
      MatrixMultiply(num_queries, head_dim, num_keys, scores, num_keys, scratch.values.data(),
                     head_dim, running.acc.data(), head_dim);
    } else {
      AddValues(num_queries, num_keys, scores, values, running.acc.data());
    }
  }

  // Scores of few queries, four keys at a time so that their sums do not wait for each other.
  void Dots(int64_t num_queries, int64_t num_keys, const float* queries, const T* keys,
            float* scores) const {
    const int64_t head_dim = HeadDim();
    for (int64_t n = 0; n < num_queries; ++n) {
      const float* query = queries + n * head_dim;
      int64_t s = 0;
      for (; s + 4 <= num_keys; s += 4) {
        float a = 0, b = 0, c = 0, e = 0;
        const T* key = keys + s * head_dim;
#pragma omp simd reduction(+ : a, b, c, e)
        for (int64_t d = 0; d < head_dim; ++d) {
          const float x = query[d];
          a += x * ToFloat(key[d]);
          b += x * ToFloat(key[head_dim + d]);
          c += x * ToFloat(key[2 * head_dim + d]);
          e += x * ToFloat(key[3 * head_dim + d]);
        }
        float* to = scores + n * num_keys + s;
        to[0] = a, to[1] = b, to[2] = c, to[3] = e;
      }
      for (; s < num_keys; ++s) {
        float a = 0;
#pragma omp simd reduction(+ : a)
        for (int64_t d = 0; d < head_dim; ++d) a += query[d] * ToFloat(keys[s * head_dim + d]);
        scores[n * num_keys + s] = a;
      }
    }
  }

  void AddValues(int64_t num_queries, int64_t num_keys, const float* weights, const T* values,
                 float* acc) const {
    const int64_t head_dim = HeadDim();
    for (int64_t n = 0; n < num_queries; ++n) {
      float* to = acc + n * head_dim;
      const float* weight = weights + n * num_keys;
      int64_t s = 0;
      for (; s + 4 <= num_keys; s += 4) {
        const T* value = values + s * head_dim;
        const float a = weight[s], b = weight[s + 1], c = weight[s + 2], e = weight[s + 3];
#pragma omp simd
        for (int64_t d = 0; d < head_dim; ++d)
          to[d] += (a * ToFloat(value[d]) + b * ToFloat(value[head_dim + d])) +
                   (c * ToFloat(value[2 * head_dim + d]) + e * ToFloat(value[3 * head_dim + d]));
      }
      for (; s < num_keys; ++s)
        for (int64_t d = 0; d < head_dim; ++d) to[d] += weight[s] * ToFloat(values[s * head_dim + d]);
    }
  }

  // Turns one query's scores into weights, 0 where it must not see, and rescales what it has.
  void Weigh(int64_t at, int64_t first_key, int64_t num_keys, float* scores, int64_t n,
             Running& running) const {
    const int64_t lo = shape.window > 0 ? std::max<int64_t>(0, at - shape.window + 1 - first_key) : 0;
    const int64_t hi = std::max(lo, std::min(num_keys, at + 1 - first_key));
    if (shape.soft_cap > 0)
      for (int64_t s = lo; s < hi; ++s)
        scores[s] = shape.soft_cap * std::tanh(scores[s] / shape.soft_cap);
    float top = running.top[n];
#pragma omp simd reduction(max : top)
    for (int64_t s = lo; s < hi; ++s) top = std::max(top, scores[s]);
    float total = 0.0f;
#pragma omp simd reduction(+ : total)
    for (int64_t s = lo; s < hi; ++s) {
      scores[s] = Exp(scores[s] - top);
      total += scores[s];
    }
    std::fill(scores, scores + std::min(lo, num_keys), 0.0f);
    std::fill(scores + std::min(hi, num_keys), scores + num_keys, 0.0f);
    const float rescale = Exp(running.top[n] - top);
    running.top[n] = top;
    running.total[n] = running.total[n] * rescale + total;
    if (rescale != 1.0f) {
      float* acc = running.acc.data() + n * HeadDim();
      for (int64_t d = 0; d < HeadDim(); ++d) acc[d] *= rescale;
    }
  }

  void Write(const Unit& unit, const int32_t* row, const Running& running) {
    const int64_t group = shape.group(), head_dim = HeadDim();
    for (int64_t n = 0; n < row[4] * group; ++n) {
      const int64_t query =
          (row[0] * shape.tile + n / group) * shape.q_heads + unit.kv_head * group + n % group;
      const float total = running.total[n];
      if (total == 0.0f) continue;  // Stays (0, -inf).
      for (int64_t d = 0; d < head_dim; ++d)
        FromFloat(running.acc[n * head_dim + d] / total, out + query * head_dim + d);
      lse[query] = running.top[n] + std::log(total);
    }
  }

  // Merges the partials of rows that were cut into runs; those of one (row, head) are neighbours.
  void MergeParts() {
    for (size_t i = 0; i < units.size();) {
      if (units[i].part < 0) {
        ++i;
        continue;
      }
      Running& into = parts[units[i].part];
      size_t j = i + 1;
      for (; j < units.size() && units[j].part >= 0 && units[j].row == units[i].row &&
             units[j].kv_head == units[i].kv_head;
           ++j)
        Merge(parts[units[j].part], into);
      Write(units[i], Row(units[i].row), into);
      i = j;
    }
  }

  void Merge(const Running& from, Running& into) const {
    for (size_t n = 0; n < into.top.size(); ++n) {
      const float top = std::max(into.top[n], from.top[n]);
      const float left = Exp(into.top[n] - top), right = Exp(from.top[n] - top);
      into.top[n] = top;
      into.total[n] = into.total[n] * left + from.total[n] * right;
      for (int64_t d = 0; d < HeadDim(); ++d) {
        float& x = into.acc[n * HeadDim() + d];
        x = x * left + from.acc[n * HeadDim() + d] * right;
      }
    }
  }
};

template <typename T, int kHeadDim>
void Run(ffi::ThreadPool threads, const Shape& shape, const void* q, const void* pool,
         const int32_t* block_ids, const int32_t* block_starts, const int32_t* rows, void* out,
         float* lse) {
  // Shared: a helper may start after the caller has returned, and finds no unit left.
  auto kernel = std::make_shared<Kernel<T, kHeadDim>>();
  kernel->shape = shape;
  kernel->q = static_cast<const T*>(q);
  kernel->pool = static_cast<const T*>(pool);
  kernel->block_ids = block_ids;
  kernel->block_starts = block_starts;
  kernel->rows = rows;
  kernel->out = static_cast<T*>(out);
  kernel->lse = lse;
  const int64_t queries = shape.tiles * shape.tile * shape.q_heads;
  std::memset(out, 0, queries * shape.head_dim * sizeof(T));
  std::fill(lse, lse + queries, kMinusInfinity);
  kernel->MakeUnits();
  if (kernel->units.empty()) return;
  const int64_t helpers =
      std::min<int64_t>(threads.num_threads(), static_cast<int64_t>(kernel->units.size())) - 1;
  for (int64_t i = 0; i < helpers; ++i) threads.Schedule([kernel] { kernel->Work(); });
  kernel->Work();
  kernel->Wait();
  kernel->MergeParts();
}

template <typename T>
void RunFor(ffi::ThreadPool threads, const Shape& shape, const void* q, const void* pool,
            const int32_t* block_ids, const int32_t* block_starts, const int32_t* rows, void* out,
            float* lse) {
  auto run = Run<T, 0>;
  if (shape.head_dim == 64) run = Run<T, 64>;
  if (shape.head_dim == 128) run = Run<T, 128>;
  run(threads, shape, q, pool, block_ids, block_starts, rows, out, lse);
}

ffi::Error MicroAttention(ffi::ThreadPool threads, ffi::AnyBuffer q, ffi::AnyBuffer pool,
                          ffi::Buffer<ffi::S32> block_ids, ffi::Buffer<ffi::S32> block_starts,
                          ffi::Buffer<ffi::S32> rows, ffi::Result<ffi::AnyBuffer> out,
                          ffi::Result<ffi::Buffer<ffi::F32>> lse, float scale, int64_t window,
                          float soft_cap) {
  const auto qs = q.dimensions();
  const auto ps = pool.dimensions();
  Shape shape{};
  shape.tiles = qs[0], shape.tile = qs[1], shape.q_heads = qs[2], shape.head_dim = qs[3];
  shape.kv_heads = ps[2], shape.block_size = ps[3];
  shape.rows = rows.dimensions()[0];
  shape.scale = scale, shape.window = window, shape.soft_cap = soft_cap;
  if (q.element_type() != pool.element_type())
    return ffi::Error::InvalidArgument("queries and pool must have the same dtype");
  auto run = RunFor<float>;
  if (q.element_type() == ffi::BF16)
    run = RunFor<Bf16>;
  else if (q.element_type() != ffi::F32)
    return ffi::Error::InvalidArgument("queries must be float32 or bfloat16");
  run(threads, shape, q.untyped_data(), pool.untyped_data(), block_ids.typed_data(),
      block_starts.typed_data(), rows.typed_data(), out->untyped_data(), lse->typed_data());
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(DistkvMicroAttention, MicroAttention,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<float>("scale")
                                  .Attr<int64_t>("window")
                                  .Attr<float>("soft_cap"));
