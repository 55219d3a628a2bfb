// The part of DLPack's binary interface that tensor_view.h needs: how a framework describes a tensor of its own in C,
// https://github.com/dmlc/dlpack, include/dlpack/dlpack.h, versions 1.2 and later (Apache-2.0). Layouts of one major
// version do not change. A type of tensors that offers it has an attribute __dlpack_c_exchange_api__, a capsule named
// "dlpack_exchange_api".
#pragma once

#include <cstdint>

namespace hypersimplex {
namespace dlpack {

constexpr uint32_t kMajor = 1;

enum DeviceType : int32_t { kCPU = 1, kCUDA = 2, kCUDAHost = 3, kCUDAManaged = 13 };
struct Device {
  int32_t type, index;
};

enum TypeCode : uint8_t { kInt = 0, kUInt = 1, kFloat = 2, kBFloat = 4, kComplex = 5, kBool = 6 };
struct DataType {
  uint8_t code, bits;
  uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  int32_t ndim;
  DataType dtype;
  int64_t *shape, *strides;  // strides in elements
  uint64_t byte_offset;
};

// A table of functions, of which one is used; the others have their places.
struct ExchangeApi {
  uint32_t major, minor;
  const ExchangeApi* previous;  // of an older major version, or null
  void (*allocate)();
  void (*managed_from_object)();
  void (*managed_to_object)();
  // Describes an object of the type that the table comes from, without a copy. 0, or -1 with a Python exception set.
  int (*from_object)(void* object, Tensor* out);  // or null
  void (*current_stream)();
};

}  // namespace dlpack
}  // namespace hypersimplex
