// Runs a grid on the CPU: every CUDA thread is a fiber that yields at barriers, so kernels keep their meaning.
//
// Blocks run one after another, and warps as far as they can go before they need others. Which warp, and which of its
// threads, goes first is drawn from the schedule's seed, so two schedules differ wherever a barrier is missing. A
// barrier that some threads never reach, or reach at another line, is reported, as is a write past the shared memory
// that was asked for.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>

namespace emulation {

constexpr int kWarpSize = 32;
using WarpValues = std::array<uint64_t, kWarpSize>;

struct Index {
  unsigned x, y, z;
};

struct Launch {
  Index grid, block;
  size_t shared_bytes;
};

// What the kernels' launchers ask about, and may thus be tuned by.
struct Device {
  int current = 0;
  int multiprocessors = 4;
  int shared_bytes = 99 * 1024;  // of one block
  uint64_t schedule = 0;         // 0: threads and blocks in order
};
Device& device();

// False where the kernel is at fault; failure() says how.
bool run(const Launch& launch, const std::function<void()>& kernel);
const char* failure();

// --- for the thread that runs now ---
struct Here {
  Index thread, block, block_size, grid_size;
};
extern Here here;
int lane_index();
void* shared_memory();
void block_barrier(int line);
// Waits for the lanes in `mask`, then gives the value of each.
WarpValues warp_exchange(unsigned mask, uint64_t value, int line);

}  // namespace emulation
