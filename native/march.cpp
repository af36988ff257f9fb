// Steps through time on tapes, for one instruction set.
#include "march.h"

#include "kernels.h"

namespace optctl::OPTCTL_ISA {

// sizes: those of the flow (march.h), of its events, then last, most_steps, jumps, valid. in: those of the flow, then y_0.
// numbers: sign, rtol, atol, the longest step. marks: anchor, end, the counts, the steps of each event. out: ts, ys, at,
// figures (t, jump_at, suspect t and h), the last y, the suspect y, the points of the stages (or null).
extern const MarchKernel march_kernel = [](const int32_t* program, const double* memory, const int64_t* sizes,
                                           const double* numbers, const double* const* in, const int32_t* pieces,
                                           double* const* out, int32_t* const* marks) {
  Flow flow(program, memory, sizes, numbers, in, pieces);
  const int64_t* rest = sizes + flow_sizes + event_sizes * flow.n.events;
  const Course course{flow.anchors, flow.n.anchors, rest[0], rest[1], numbers[3], rest[2] != 0, rest[3] != 0, flow.m};
  Mesh mesh{out[0], out[1], out[2], out[6], marks[0], marks[1], {}};
  for (int64_t k = 0; k < flow.n.events; ++k) mesh.event_steps.push_back(marks[3 + k]);
  march(flow, flow.scheme, course, in[9], mesh);
  const int64_t counts[] = {mesh.count, mesh.rejected, mesh.status, mesh.last, mesh.suspect_count, mesh.suspect_j};
  for (int k = 0; k < 6; ++k) marks[2][k] = static_cast<int32_t>(counts[k]);
  for (int64_t k = 0; k < flow.n.events; ++k) marks[2][6 + k] = static_cast<int32_t>(mesh.happened[k]);
  out[3][0] = mesh.t, out[3][1] = jump_inside_steps(flow, mesh), out[3][2] = mesh.suspect_t, out[3][3] = mesh.suspect_h;
  std::copy_n(mesh.y.begin(), flow.m, out[4]);
  std::copy_n(mesh.suspect_y.begin(), flow.m, out[5]);
};

// in: those of the flow, then ts, ys, and the times s. marks: anchor, and the step of each time; sizes end with their number.
extern const MarchKernel dense_kernel = [](const int32_t* program, const double* memory, const int64_t* sizes,
                                           const double* numbers, const double* const* in, const int32_t* pieces,
                                           double* const* out, int32_t* const* marks) {
  Flow flow(program, memory, sizes, numbers, in, pieces);
  const int64_t count = sizes[flow_sizes + event_sizes * flow.n.events];
  dense(flow, in[9], in[10], marks[0], marks[1], in[11], count, out[0]);
};

// in: those of the flow, then as BackOperands lists them; marks: anchor, end; sizes end with the number of steps.
extern const MarchKernel pull_back_kernel = [](const int32_t* program, const double* memory, const int64_t* sizes,
                                               const double* numbers, const double* const* in, const int32_t* pieces,
                                               double* const* out, int32_t* const* marks) {
  Flow flow(program, memory, sizes, numbers, in, pieces);
  const int64_t count = sizes[flow_sizes + event_sizes * flow.n.events];
  Backward(flow).run({in[9], in[10], in[11], in[12], in[13], in[14], in[15], marks[0], marks[1], count, out[0], out[1], out[2],
                      out[3], out[4], out[5]});
};

}  // namespace optctl::OPTCTL_ISA
