// Run-time choice among the compilations of attend.cc.

#include "instruction_sets.h"

#include <string>
#include <vector>

namespace distkv {

#if defined(__x86_64__)
extern const InstructionSet avx512bf16, avx512, avx2;
#else
extern const InstructionSet native;
#endif

namespace {

// Best first.
std::vector<const InstructionSet*> Available() {
  std::vector<const InstructionSet*> sets;
#if defined(__x86_64__)
  const bool is_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool is_avx512 = is_avx2 && __builtin_cpu_supports("avx512f") &&
                         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                         __builtin_cpu_supports("avx512dq");
  if (is_avx512 && __builtin_cpu_supports("avx512bf16")) sets.push_back(&avx512bf16);
  if (is_avx512) sets.push_back(&avx512);
  if (is_avx2) sets.push_back(&avx2);
#else
  sets.push_back(&native);
#endif
  return sets;
}

}  // namespace

const InstructionSet* FindInstructionSet(std::string_view name) {
  static const std::vector<const InstructionSet*> sets = Available();
  for (const InstructionSet* set : sets)
    if (name.empty() || name == set->name) return set;
  return nullptr;
}

}  // namespace distkv

// The names, best first, with commas between; for Python.
extern "C" const char* DistkvInstructionSets() {
  static const std::string names = [] {
    std::string all;
    for (const distkv::InstructionSet* set : distkv::Available())
      all += (all.empty() ? "" : ",") + std::string(set->name);
    return all;
  }();
  return names.c_str();
}
