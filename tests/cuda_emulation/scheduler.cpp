// Fibers for CUDA threads, barriers between them, and the checks on both.
#include "scheduler.h"

#include <ucontext.h>

#include <algorithm>
#include <memory>
#include <random>
#include <string>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulation {
namespace {

constexpr size_t kStackBytes = 128 * 1024;
constexpr size_t kGuardBytes = 256;
constexpr unsigned char kGuard = 0xa5;

enum class State { kReady, kAtBlockBarrier, kInWarpExchange, kDone };

struct Fiber {
  ucontext_t context;
  Index index;
  int lane, warp;
  State state;
  int line;
  unsigned mask;
};

struct Warp {
  std::vector<Fiber*> fibers;
  std::vector<Fiber*> order;  // in which they run
  WarpValues offered;
  WarpValues seen;  // of the last complete exchange; lives until every lane has come to the next
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  Fiber* current = nullptr;
  unsigned char* shared = nullptr;
  const std::function<void()>* kernel = nullptr;
};

Block block;
ucontext_t scheduler_context;
std::string failure_text;
std::vector<std::unique_ptr<unsigned char[]>> stacks;
std::mt19937_64 random_bits;

#if defined(__SANITIZE_ADDRESS__)
// AddressSanitizer must be told when the stack changes.
const void* scheduler_stack = nullptr;
size_t scheduler_stack_bytes = 0;
#endif

void fiber_main() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_bytes);
#endif
  (*block.kernel)();
  block.current->state = State::kDone;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(nullptr, scheduler_stack, scheduler_stack_bytes);
#endif
  setcontext(&scheduler_context);
}

void resume(Fiber& fiber) {
  block.current = &fiber;
  here.thread = fiber.index;
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, fiber.context.uc_stack.ss_sp, fiber.context.uc_stack.ss_size);
#endif
  swapcontext(&scheduler_context, &fiber.context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
}

// Leaves the current fiber until the scheduler finds it ready again.
void wait(State state, int line) {
  Fiber& fiber = *block.current;
  fiber.state = state;
  fiber.line = line;
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, scheduler_stack, scheduler_stack_bytes);
#endif
  swapcontext(&fiber.context, &scheduler_context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack, &scheduler_stack, &scheduler_stack_bytes);
#endif
}

template <typename T>
void shuffle_if_asked(std::vector<T>& order) {
  if (device().schedule != 0) std::shuffle(order.begin(), order.end(), random_bits);
}

std::string describe(const Fiber& fiber) {
  const char* what = fiber.state == State::kDone             ? "has returned"
                     : fiber.state == State::kAtBlockBarrier ? "waits at the block barrier in line "
                                                             : "waits for its warp in line ";
  return "thread (" + std::to_string(fiber.index.x) + ", " + std::to_string(fiber.index.y) + ") " + what +
         (fiber.state == State::kDone ? "" : std::to_string(fiber.line));
}

bool fail(const std::string& what) {
  failure_text = what + " in block " + std::to_string(here.block.x);
  return false;
}

bool fail_apart(const char* what, const Fiber& a, const Fiber& b) {
  return fail(std::string(what) + ": " + describe(a) + ", but " + describe(b));
}

// Lets the lanes of a warp go on that have all come to the exchange one of them names. False where they never will.
bool release_lanes(Warp& warp, bool& released) {
  for (Fiber* fiber : warp.fibers) {
    if (fiber->state != State::kInWarpExchange) continue;
    std::vector<Fiber*> party;
    bool complete = true;
    for (Fiber* other : warp.fibers) {
      if ((fiber->mask >> other->lane & 1) == 0) continue;
      if (other->state == State::kDone) return fail_apart("warp divergence", *fiber, *other);
      if (other->state == State::kInWarpExchange && (other->line != fiber->line || other->mask != fiber->mask))
        return fail_apart("warp divergence", *fiber, *other);
      complete = complete && other->state == State::kInWarpExchange;
      party.push_back(other);
    }
    if (!complete) continue;
    warp.seen = warp.offered;
    for (Fiber* other : party) other->state = State::kReady;
    released = true;
  }
  return true;
}

// Runs a warp as far as it can go alone, the hardest case for a barrier that is missing between warps.
bool run_warp(Warp& warp) {
  for (bool released = true; released;) {
    shuffle_if_asked(warp.order);
    for (Fiber* fiber : warp.order)
      if (fiber->state == State::kReady) resume(*fiber);
    released = false;
    if (!release_lanes(warp, released)) return false;
  }
  return true;
}

// Lets the block go on when every thread has come to the same barrier. False where one never will.
bool release_block() {
  for (const Fiber& fiber : block.fibers)
    if (fiber.state != State::kAtBlockBarrier || fiber.line != block.fibers[0].line)
      return fail_apart("barrier divergence", block.fibers[0], fiber);
  for (Fiber& fiber : block.fibers) fiber.state = State::kReady;
  return true;
}

void start_fibers() {
  const Index& size = here.block_size;
  const size_t count = static_cast<size_t>(size.x) * size.y * size.z;
  while (stacks.size() < count) stacks.push_back(std::make_unique<unsigned char[]>(kStackBytes));
  block.fibers.resize(count);
  block.warps.assign((count + kWarpSize - 1) / kWarpSize, Warp{});
  for (size_t i = 0; i < count; ++i) {
    Fiber& fiber = block.fibers[i];
    const auto rank = static_cast<unsigned>(i);
    fiber.index = {rank % size.x, rank / size.x % size.y, rank / size.x / size.y};
    fiber.lane = static_cast<int>(i) % kWarpSize;
    fiber.warp = static_cast<int>(i) / kWarpSize;
    fiber.state = State::kReady;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = stacks[i].get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, fiber_main, 0);
    block.warps[fiber.warp].fibers.push_back(&fiber);
  }
  for (Warp& warp : block.warps) warp.order = warp.fibers;
}

bool run_block() {
  start_fibers();
  std::vector<Warp*> order;
  for (Warp& warp : block.warps) order.push_back(&warp);
  const auto is_done = [](const Fiber& fiber) { return fiber.state == State::kDone; };
  while (true) {
    shuffle_if_asked(order);
    for (Warp* warp : order)
      if (!run_warp(*warp)) return false;
    if (std::all_of(block.fibers.begin(), block.fibers.end(), is_done)) return true;
    if (!release_block()) return false;
  }
}

bool guard_is_whole(const unsigned char* guard) {
  return std::all_of(guard, guard + kGuardBytes, [](unsigned char byte) { return byte == kGuard; });
}

}  // namespace

Here here;

Device& device() {
  static Device device;
  return device;
}

bool run(const Launch& launch, const std::function<void()>& kernel) {
  const Index& size = launch.block;
  if (launch.shared_bytes > static_cast<size_t>(device().shared_bytes) || size.x * size.y * size.z > 1024 ||
      size.x * size.y * size.z == 0 || launch.grid.x == 0) {
    failure_text = "the launch asks for more than a block may have, or for nothing";
    return false;
  }
  random_bits.seed(device().schedule);
  here.block_size = launch.block;
  here.grid_size = launch.grid;
  block.kernel = &kernel;
  std::vector<unsigned> order(launch.grid.x);  // the kernels' grids have one dimension
  for (unsigned i = 0; i < launch.grid.x; ++i) order[i] = i;
  shuffle_if_asked(order);
#if defined(__SANITIZE_ADDRESS__)
  const size_t guard_bytes = 0;  // the sanitizer watches the end of the allocation itself
#else
  const size_t guard_bytes = kGuardBytes;
#endif
  std::vector<unsigned char> shared(launch.shared_bytes + guard_bytes);
  block.shared = shared.data();
  for (unsigned i : order) {
    here.block = {i, 0, 0};
    // What shared memory holds at first is nobody's business, and differs between schedules.
    std::fill_n(shared.begin(), launch.shared_bytes, static_cast<unsigned char>(random_bits()));
    std::fill(shared.begin() + static_cast<ptrdiff_t>(launch.shared_bytes), shared.end(), kGuard);
    if (!run_block()) return false;
    if (guard_bytes != 0 && !guard_is_whole(shared.data() + launch.shared_bytes))
      return fail("a write past the end of shared memory");
  }
  return true;
}

const char* failure() { return failure_text.c_str(); }
int lane_index() { return block.current->lane; }
void* shared_memory() { return block.shared; }
void block_barrier(int line) { wait(State::kAtBlockBarrier, line); }

WarpValues warp_exchange(unsigned mask, uint64_t value, int line) {
  Fiber& fiber = *block.current;
  fiber.mask = mask;
  block.warps[fiber.warp].offered[fiber.lane] = value;
  wait(State::kInWarpExchange, line);
  return block.warps[block.current->warp].seen;
}

}  // namespace emulation
