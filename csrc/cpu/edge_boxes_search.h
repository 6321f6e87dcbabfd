// The search for a frame's best boxes.
#pragma once

#include <cstdint>
#include <vector>

#include "edge_boxes_score.h"

namespace avfast::edge_boxes {

struct Proposal {
  Box box;
  float score;
};

// How many windows a frame of this size has. Throws ValueError where they are too many to search.
int64_t count_windows(int width, int height, const EdgeBoxesParams& params);

// The first max_boxes that greedy non-maximum suppression keeps of all refined windows, best first; of equal scores
// the window that comes first. Uses up to `threads` threads; the result does not depend on their number.
std::vector<Proposal> search(const ScoreMaps& maps, const EdgeBoxesParams& params, int threads);

}  // namespace avfast::edge_boxes
