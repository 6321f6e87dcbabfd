// The search for a frame's best boxes.
#pragma once

#include <vector>

#include "edge_boxes_score.h"

namespace avfast::edge_boxes {

struct Proposal {
  Box box;
  float score;
};

// The first max_boxes that greedy non-maximum suppression keeps of all refined windows, best first; of equal scores
// the window that comes first. Uses up to `threads` threads; the result does not depend on their number.
std::vector<Proposal> search(const ScoreMaps& maps, const EdgeBoxesParams& params, int threads);

}  // namespace avfast::edge_boxes
