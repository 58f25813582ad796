// MicroAttention on the CPU: see contract.py for the arrays and reference.py for the meaning.
//
// The rows are cut into units of work: runs of blocks, so that one long request keeps all threads
// busy, and where there are few of them also KV heads. Units are shared out over XLA's thread
// pool; the caller takes units too. Runs end at fixed places, so that a row's result does not
// depend on what else is in the batch.

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <mutex>
#include <string_view>
#include <vector>

#include "attend.h"
#include "instruction_sets.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

using distkv::Dtype;
using distkv::InstructionSet;
using distkv::Problem;
using distkv::Row;
using distkv::Unit;

constexpr int64_t kTokensPerRun = 512;
// Less than this is read before a helper has woken up.
constexpr int64_t kBytesPerThread = 128 << 10;
// Looks at a counter this often before it sleeps: about 20 microseconds.
constexpr int kSpins = 500;

// Floats on cache line boundaries; what was in them is lost when it grows.
class Floats {
 public:
  float* Make(int64_t count) {
    constexpr int64_t kLine = 64 / sizeof(float);
    if (static_cast<int64_t>(floats_.size()) < count + kLine) {
      floats_.clear();
      floats_.resize(count + kLine);
    }
    const auto address = reinterpret_cast<uintptr_t>(floats_.data());
    return reinterpret_cast<float*>((address + 63) / 64 * 64);
  }

 private:
  std::vector<float> floats_;
};

class Call {
 public:
  Call(const Problem& problem, const InstructionSet& set, int64_t num_threads)
      : problem_(problem), set_(set) {
    MakeUnits(num_threads);
  }

  int64_t num_units() const { return static_cast<int64_t>(units_.size()); }
  int64_t num_bytes() const { return num_bytes_; }

  // Takes units until none is left. Called by the caller's thread and by helpers of the pool.
  void Work() {
    // Kept from call to call: fresh memory would cost page faults each time.
    thread_local Floats memory;
    float* scratch = nullptr;
    for (int64_t i = next_.fetch_add(1); i < num_units(); i = next_.fetch_add(1)) {
      if (!scratch) scratch = memory.Make(scratch_floats_);
      set_.attend(problem_, units_[i], scratch);
      if (done_.fetch_add(1) + 1 == num_units()) {
        std::lock_guard<std::mutex> lock(mutex_);
        finished_.notify_all();
      }
    }
  }

  void Wait() {
    for (int i = 0; i < kSpins; ++i) {
      if (done_.load() == num_units()) return;
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
    std::unique_lock<std::mutex> lock(mutex_);
    finished_.wait(lock, [&] { return done_.load() == num_units(); });
  }

  // Merges the rows that were cut; the runs of the same heads are neighbours.
  void MergeRuns() const {
    for (size_t i = 0, j; i < units_.size(); i = j) {
      for (j = i + 1; j < units_.size() && units_[j].row == units_[i].row &&
                      units_[j].head_begin == units_[i].head_begin;)
        ++j;
      if (units_[i].state) set_.merge(problem_, &units_[i], j - i);
    }
  }

 private:
  static constexpr int64_t kUnitsPerThread = 4;

  bool IsFew(const Row& row) const {
    return row.count * problem_.group() <= distkv::kFewQueries || row.count == 1;
  }

  int64_t NumRuns(const Row& row) const {
    // Rows of many queries are many already; cutting them too would only add merges.
    if (!IsFew(row)) return 1;
    const int64_t run = std::max<int64_t>(1, kTokensPerRun / problem_.block_size);
    return std::max<int64_t>(1, (row.end - row.begin + run - 1) / run);
  }

  void MakeUnits(int64_t num_threads) {
    int64_t num_runs = 0, num_entries = 0;
    for (int64_t i = 0; i < problem_.rows; ++i) {
      const Row row = RowAt(problem_, i);
      if (row.count == 0) continue;
      num_runs += NumRuns(row);
      num_entries += row.end - row.begin;
    }
    const int64_t bytes[] = {4, 2, 1, 1};
    num_bytes_ = num_entries * 2 * problem_.kv_heads * problem_.block_size * problem_.head_dim *
                 bytes[static_cast<int>(problem_.kv_dtype)];
    // All heads of a block at once are read in one piece; split them only where threads would idle.
    const bool is_split = num_threads > 1 && num_runs < kUnitsPerThread * num_threads;
    const int64_t parts = is_split ? problem_.kv_heads : 1;
    std::vector<int64_t> state_at;
    int64_t state_floats = 0, most_queries = 0;
    for (int64_t i = 0; i < problem_.rows; ++i) {
      const Row row = RowAt(problem_, i);
      if (row.count == 0) continue;
      const int64_t runs = NumRuns(row), length = row.end - row.begin;
      const int64_t row_parts = IsFew(row) ? parts : problem_.kv_heads;
      const int64_t heads = problem_.kv_heads / row_parts;
      for (int64_t part = 0; part < row_parts; ++part)
        for (int64_t run = 0; run < runs; ++run) {
          units_.push_back({i, part * heads, (part + 1) * heads, row.begin + length * run / runs,
                            row.begin + length * (run + 1) / runs, nullptr});
          const int64_t queries = NumQueries(problem_, units_.back());
          most_queries = std::max(most_queries, queries);
          state_at.push_back(runs > 1 ? state_floats : -1);
          if (runs > 1) state_floats += distkv::Padded(StateFloats(problem_, queries));
        }
    }
    scratch_floats_ = ScratchFloats(problem_, most_queries);
    float* states = states_.Make(state_floats);
    for (size_t i = 0; i < units_.size(); ++i)
      if (state_at[i] >= 0) units_[i].state = states + state_at[i];
  }

  const Problem problem_;
  const InstructionSet& set_;
  std::vector<Unit> units_;
  Floats states_;
  int64_t scratch_floats_ = 0, num_bytes_ = 0;
  std::atomic<int64_t> next_{0}, done_{0};
  std::mutex mutex_;
  std::condition_variable finished_;
};

bool DtypeOf(ffi::DataType type, Dtype* dtype) {
  switch (type) {
    case ffi::F32: *dtype = Dtype::kFloat32; return true;
    case ffi::BF16: *dtype = Dtype::kBfloat16; return true;
    case ffi::S8: *dtype = Dtype::kInt8; return true;
    case ffi::F8E4M3FN: *dtype = Dtype::kFloat8; return true;
    default: return false;
  }
}

ffi::Error MicroAttention(ffi::ThreadPool threads, ffi::AnyBuffer q, ffi::AnyBuffer pool,
                          ffi::Buffer<ffi::F32> scales, ffi::Buffer<ffi::S32> block_ids,
                          ffi::Buffer<ffi::S32> block_starts, ffi::Buffer<ffi::S32> rows,
                          ffi::Result<ffi::AnyBuffer> out, ffi::Result<ffi::Buffer<ffi::F32>> lse,
                          float scale, int64_t window, float soft_cap,
                          std::string_view instruction_set) {
  const auto qs = q.dimensions();
  const auto ps = pool.dimensions();
  Problem problem{};
  problem.tiles = qs[0], problem.tile = qs[1], problem.q_heads = qs[2], problem.head_dim = qs[3];
  problem.kv_heads = ps[2], problem.block_size = ps[3];
  problem.rows = rows.dimensions()[0];
  problem.scale = scale, problem.window = window, problem.soft_cap = soft_cap;
  if (!DtypeOf(q.element_type(), &problem.q_dtype) ||
      !DtypeOf(pool.element_type(), &problem.kv_dtype))
    return ffi::Error::InvalidArgument("queries or pool have a dtype that is not known");
  const InstructionSet* set = distkv::FindInstructionSet(instruction_set);
  if (!set) return ffi::Error::InvalidArgument("this processor has no such instruction set");
  problem.q = q.untyped_data(), problem.pool = pool.untyped_data();
  if (scales.element_count() > 0) problem.scales = scales.typed_data();
  problem.block_ids = block_ids.typed_data(), problem.block_starts = block_starts.typed_data();
  problem.row_columns = rows.typed_data();
  problem.out = out->untyped_data(), problem.lse = lse->typed_data();
  std::memset(problem.out, 0, out->size_bytes());
  std::fill_n(problem.lse, lse->element_count(), -std::numeric_limits<float>::infinity());

  // Shared: a helper may start after the caller has returned, and finds no unit left.
  const auto call = std::make_shared<Call>(problem, *set, threads.num_threads());
  const int64_t helpers = std::min<int64_t>(
      {threads.num_threads(), call->num_units(), call->num_bytes() / kBytesPerThread + 1});
  for (int64_t i = 1; i < helpers; ++i) threads.Schedule([call] { call->Work(); });
  call->Work();
  call->Wait();
  call->MergeRuns();
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(DistkvMicroAttention, MicroAttention,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<float>("scale")
                                  .Attr<int64_t>("window")
                                  .Attr<float>("soft_cap")
                                  .Attr<std::string_view>("instruction_set"));
