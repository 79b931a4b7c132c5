// What the CUDA library knows of itself: which GPUs run its code, and how its users want sums across thread blocks made.
#pragma once

namespace vmamba::cuda {

// Why the library cannot run on a GPU of that compute capability, with the remedy; nullptr if it can. The words are the
// thread's until it asks again.
const char* misfit(int major, int minor);

// Whether sums across thread blocks are to be made by atomics; else in two stages of a fixed order.
bool atomics_wanted();

}  // namespace vmamba::cuda
