// Attention of one unit of work; compiled once per instruction set, DISTKV_SET is its name.
//
// FlashAttention's online softmax (arXiv 2205.14135) over the blocks of a run. Of each block first
// the keys of all heads are read, then the values: the order in which they lie in the pool.

#include "attend.h"

#include <cmath>
#include <type_traits>

#include "numbers.h"
#include "products.h"
#include "softmax.h"

namespace {

using distkv::Dtype;
using distkv::Padded;
using distkv::Problem;
using distkv::Row;
using distkv::Unit;

// What is prefetched lies at least this far ahead: about a memory latency of reading.
constexpr int64_t kAheadBytes = 8192;

struct State {
  float *top, *total, *sums;
};

State StateAt(float* at, int64_t num_queries) {
  return {at, at + Padded(num_queries), at + 2 * Padded(num_queries)};
}

// Query n of a unit: heads of the same KV head are neighbours, tokens come before KV heads.
int64_t QueryIndex(const Problem& problem, const Row& row, const Unit& unit, int64_t n) {
  const int64_t group = problem.group(), per_head = row.count * group;
  const int64_t head = (unit.head_begin + n / per_head) * group + n % group;
  return (row.tile * problem.tile + n % per_head / group) * problem.q_heads + head;
}

template <typename From, typename To>
void CopyQueries(const Problem& problem, const Row& row, const Unit& unit, int64_t num_queries,
                 To* queries) {
  const int64_t head_dim = problem.head_dim, width = Padded(head_dim);
  for (int64_t n = 0; n < num_queries; ++n) {
    const From* from =
        static_cast<const From*>(problem.q) + QueryIndex(problem, row, unit, n) * head_dim;
    To* to = queries + n * width;
    for (int64_t d = 0; d < head_dim; ++d) FromFloat(ToFloat(from[d]), to + d);
  }
}

template <typename Out>
void WriteAs(const Problem& problem, const Unit& unit, const State& state) {
  const Row row = RowAt(problem, unit.row);
  const int64_t head_dim = problem.head_dim, width = Padded(head_dim);
  for (int64_t n = 0; n < NumQueries(problem, unit); ++n) {
    if (state.total[n] == 0.0f) continue;  // Stays (0, -inf).
    const int64_t query = QueryIndex(problem, row, unit, n);
    const float factor = 1.0f / state.total[n];
    Out* out = static_cast<Out*>(problem.out) + query * head_dim;
    for (int64_t d = 0; d < head_dim; ++d) FromFloat(state.sums[n * width + d] * factor, out + d);
    problem.lse[query] = state.top[n] + std::log(state.total[n]);
  }
}

void Write(const Problem& problem, const Unit& unit, const State& state) {
  if (problem.q_dtype == Dtype::kBfloat16)
    WriteAs<Bf16>(problem, unit, state);
  else
    WriteAs<float>(problem, unit, state);
}

// `Query` is what queries are multiplied as.
template <typename Query, typename Key>
struct Attention {
  const Problem& problem;
  const Unit& unit;
  const Row row;
  const int64_t heads, per_head, num_queries, width;
  const bool is_few;
  const int64_t entries_at_once;

  Attention(const Problem& problem, const Unit& unit)
      : problem(problem),
        unit(unit),
        row(RowAt(problem, unit.row)),
        heads(unit.head_end - unit.head_begin),
        per_head(row.count * problem.group()),
        num_queries(heads * per_head),
        width(Padded(problem.head_dim)),
        is_few(per_head <= distkv::kFewQueries),
        entries_at_once(is_few && row.count == 1
                            ? std::max<int64_t>(1, distkv::kKeysAtOnce / problem.block_size)
                            : 1) {}

  // Index of the first slot of a block's keys (part 0) or values (part 1).
  int64_t Slots(int64_t entry, int64_t part, int64_t head) const {
    const int64_t block = problem.block_ids[entry];
    return ((block * 2 + part) * problem.kv_heads + unit.head_begin + head) * problem.block_size;
  }
  const Key* Numbers(int64_t slots) const {
    return static_cast<const Key*>(problem.pool) + slots * problem.head_dim;
  }
  // Starts fetching the scales of what will be read soon after this strip of keys or values, and
  // returns where its numbers are; null past the unit's last.
  const char* Ahead(int64_t begin, int64_t count, int64_t part, int64_t entry, int64_t head) const {
    const int64_t strip = problem.block_size * problem.head_dim * sizeof(Key);
    int64_t index = (part * count + entry - begin) * heads + head;
    index += (kAheadBytes + strip - 1) / strip;
    while (index >= 2 * count * heads) {
      index -= 2 * count * heads;
      begin += count;
      count = std::min(entries_at_once, unit.end - begin);
      if (count <= 0) return nullptr;
    }
    part = index / (count * heads);
    entry = begin + index % (count * heads) / heads;
    const int64_t slots = Slots(entry, part, index % heads);
    if (problem.scales)
      Prefetch(reinterpret_cast<const char*>(problem.scales + slots),
               problem.block_size * sizeof(float));
    return reinterpret_cast<const char*>(Numbers(slots));
  }

  void Run(float* scratch) const {
    const State state = StateAt(unit.state ? unit.state : scratch, num_queries);
    std::fill(state.top, state.top + num_queries, kFloor);
    std::fill(state.total, state.total + num_queries, 0.0f);
    std::fill(state.sums, state.sums + num_queries * width, 0.0f);
    scratch += StateFloats(problem, num_queries);
    Query* queries = reinterpret_cast<Query*>(scratch);
    if (problem.q_dtype == Dtype::kBfloat16)
      CopyQueries<Bf16>(problem, row, unit, num_queries, queries);
    else
      CopyQueries<float>(problem, row, unit, num_queries, queries);
    scratch += num_queries * width;
    for (int64_t entry = unit.begin; entry < unit.end; entry += entries_at_once)
      Visit(entry, std::min(entries_at_once, unit.end - entry), state, queries, scratch);
    if (!unit.state) Write(problem, unit, state);
  }

  // The keys of a block that some query sees: the only ones that are read, the others may hold
  // anything.
  struct Seen {
    int64_t entry, lo, count;
    int64_t at;  // Where their scores begin.
  };

  Seen SeenOf(int64_t entry, int64_t at) const {
    const int64_t start = problem.block_starts[entry], last = row.position + row.count - 1;
    const int64_t lo = problem.window > 0
                           ? std::max<int64_t>(0, row.position - problem.window + 1 - start)
                           : 0;
    const int64_t hi = std::min(problem.block_size, last + 1 - start);
    return {entry, lo, std::max<int64_t>(0, hi - lo), at};
  }

  void Visit(int64_t begin, int64_t count, const State& state, const Query* queries,
             float* scratch) const {
    const int64_t head_dim = problem.head_dim, group = problem.group();
    Seen blocks[distkv::kKeysAtOnce];
    int64_t num_keys = 0, num_blocks = 0;
    for (int64_t entry = begin; entry < begin + count; ++entry) {
      const Seen block = SeenOf(entry, num_keys);
      if (block.count > 0) blocks[num_blocks++] = block;
      num_keys += block.count;
    }
    if (num_blocks == 0) return;
    const int64_t stride = (num_keys + kLanes - 1) / kLanes * kLanes;
    float* rescale = scratch;
    float* scales = rescale + Padded(num_queries);
    float* scores = scales + 2 * Padded(num_keys);
    float* numbers = scores + num_queries * stride;
    for (int64_t i = 0; i < num_blocks; ++i)
      for (int64_t head = 0; head < heads; ++head) {
        const Seen& block = blocks[i];
        const Key* keys = Numbers(Slots(block.entry, 0, head) + block.lo);
        const Query* from = queries + head * per_head * width;
        float* to = scores + head * per_head * stride + block.at;
        if (is_few)
          Dots(per_head, block.count, from, width, keys, head_dim, to, stride,
               Ahead(begin, count, 0, block.entry, head));
        else if constexpr (std::is_same_v<Query, float>)
          ManyDots(block.count, stride, from, keys, to, numbers);
      }
    for (int64_t head = 0; head < heads; ++head) {
      const Scales factors = ScalesOf(blocks, num_blocks, head, stride, scales);
      for (int64_t n = 0; n < per_head; ++n) {
        // Several blocks are taken together for one token only, which sees every key of theirs.
        const int64_t at = row.position + n / group - problem.block_starts[begin] - blocks[0].lo;
        const int64_t hi = row.count == 1 ? num_keys : std::min(num_keys, at + 1);
        const int64_t lo = row.count == 1 || problem.window == 0 ? 0 : at - problem.window + 1;
        const int64_t query = head * per_head + n;
        Weigh(problem, std::max<int64_t>(0, lo), hi, stride, problem.scale * kFactor<Key>, factors,
              scores + query * stride, state.top + query, state.total + query, rescale + query);
      }
    }
    for (int64_t i = 0; i < num_blocks; ++i)
      for (int64_t head = 0; head < heads; ++head) {
        const Seen& block = blocks[i];
        const Key* values = Numbers(Slots(block.entry, 1, head) + block.lo);
        const float* weights = scores + head * per_head * stride + block.at;
        float* sums = state.sums + head * per_head * width;
        const float* factors = i == 0 ? rescale + head * per_head : nullptr;
        if (is_few) {
          AddWeighted(per_head, block.count, weights, stride, values, head_dim, sums, width,
                      factors, Ahead(begin, count, 1, block.entry, head));
        } else {
          Convert(block.count * head_dim, values, numbers);
          AddWeighted<float>(per_head, block.count, weights, stride, numbers, head_dim, sums, width,
                             factors, nullptr);
        }
      }
  }

  // Collects the scales of a head's keys and values, zeros after them.
  Scales ScalesOf(const Seen* blocks, int64_t num_blocks, int64_t head, int64_t stride,
                  float* to) const {
    if (!problem.scales) return {nullptr, nullptr};
    const Scales scales{to, to + stride};
    std::memset(to, 0, 2 * stride * sizeof(float));
    for (int64_t i = 0; i < num_blocks; ++i) {
      const Seen& block = blocks[i];
      const float* keys = problem.scales + Slots(block.entry, 0, head) + block.lo;
      const float* values = problem.scales + Slots(block.entry, 1, head) + block.lo;
      for (int64_t s = 0; s < block.count; ++s) {
        scales.keys[block.at + s] = keys[s];
        scales.values[block.at + s] = values[s] * kFactor<Key>;
      }
    }
    return scales;
  }

  static void Convert(int64_t count, const Key* from, float* to) {
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) Store(Load(from + i), to + i);
    if (i < count) {
      const Floats rest = LoadSome(from + i, count - i);
      std::memcpy(to + i, &rest, (count - i) * sizeof(float));
    }
  }

  // With keys transposed the products run along keys, and there is nothing to sum across lanes.
  void ManyDots(int64_t num_keys, int64_t stride, const float* queries, const Key* keys,
                float* scores, float* numbers) const {
    const int64_t head_dim = problem.head_dim;
    float* transposed = numbers + Padded(problem.block_size) * width;
    Convert(num_keys * head_dim, keys, numbers);
    for (int64_t d = 0; d < head_dim; ++d)
      for (int64_t s = 0; s < num_keys; ++s) transposed[d * stride + s] = numbers[s * head_dim + d];
    for (int64_t d = 0; d < head_dim; ++d)
      std::fill(transposed + d * stride + num_keys, transposed + (d + 1) * stride, 0.0f);
    std::memset(scores, 0, per_head * stride * sizeof(float));
    AddWeighted<float>(per_head, head_dim, queries, width, transposed, stride, scores, stride,
                       nullptr, nullptr);
  }
};

template <typename Query, typename Key>
void Run(const Problem& problem, const Unit& unit, float* scratch) {
  Attention<Query, Key>(problem, unit).Run(scratch);
}

void Attend(const Problem& problem, const Unit& unit, float* scratch) {
  auto run = Run<float, float>;
  if (problem.kv_dtype == Dtype::kBfloat16) run = Run<float, Bf16>;
  if (problem.kv_dtype == Dtype::kInt8) run = Run<float, int8_t>;
  if (problem.kv_dtype == Dtype::kFloat8) run = Run<float, Fp8>;
#if defined(__AVX512BF16__)
  const bool is_few =
      RowAt(problem, unit.row).count * problem.group() <= distkv::kFewQueries;
  if (is_few && problem.q_dtype == Dtype::kBfloat16 && problem.kv_dtype == Dtype::kBfloat16)
    run = Run<Bf16, Bf16>;
#endif
  run(problem, unit, scratch);
}

void Merge(const Problem& problem, const Unit* units, int64_t count) {
  const int64_t num_queries = NumQueries(problem, units[0]), width = Padded(problem.head_dim);
  const State into = StateAt(units[0].state, num_queries);
  for (int64_t i = 1; i < count; ++i) {
    const State from = StateAt(units[i].state, num_queries);
    for (int64_t n = 0; n < num_queries; ++n) {
      const float top = std::max(into.top[n], from.top[n]);
      const float left = Exp(into.top[n] - top), right = Exp(from.top[n] - top);
      into.top[n] = top;
      into.total[n] = into.total[n] * left + from.total[n] * right;
      for (int64_t d = n * width; d < (n + 1) * width; d += kLanes)
        Store(Load(into.sums + d) * left + Load(from.sums + d) * right, into.sums + d);
    }
  }
  Write(problem, units[0], into);
}

}  // namespace

namespace distkv {

#define DISTKV_TEXT_OF(name) #name
#define DISTKV_TEXT(name) DISTKV_TEXT_OF(name)
extern const InstructionSet DISTKV_SET;
const InstructionSet DISTKV_SET = {DISTKV_TEXT(DISTKV_SET), Attend, Merge};

}  // namespace distkv
