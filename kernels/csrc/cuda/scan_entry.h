// The selective scan for other sources: its kernels are compiled once, with selective_scan.cu.
#pragma once

#include "launch.h"
#include "scan_args.h"

namespace vmamba::cuda {

// As plan, piece_of, forward_floats, backward_floats, forward and backward of scan_run.h.
void plan_scan(Scan& scan, int processors);
int piece_of_scan(const Scan& scan, const Sequence& s, i64 channels, int element, bool shared_delta);
i64 scan_forward_floats(const Scan& scan);
i64 scan_backward_floats(const Scan& scan);
void run_scan_forward(Type type, const Forward& f, float* scratch, const Queue& queue);
void run_scan_backward(Type type, const Backward& b, const Reduction& r, float* scratch, const Queue& queue);

}  // namespace vmamba::cuda
