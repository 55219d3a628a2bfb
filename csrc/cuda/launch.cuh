// From a call of the native interface to a launch: storage type, device limits, layout, plan.
#pragma once

#include <initializer_list>

#include "device.cuh"
#include "tile.cuh"

namespace hypersimplex {
namespace cuda {

// body(Storage<In>{}) for the type of the elements.
template <class In>
struct Storage {
  using type = In;
};
template <class Body>
auto for_storage_type(DType dtype, Body body) {
  switch (dtype) {
    case DType::kFloat32:
      return body(Storage<float>{});
    case DType::kFloat64:
      return body(Storage<double>{});
    case DType::kFloat16:
      return body(Storage<__half>{});
    case DType::kBFloat16:
      return body(Storage<__nv_bfloat16>{});
  }
  throw std::invalid_argument("dtype must be a code from 0 to 3, got " + std::to_string(int(dtype)));
}

// How the tensors of a call lie in memory, taken together. Where every tensor's (n1, n2) is one run with one stride,
// `shape` and the strides are made to say so: n1 = 1.
class Layout {
 public:
  struct Tensor {
    const void* data;
    Strides* strides;
    bool accessed = true;  // as the other tensors are; false for class indices
  };

  Layout(Shape& shape, DType dtype, std::initializer_list<Tensor> tensors)
      : shape_(shape),
        bytes_(dtype == DType::kFloat64   ? 8
               : dtype == DType::kFloat32 ? 4
                                          : 2) {
    bool one_run = true;
    for (const Tensor& tensor : tensors) {
      if (!tensor.data) continue;
      Strides& strides = *tensor.strides;
      if (shape.n2 == 1) strides.n2 = strides.n1;
      one_run = one_run && (shape.n1 == 1 || shape.n2 == 1 || strides.n1 == shape.n2 * strides.n2);
    }
    if (one_run) {
      shape.n2 *= shape.n1;
      shape.n1 = 1;
    }
    for (const Tensor& tensor : tensors)
      if (tensor.data && tensor.accessed) inspect(tensor.data, *tensor.strides);
  }

  Problem problem(size_t state_bytes, bool marks = false) const {
    Problem p{};
    p.n = shape_.n1 * shape_.n2;
    p.n2 = shape_.n2;
    p.lanes = shape_.inner == 1 ? shape_.outer : shape_.inner;
    p.lines = shape_.inner == 1 ? 1 : shape_.outer;
    p.adjacent = adjacent_ && p.lanes > 1;
    p.contiguous = contiguous_;
    p.packs = packs_;
    p.wide = wide_ ? bytes_ == 8 ? 2 : 4 : 0;
    p.entry_bytes = bytes_;
    p.compute_bytes = bytes_ == 8 ? 8 : 4;
    p.state_bytes = int(state_bytes);
    p.marks = marks;
    return p;
  }

 private:
  void inspect(const void* data, const Strides& strides) {
    auto aligned = [&](int64_t size, int64_t stride) { return size == 1 || stride * bytes_ % kPackBytes == 0; };
    bool row = strides.n2 == 1 && shape_.n1 == 1;
    packs_ = packs_ && row && reinterpret_cast<uintptr_t>(data) % kPackBytes == 0 && aligned(2, shape_.n2) &&
             aligned(shape_.outer, strides.outer) && aligned(shape_.inner, strides.inner);
    int64_t lane = shape_.inner == 1 ? strides.outer : strides.inner;
    contiguous_ = contiguous_ && row && lane == shape_.n2;
    adjacent_ = adjacent_ && lane == 1 && strides.n2 != 1;
    const int64_t wide = bytes_ == 8 ? 2 : 4;
    wide_ = wide_ && adjacent_ && shape_.inner % wide == 0 &&
            reinterpret_cast<uintptr_t>(data) % (wide * bytes_) == 0 && strides.n1 % wide == 0 &&
            strides.n2 % wide == 0 && (shape_.outer == 1 || strides.outer % wide == 0);
  }

  const Shape& shape_;
  const int bytes_;
  bool packs_ = true, contiguous_ = true, adjacent_ = true, wide_ = true;
};

template <class... Parameters, class... Arguments>
void launch(const Plan& plan, void* stream, const char* name, void (*kernel)(Parameters...), Arguments... arguments) {
  cudaLaunchAttribute attribute{};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(plan.teams * plan.blocks));
  config.blockDim = dim3(unsigned(plan.threads));
  config.dynamicSmemBytes = size_t(plan.shared_bytes);
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &attribute;
  if (plan.regime == Regime::kCluster) {
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {unsigned(plan.blocks), 1, 1};
    config.numAttrs = 1;
  } else if (plan.regime == Regime::kGrid) {
    attribute.id = cudaLaunchAttributeCooperative;  // all blocks are resident, so they can wait for one another
    attribute.val.cooperative = 1;
    config.numAttrs = 1;
  }
  constexpr int kAlwaysAllowed = 48 << 10;
  if (plan.shared_bytes > kAlwaysAllowed) once<allow_shared_memory>(address_of(kernel));
  check(cudaLaunchKernelEx(&config, kernel, arguments...), name);
}

inline void clear(void* memory, size_t bytes, void* stream) {
  if (bytes) check(cudaMemsetAsync(memory, 0, bytes, static_cast<cudaStream_t>(stream)), "cudaMemsetAsync");
}
// Clears the arrivals, which grid_barrier() needs to be zero at first. Returns the workspace.
inline void* prepare_workspace(const Plan& plan, void* memory, void* stream) {
  clear(memory, GridWorkspace::arrival_bytes(plan), stream);
  return memory;
}

}  // namespace cuda
}  // namespace hypersimplex
