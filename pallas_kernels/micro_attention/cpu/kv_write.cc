// Writing new keys and values into a pool in place: see pallas_kernels/kv_write.py for the meaning.
//
// XLA's scatter widens a whole bfloat16 pool to float32 and back; this touches the written slots.

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "numbers.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

// The limits of pallas_kernels/kv_pool.py.
template <typename T>
constexpr float kLimit = 0.0f;  // not quantised
template <>
constexpr float kLimit<int8_t> = 127.0f;
template <>
constexpr float kLimit<Fp8> = 448.0f;

inline void FromFloat(float x, int8_t* to) { *to = static_cast<int8_t>(std::nearbyint(x)); }

// Round to nearest, ties to even; x is finite and within the limit.
inline void FromFloat(float x, Fp8* to) {
  const float size = std::fabs(x);
  uint32_t bits;
  if (size < 1.0f / 64) {
    bits = static_cast<uint32_t>(std::nearbyint(size * 512));  // subnormal, or the first normal
  } else {
    std::memcpy(&bits, &size, sizeof bits);
    bits = ((bits + 0x7ffff + ((bits >> 20) & 1)) >> 20) - (120 << 3);
  }
  to->bits = static_cast<uint8_t>(bits | (std::signbit(x) ? 0x80 : 0));
}

struct Sizes {
  int64_t tokens, blocks, kv_heads, block_size, head_dim;
};

// Writes one head's vector to its slot.
template <typename From, typename To>
inline void WriteVector(const Sizes& sizes, const From* from, int64_t slot, To* data,
                        float* scales) {
  To* to = data + slot * sizes.head_dim;
  if constexpr (kLimit<To> == 0.0f) {
    for (int64_t d = 0; d < sizes.head_dim; ++d) FromFloat(ToFloat(from[d]), to + d);
  } else {
    constexpr float limit = kLimit<To>;
    float largest = 0.0f;
    for (int64_t d = 0; d < sizes.head_dim; ++d)
      largest = std::max(largest, std::fabs(ToFloat(from[d])));
    // XLA turns both divisions into products, and numbers must be the same whoever wrote them.
    const float scale = largest * (1.0f / limit), inverse = 1.0f / (scale == 0.0f ? 1.0f : scale);
    for (int64_t d = 0; d < sizes.head_dim; ++d)
      FromFloat(std::min(std::max(ToFloat(from[d]) * inverse, -limit), limit), to + d);
    scales[slot] = scale;
  }
}

template <typename From, typename To>
void WriteAll(const Sizes& sizes, const void* k, const void* v, const int32_t* blocks,
              const int32_t* slots, void* data, float* scales) {
  const void* parts[] = {k, v};
  for (int64_t token = 0; token < sizes.tokens; ++token) {
    const int64_t block = blocks[token];
    if (block < 0 || block >= sizes.blocks) continue;  // padding
    for (int64_t part = 0; part < 2; ++part)
      for (int64_t head = 0; head < sizes.kv_heads; ++head) {
        const int64_t strip = (block * 2 + part) * sizes.kv_heads + head;
        const int64_t vector = token * sizes.kv_heads + head;
        WriteVector(sizes, static_cast<const From*>(parts[part]) + vector * sizes.head_dim,
                    strip * sizes.block_size + slots[token], static_cast<To*>(data), scales);
      }
  }
}

template <typename From>
bool WriteAs(ffi::DataType to, const Sizes& sizes, const void* k, const void* v,
             const int32_t* blocks, const int32_t* slots, void* data, float* scales) {
  auto write = WriteAll<From, float>;
  switch (to) {
    case ffi::F32: break;
    case ffi::BF16: write = WriteAll<From, Bf16>; break;
    case ffi::S8: write = WriteAll<From, int8_t>; break;
    case ffi::F8E4M3FN: write = WriteAll<From, Fp8>; break;
    default: return false;
  }
  write(sizes, k, v, blocks, slots, data, scales);
  return true;
}

// The results are the pool's own arrays, given back.
ffi::Error KvWrite(ffi::AnyBuffer, ffi::Buffer<ffi::F32>, ffi::AnyBuffer k, ffi::AnyBuffer v,
                   ffi::Buffer<ffi::S32> blocks, ffi::Buffer<ffi::S32> slots,
                   ffi::Result<ffi::AnyBuffer> data, ffi::Result<ffi::Buffer<ffi::F32>> scales) {
  const auto ps = data->dimensions();
  const Sizes sizes{k.dimensions()[0], ps[0], ps[2], ps[3], ps[4]};
  const auto write = k.element_type() == ffi::F32    ? WriteAs<float>
                     : k.element_type() == ffi::BF16 ? WriteAs<Bf16>
                                                     : nullptr;
  if (!write || !write(data->element_type(), sizes, k.untyped_data(), v.untyped_data(),
                       blocks.typed_data(), slots.typed_data(), data->untyped_data(),
                       scales->typed_data()))
    return ffi::Error::InvalidArgument("keys or pool have a dtype that is not known");
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(DistkvKvWrite, KvWrite,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::Buffer<ffi::F32>>());
