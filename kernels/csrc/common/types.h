// What every source means by an index and by a type of elements.
#pragma once

#include <cstdint>

namespace vmamba {

using i64 = std::int64_t;

enum class Type : int { f32, bf16, f16 };

inline i64 ceil_div(i64 a, i64 b) { return (a + b - 1) / b; }

}  // namespace vmamba
