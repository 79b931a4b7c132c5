// Files of cases for the emulated kernels. A tensor is {bytes, offset, data} and gets memory of its exact size, so that
// AddressSanitizer sees what lies outside; -1 bytes stand for an absent one.
#pragma once

#include "words.h"

namespace vmamba::emulation {

using cuda::i64;

inline std::FILE* input;
inline std::FILE* output;

inline void read(void* to, std::size_t bytes) {
  if (std::fread(to, 1, bytes, input) != bytes) fail("the file of cases ends early");
}

struct Memory {
  std::unique_ptr<char, void (*)(void*)> block{nullptr, std::free};
  i64 bytes = 0;
  char* data = nullptr;

  Memory() = default;
  explicit Memory(i64 size, i64 offset = 0) : bytes(size) {
    // No rounding up: what lies behind the last byte does not exist.
    void* memory = nullptr;
    if (posix_memalign(&memory, 16, std::size_t(size + offset + (size + offset == 0))) != 0) std::abort();
    block.reset(static_cast<char*>(memory));
    data = block.get() + offset;
    std::memset(block.get(), 0xff, std::size_t(size + offset));
  }
  float* floats() const { return reinterpret_cast<float*>(data); }
};

inline Memory read_tensor() {
  i64 head[2];
  read(head, sizeof head);
  if (head[0] < 0) return Memory();
  Memory memory(head[0], head[1]);
  read(memory.data, std::size_t(head[0]));
  return memory;
}

inline void write(const Memory& memory) { std::fwrite(memory.data, 1, std::size_t(memory.bytes), output); }

// Runs every case of one file into another.
inline void run_files(int count, char** arguments, bool (*run_case)()) {
  if (count != 3) fail("usage: PROGRAM CASES RESULTS");
  input = std::fopen(arguments[1], "rb");
  output = std::fopen(arguments[2], "wb");
  if (input == nullptr || output == nullptr) fail("cannot open the files");
  while (run_case()) {
  }
  std::fclose(output);
}

}  // namespace vmamba::emulation
