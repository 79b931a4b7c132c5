// CUDA's words for a C++ compiler: the threads of a block are fibers of one thread of the machine, switched at barriers
// and shuffles, so that the kernels run, and run under sanitizers, without a GPU.
//
// Under ThreadSanitizer every fiber counts as a thread of its own and only barriers and shuffles order them: two lanes
// that touch the same memory without one in between are reported, whatever the order in which they happened to run.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#define VMAMBA_UNSEEN __attribute__((no_sanitize("thread"), noinline))
#else
#define VMAMBA_UNSEEN
#endif

#define __device__
#define __host__
#define __global__
#define __grid_constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define VMAMBA_SHARED(name) char* const name = vmamba::emulation::shared_memory()

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  explicit dim3(unsigned x, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

using std::max;
using std::min;

inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(unsigned(x)); }

namespace vmamba::emulation {

constexpr int kStackBytes = 128 * 1024;

enum class Waits { no, for_block, for_warp, done };

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  void* sanitizer = nullptr;
  Waits waits = Waits::no;
  uint3 thread{};
  float shuffled = 0.0f;
};

struct Machine {
  std::vector<std::unique_ptr<Fiber>> fibers;
  ucontext_t scheduler;
  void* scheduler_sanitizer = nullptr;
  Fiber* current = nullptr;
  uint3 block{};
  dim3 threads{1}, grid{1};
  char* shared = nullptr;
  bool atomics = false;  // whether they may be used
  std::function<void()> body;
  // What ThreadSanitizer sees barriers through: those of the block, of each warp, and the end of the block.
  char block_order = 0, warp_order[32] = {}, end_order = 0;
};

inline Machine& machine() {
  static Machine m;
  return m;
}

VMAMBA_UNSEEN inline uint3 thread_index() { return machine().current->thread; }
VMAMBA_UNSEEN inline uint3 block_index() { return machine().block; }
VMAMBA_UNSEEN inline dim3 block_size() { return machine().threads; }
VMAMBA_UNSEEN inline dim3 grid_size() { return machine().grid; }
VMAMBA_UNSEEN inline char* shared_memory() { return machine().shared; }

VMAMBA_UNSEEN inline void publish([[maybe_unused]] char* order) {
#if defined(__SANITIZE_THREAD__)
  __tsan_release(order);
#endif
}
VMAMBA_UNSEEN inline void observe([[maybe_unused]] char* order) {
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(order);
#endif
}

VMAMBA_UNSEEN inline void to_scheduler() {
  Machine& m = machine();
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(m.scheduler_sanitizer, 1);
#endif
  swapcontext(&m.current->context, &m.scheduler);
}

VMAMBA_UNSEEN inline void wait(Waits what) {
  Machine& m = machine();
  char* order = what == Waits::for_block ? &m.block_order : &m.warp_order[m.current->thread.x / 32];
  publish(order);
  m.current->waits = what;
  to_scheduler();
  observe(order);
}

VMAMBA_UNSEEN inline float exchange(float value, int mask) {
  Fiber* self = machine().current;
  self->shuffled = value;
  wait(Waits::for_warp);
  const float other = machine().fibers[self->thread.x ^ unsigned(mask)]->shuffled;
  wait(Waits::for_warp);
  return other;
}

VMAMBA_UNSEEN inline void fiber_main() {
  machine().body();
  publish(&machine().end_order);
  machine().current->waits = Waits::done;
  to_scheduler();
}

[[noreturn]] inline void fail(const char* why) {
  std::fprintf(stderr, "emulation: %s\n", why);
  std::exit(3);
}

// Releases the fibers [first, last) if all of them wait for the same thing; those that ended do not count.
VMAMBA_UNSEEN inline bool release(unsigned first, unsigned last, Waits what) {
  Machine& m = machine();
  bool any = false;
  for (unsigned i = first; i < last; ++i) {
    if (m.fibers[i]->waits == Waits::done) continue;
    if (m.fibers[i]->waits != what) return false;
    any = true;
  }
  for (unsigned i = first; i < last; ++i)
    if (m.fibers[i]->waits == what) m.fibers[i]->waits = Waits::no;
  return any;
}

VMAMBA_UNSEEN inline void run_block(unsigned threads) {
  Machine& m = machine();
#if defined(__SANITIZE_THREAD__)
  m.scheduler_sanitizer = __tsan_get_current_fiber();
#endif
  while (m.fibers.size() < threads) {
    m.fibers.push_back(std::make_unique<Fiber>());
    m.fibers.back()->stack.reset(new char[kStackBytes]);
  }
  for (unsigned i = 0; i < threads; ++i) {
    Fiber& f = *m.fibers[i];
    f.waits = Waits::no;
    f.thread = {i, 0, 0};
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack.get();
    f.context.uc_stack.ss_size = kStackBytes;
    f.context.uc_link = nullptr;
    makecontext(&f.context, reinterpret_cast<void (*)()>(fiber_main), 0);
#if defined(__SANITIZE_THREAD__)
    f.sanitizer = __tsan_create_fiber(0);
#endif
  }
  for (unsigned left = threads; left > 0;) {
    bool progress = false;
    for (unsigned i = 0; i < threads; ++i) {
      Fiber& f = *m.fibers[i];
      if (f.waits != Waits::no) continue;
      progress = true;
      m.current = &f;
#if defined(__SANITIZE_THREAD__)
      __tsan_switch_to_fiber(f.sanitizer, 1);
#endif
      swapcontext(&m.scheduler, &f.context);
      if (f.waits == Waits::done) --left;
    }
    for (unsigned first = 0; first < threads; first += 32)
      progress |= release(first, std::min(first + 32, threads), Waits::for_warp);
    progress |= release(0, threads, Waits::for_block);
    if (!progress) fail("the threads of a block wait for different barriers");
  }
  observe(&m.end_order);
#if defined(__SANITIZE_THREAD__)
  for (unsigned i = 0; i < threads; ++i) __tsan_destroy_fiber(m.fibers[i]->sanitizer);
#endif
}

// One block after another, each in shared memory of its exact size that starts as NaN.
template <typename Body>
void run_grid(dim3 grid, int threads, int shared_bytes, const Body& body) {
  if (shared_bytes > 227 * 1024) fail("more shared memory than a block can have");
  Machine& m = machine();
  m.threads = dim3(unsigned(threads));
  m.grid = grid;
  m.body = body;
  for (unsigned y = 0; y < grid.y; ++y)
    for (unsigned x = 0; x < grid.x; ++x) {
      m.block = {x, y, 0};
      m.shared = shared_bytes > 0 ? static_cast<char*>(std::aligned_alloc(16, (shared_bytes + 15) / 16 * 16)) : nullptr;
      if (m.shared != nullptr) std::memset(m.shared, 0xff, std::size_t(shared_bytes));
      run_block(unsigned(threads));
      std::free(m.shared);
    }
}

}  // namespace vmamba::emulation

#define threadIdx (vmamba::emulation::thread_index())
#define blockIdx (vmamba::emulation::block_index())
#define blockDim (vmamba::emulation::block_size())
#define gridDim (vmamba::emulation::grid_size())

inline void __syncthreads() { vmamba::emulation::wait(vmamba::emulation::Waits::for_block); }
inline void __syncwarp() { vmamba::emulation::wait(vmamba::emulation::Waits::for_warp); }
VMAMBA_UNSEEN inline void atomicAdd(float* to, float value) {
  if (!vmamba::emulation::machine().atomics) vmamba::emulation::fail("an atomic that nobody asked for");
  *to += value;
}
inline float __shfl_xor_sync(unsigned, float value, int mask) { return vmamba::emulation::exchange(value, mask); }

namespace vmamba::cuda {

struct BFloat16 {
  std::uint16_t bits;
};
struct Float16 {
  std::uint16_t bits;
};

struct Queue {
  int processors = 1;
};

template <typename Kernel, typename Args>
void launch(Kernel kernel, dim3 grid, int threads, int shared_bytes, const Args& args, const Queue&) {
  vmamba::emulation::run_grid(grid, threads, shared_bytes, [&] { kernel(args); });
}

inline void clear(float* data, i64 floats, const Queue&) { std::memset(data, 0, std::size_t(floats) * sizeof(float)); }

template <typename P>
P* pinned(P* address) {
  return address;
}
inline float exp2_fast(float x) { return std::exp2(x); }
inline float reciprocal(float x) { return 1.0f / x; }

template <int kBytes>
void copy_aside(char* to, const char* from, int valid) {
  if (valid < 0 || valid > kBytes) vmamba::emulation::fail("a copy of an impossible size");
  if (reinterpret_cast<std::uintptr_t>(to) % kBytes != 0 || reinterpret_cast<std::uintptr_t>(from) % kBytes != 0)
    vmamba::emulation::fail("a copy at an address that is no multiple of its size");
  std::memset(to, 0, kBytes);
  std::memcpy(to, from, std::size_t(valid));
}
inline void close_copies() {}
template <int kOpen>
void await_copies() {}

inline std::uint32_t bits_of(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline float float_of(std::uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline float widen_half(std::uint32_t half) {
  const float sign = half & 0x8000u ? -1.0f : 1.0f;
  const int exponent = int(half >> 10 & 31u);
  const float fraction = float(half & 0x3ffu);
  if (exponent == 31) return fraction == 0.0f ? sign * INFINITY : NAN;
  if (exponent == 0) return sign * std::ldexp(fraction, -24);
  return sign * std::ldexp(1024.0f + fraction, exponent - 25);
}
inline std::uint32_t narrow_half(float x) {
  const std::uint32_t sign = bits_of(x) >> 16 & 0x8000u;
  if (std::isnan(x)) return sign | 0x7e00u;
  const float size = std::fabs(x);
  if (size >= 65520.0f) return sign | 0x7c00u;
  int exponent;
  std::frexp(size, &exponent);
  const int unit = std::max(exponent - 11, -24);
  const float mantissa = std::nearbyint(std::ldexp(size, -unit));
  return sign | (unit == -24 ? std::uint32_t(mantissa) : bits_of(std::ldexp(mantissa, unit)) - (112u << 23) >> 13);
}
inline std::uint32_t narrow_bfloat(float x) {
  if (std::isnan(x)) return 0x7fc0u;
  const std::uint32_t bits = bits_of(x);
  return bits + 0x7fffu + (bits >> 16 & 1u) >> 16;
}

inline void widen2(std::uint32_t pair, float& low, float& high, BFloat16) {
  low = float_of(pair << 16);
  high = float_of(pair & 0xffff0000u);
}
inline void widen2(std::uint32_t pair, float& low, float& high, Float16) {
  low = widen_half(pair & 0xffffu);
  high = widen_half(pair >> 16);
}
inline std::uint32_t narrow2(float low, float high, BFloat16) { return narrow_bfloat(low) | narrow_bfloat(high) << 16; }
inline std::uint32_t narrow2(float low, float high, Float16) { return narrow_half(low) | narrow_half(high) << 16; }

}  // namespace vmamba::cuda
