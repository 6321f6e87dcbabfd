// Edge Boxes object proposals (Zitnick and Dollár, ECCV 2014): launcher.
#pragma once

#include "tensor_view.h"

namespace avfast {

// The paper's parameters under its names; the values are the published defaults.
struct EdgeBoxesParams {
  int64_t max_boxes = 10;
  float alpha = 0.65f;           // IoU of neighbouring windows, in (0, 1)
  float beta = 0.75f;            // IoU above which the lower-scoring of two boxes is dropped, in (0, 1]
  float eta = 1.0f;              // beta is multiplied by this after each box kept, in (0, 1]
  float min_score = 0.01f;       // windows that score less are neither refined nor returned
  float edge_min_mag = 0.1f;     // edges at or below this magnitude are ignored
  float edge_merge_thr = 0.5f;   // a group grows until its orientation has changed by this many half turns
  float cluster_min_mag = 0.5f;  // groups of this mass or less are merged into their neighbours
  float max_aspect_ratio = 3.0f;
  float min_box_area = 1000.0f;  // square pixels
  float gamma = 2.0f;            // exponent of the affinity between groups
  float kappa = 1.5f;            // exponent of the box-size normalisation
};

// Exactly the `max_boxes` best boxes of each frame, best first. Frames are spread over threads; a single frame
// is searched by all of them. The result does not depend on the number of threads.
void edge_boxes_cpu(const TensorView& boxes,        // [F, max_boxes, 4] float32, x1 y1 x2 y2 in pixels; rows past
                    const TensorView& scores,       // [F, max_boxes] float32   count are left as they are
                    const TensorView& counts,       // [F] int64, boxes found
                    const TensorView& edges,        // [F, H, W] float32, finite
                    const TensorView& orientation,  // [F, H, W] float32, finite, radians modulo pi
                    const EdgeBoxesParams& params);

}  // namespace avfast
