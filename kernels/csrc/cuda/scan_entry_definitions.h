// What scan_entry.h declares; for one source of a library.
#pragma once

#include "scan_entry.h"
#include "scan_run.h"

namespace vmamba::cuda {

void plan_scan(Scan& scan, int processors) { plan(scan, processors); }
int piece_of_scan(const Scan& scan, const Sequence& s, i64 channels, int element, bool shared_delta) {
  return piece_of(scan, s, channels, element, shared_delta);
}
i64 scan_forward_floats(const Scan& scan) { return forward_floats(scan); }
i64 scan_backward_floats(const Scan& scan) { return backward_floats(scan); }
void run_scan_forward(Type type, const Forward& f, float* scratch, const Queue& queue) {
  forward(type, f, scratch, queue);
}
void run_scan_backward(Type type, const Backward& b, const Reduction& r, float* scratch, const Queue& queue) {
  backward(type, b, r, scratch, queue);
}

}  // namespace vmamba::cuda
