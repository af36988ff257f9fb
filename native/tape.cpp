// The tape of one instruction set.
#include "tape.h"

#include "kernels.h"

namespace optctl::OPTCTL_ISA {

extern const TapeRunner tape_runner = {tape_lanes, run_tape<tape_lanes>};

}  // namespace optctl::OPTCTL_ISA
