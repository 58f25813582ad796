// What the handler and the code compiled once per instruction set tell each other.

#pragma once

#include <cstdint>

namespace distkv {

enum class Dtype { kFloat32, kBfloat16, kInt8, kFloat8 };

// The arrays of contract.py, and what is compiled in.
struct Problem {
  int64_t tiles, tile, q_heads, kv_heads, block_size, head_dim, rows;
  float scale, soft_cap;  // soft_cap 0: none
  int64_t window;         // 0: none
  Dtype q_dtype, kv_dtype;
  const void* q;
  const void* pool;
  const float* scales;  // null where the pool is not quantised
  const int32_t *block_ids, *block_starts, *row_columns;
  void* out;
  float* lse;

  int64_t group() const { return q_heads / kv_heads; }
};

struct Row {
  int64_t tile, begin, end, position, count;
};

inline Row RowAt(const Problem& problem, int64_t row) {
  const int32_t* columns = problem.row_columns + row * 5;
  return {columns[0], columns[1], columns[2], columns[3], columns[4]};
}

// A unit of work: some KV heads of one row over a run of its blocks.
struct Unit {
  int64_t row, head_begin, head_end, begin, end;
  // Where its online softmax goes if the row was cut into runs, else null: the unit writes out.
  float* state;
};

// Floats of a row of queries or sums, padded to whole vectors of any instruction set.
inline int64_t Padded(int64_t count) { return (count + 15) / 16 * 16; }

inline int64_t NumQueries(const Problem& problem, const Unit& unit) {
  return RowAt(problem, unit.row).count * problem.group() * (unit.head_end - unit.head_begin);
}

// Running maximum, sum of weights, and weighted sum of values of each query.
inline int64_t StateFloats(const Problem& problem, int64_t num_queries) {
  return 2 * Padded(num_queries) + num_queries * Padded(problem.head_dim);
}

// Up to these many queries of a KV head its keys are read where they are; for more it pays to
// convert and transpose them first.
constexpr int64_t kFewQueries = 16;

// Small blocks are taken together up to these many keys: a softmax step costs the same for few.
constexpr int64_t kKeysAtOnce = 128;

// State, queries, factors, scores and scales; then one head's keys and values as floats.
inline int64_t ScratchFloats(const Problem& problem, int64_t num_queries) {
  const int64_t width = Padded(problem.head_dim);
  const int64_t keys = Padded(problem.block_size > kKeysAtOnce ? problem.block_size : kKeysAtOnce);
  return StateFloats(problem, num_queries) + num_queries * width + Padded(num_queries) +
         (num_queries + 2) * keys + 2 * width * Padded(problem.block_size);
}

// The code of one instruction set.
struct InstructionSet {
  const char* name;
  void (*attend)(const Problem& problem, const Unit& unit, float* scratch);
  // Merges the states of `count` runs of the same row and heads into the first and writes it out.
  void (*merge)(const Problem& problem, const Unit* units, int64_t count);
};

}  // namespace distkv
