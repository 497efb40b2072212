// A fiber: a function with a stack of its own that hands control back and forth. On x86-64 a switch is a dozen instructions, elsewhere ucontext does
// it. AddressSanitizer is told of every switch.
#pragma once

#include <cstddef>
#include <cstdint>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__has_feature)
#if __has_feature(address_sanitizer) && !defined(__SANITIZE_ADDRESS__)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define TQ4_FIBER_ASAN 1
#endif

namespace tq4::emulator {

/// Where a stack of control was left.
struct FiberPlace {
#if defined(__x86_64__)
  void* stack_pointer = nullptr;
#else
  ucontext_t context;
#endif
#ifdef TQ4_FIBER_ASAN
  void* fake_stack = nullptr;
  const void* bottom = nullptr;
  std::size_t size = 0;
#endif
};

class Fiber {
 public:
  using Entry = void (*)(void*);
  /// Ready to call entry(argument) on the stack at its first enter(). entry must leave() at its end and is never entered again.
  void prepare(std::uint8_t* stack, std::size_t bytes, Entry entry, void* argument);
  /// From the scheduler: goes on with the fiber until it leaves.
  void enter(FiberPlace& scheduler);
  /// From the fiber: back to where enter() was called.
  void leave(FiberPlace& scheduler);

 private:
  static void start();
  FiberPlace place_;
  std::uint8_t* stack_ = nullptr;
  std::size_t bytes_ = 0;
  Entry entry_ = nullptr;
  void* argument_ = nullptr;
  FiberPlace* scheduler_ = nullptr;
};

}  // namespace tq4::emulator
