// Which instruction sets the library has code for, and this processor has.

#pragma once

#include <string_view>

#include "attend.h"

namespace distkv {

// The best for an empty name; null if this processor, or the library, does not have it.
const InstructionSet* FindInstructionSet(std::string_view name);

}  // namespace distkv
