// See fiber.h.
#include "emulator/fiber.h"

#include <cstdlib>

#if defined(__x86_64__)
// Saves what a callee must keep on the old stack, and loads it from the new one. The unwinder never walks past a fiber's first frame.
extern "C" void tq4_switch_stack(void** from, void* to);
asm(R"(
.text
.globl tq4_switch_stack
.type tq4_switch_stack, @function
tq4_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size tq4_switch_stack, .-tq4_switch_stack
)");
#endif

namespace tq4::emulator {
namespace {
Fiber* entered = nullptr;  // the fiber that runs
}

void Fiber::start() {
  Fiber& self = *entered;
#ifdef TQ4_FIBER_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &self.scheduler_->bottom, &self.scheduler_->size);
#endif
  self.entry_(self.argument_);
  std::abort();  // the entry leaves
}

void Fiber::prepare(std::uint8_t* stack, std::size_t bytes, Entry entry, void* argument) {
  stack_ = stack;
  bytes_ = bytes;
  entry_ = entry;
  argument_ = argument;
  place_ = FiberPlace{};
#ifdef TQ4_FIBER_ASAN
  __asan_unpoison_memory_region(stack, bytes);  // a fiber that was given up may have left frames there
#endif
#if defined(__x86_64__)
  auto* top = reinterpret_cast<void**>(stack + bytes);
  *--top = nullptr;  // no return address: start() is entered by a return, as if by a call
  *--top = reinterpret_cast<void*>(&Fiber::start);
  top -= 6;
  for (int i = 0; i < 6; ++i) top[i] = nullptr;
  place_.stack_pointer = top;
#else
  getcontext(&place_.context);
  place_.context.uc_stack.ss_sp = stack;
  place_.context.uc_stack.ss_size = bytes;
  place_.context.uc_link = nullptr;
  makecontext(&place_.context, &Fiber::start, 0);
#endif
}

/// Leaves this stack of control at `from` and goes on where `to` was left.
static void switch_places(FiberPlace& from, FiberPlace& to) {
#if defined(__x86_64__)
  tq4_switch_stack(&from.stack_pointer, to.stack_pointer);
#else
  swapcontext(&from.context, &to.context);
#endif
}

void Fiber::enter(FiberPlace& scheduler) {
  entered = this;
  scheduler_ = &scheduler;
#ifdef TQ4_FIBER_ASAN
  __sanitizer_start_switch_fiber(&scheduler.fake_stack, stack_, bytes_);
#endif
  switch_places(scheduler, place_);
#ifdef TQ4_FIBER_ASAN
  __sanitizer_finish_switch_fiber(scheduler.fake_stack, nullptr, nullptr);
#endif
}

void Fiber::leave(FiberPlace& scheduler) {
#ifdef TQ4_FIBER_ASAN
  __sanitizer_start_switch_fiber(&place_.fake_stack, scheduler.bottom, scheduler.size);
#endif
  switch_places(place_, scheduler);
#ifdef TQ4_FIBER_ASAN
  __sanitizer_finish_switch_fiber(place_.fake_stack, &scheduler.bottom, &scheduler.size);
#endif
}

}  // namespace tq4::emulator
