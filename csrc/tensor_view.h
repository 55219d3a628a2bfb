// Tensors as Python passes them, looked at when the kernels are about to get them: whatever was checked or remembered
// before, a kernel runs on the address, dtype, device, shape, strides and storage of this moment, or an error names the
// argument, what was expected and what came.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <string>
#include <vector>

#include "dlpack.h"
#include "hypersimplex.h"

namespace hypersimplex {

namespace py = pybind11;

// A tensor, or None. The call that passes it keeps it alive.
struct Argument {
  PyObject* object = nullptr;
  explicit operator bool() const { return object != nullptr; }
};

inline void require_given(const char* name, const Argument& argument) {
  if (!argument) throw py::type_error(std::string(name) + " must be a Tensor, got None");
}

// kOutput: memory that the caller has just allocated, whose storage need not be looked at.
enum class Role { kInput, kOutput };

constexpr dlpack::DataType kFloat64{dlpack::kFloat, 64, 1}, kInt64{dlpack::kInt, 64, 1}, kInt32{dlpack::kInt, 32, 1},
    kByte{dlpack::kUInt, 8, 1};

inline bool operator==(const dlpack::DataType& a, const dlpack::DataType& b) {
  return a.code == b.code && a.bits == b.bits && a.lanes == b.lanes;
}
inline bool operator==(const dlpack::Device& a, const dlpack::Device& b) {
  return a.type == b.type && a.index == b.index;
}

inline dlpack::DataType data_type(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return {dlpack::kFloat, 32, 1};
    case DType::kFloat64:
      return kFloat64;
    case DType::kFloat16:
      return {dlpack::kFloat, 16, 1};
    default:
      return {dlpack::kBFloat, 16, 1};
  }
}

inline std::string name_of(const dlpack::DataType& dtype) {
  static const char* const kinds[] = {"int", "uint", "float", "opaque", "bfloat", "complex", "bool"};
  if (dtype.code == dlpack::kBool) return "bool";
  return (dtype.code <= dlpack::kBool ? kinds[dtype.code] : "a float of ") + std::to_string(dtype.bits);
}
inline std::string name_of(const dlpack::Device& device) {
  if (device.type == dlpack::kCPU) return "cpu";
  return (device.type == dlpack::kCUDA ? "cuda:" : "device " + std::to_string(device.type) + ":") +
         std::to_string(device.index);
}
template <class Sizes>
std::string text_of(const Sizes& sizes) {
  std::string text = "[";
  for (int64_t size : sizes) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + "]";
}

// What a tensor is now.
class TensorView {
 public:
  TensorView(const char* name, const Argument& argument, Role role) : name_(name), tensor_() {
    require_given(name, argument);
    // The storage comes first: to ask for it may run Python code, to describe a tensor does not.
    const int64_t room = role == Role::kInput ? room_of(argument.object) : -1;
    describe(argument.object);
    tensor_.data = static_cast<char*>(tensor_.data) + tensor_.byte_offset;
    if (role == Role::kInput) check_room(room, argument.object);
  }

  void* data() const { return tensor_.data; }
  int ndim() const { return tensor_.ndim; }
  int64_t size(int d) const { return tensor_.shape[d]; }
  int64_t stride(int d) const { return tensor_.strides[d]; }
  const dlpack::DataType& dtype() const { return tensor_.dtype; }
  const dlpack::Device& device() const { return tensor_.device; }
  std::vector<int64_t> sizes() const { return {tensor_.shape, tensor_.shape + tensor_.ndim}; }

  void require(const dlpack::DataType& dtype, const dlpack::Device& device, const std::vector<int64_t>& sizes) const {
    const bool right_type = tensor_.dtype == dtype;
    if (right_type && tensor_.device == device && size_t(tensor_.ndim) == sizes.size() &&
        std::equal(sizes.begin(), sizes.end(), tensor_.shape))
      return;
    const std::string message = std::string(name_) + " must be " + name_of(dtype) + " " + text_of(sizes) + " on " +
                                name_of(device) + ", got " + name_of(tensor_.dtype) + " " + text_of(this->sizes()) +
                                " on " + name_of(tensor_.device);
    if (!right_type) throw py::type_error(message);
    throw py::value_error(message);
  }
  void require_contiguous() const {
    if (std::find(tensor_.shape, tensor_.shape + tensor_.ndim, 0) != tensor_.shape + tensor_.ndim) return;
    int64_t due = 1;
    for (int d = tensor_.ndim - 1; d >= 0; due *= tensor_.shape[d--])
      if (tensor_.shape[d] != 1 && tensor_.strides[d] != due)
        throw py::value_error(std::string(name_) + " must be contiguous, got strides " +
                              text_of(std::vector<int64_t>{tensor_.strides, tensor_.strides + tensor_.ndim}));
  }

  // The stride of dimensions begin <= d < end other than `skipped`, taken as one.
  int64_t collapsed(int begin, int end, int skipped = -1) const {
    int64_t stride = 0, due = -1;
    for (int d = end - 1; d >= begin; --d) {
      if (d == skipped || tensor_.shape[d] == 1) continue;
      if (due < 0)
        stride = tensor_.strides[d];
      else if (tensor_.strides[d] != due)
        throw py::value_error(std::string(name_) + " has strides that kernels do not take: " +
                              text_of(std::vector<int64_t>{tensor_.strides, tensor_.strides + tensor_.ndim}));
      due = tensor_.strides[d] * tensor_.shape[d];
    }
    return stride;
  }

 private:
  static PyObject* call(PyObject* object, PyObject* method) {
    PyObject* result = PyObject_CallMethodNoArgs(object, method);
    if (!result) throw py::error_already_set();
    return result;
  }
  static int64_t integer(py::handle number) {
    const int64_t value = PyLong_AsLongLong(number.ptr());
    if (value == -1 && PyErr_Occurred()) throw py::error_already_set();
    return value;
  }

  // Bytes of the storage.
  int64_t room_of(PyObject* object) const {
    static PyObject* const method = PyUnicode_InternFromString("untyped_storage");
    const py::object storage = py::reinterpret_steal<py::object>(call(object, method));
    const Py_ssize_t bytes = PyObject_Length(storage.ptr());
    if (bytes < 0) throw py::error_already_set();
    return bytes;
  }
  void check_room(int64_t room, PyObject* object) const {
    int64_t entries = 1;
    for (int d = 0; d < tensor_.ndim; ++d) {
      if (tensor_.shape[d] == 0) return;
      entries += (tensor_.shape[d] - 1) * tensor_.strides[d];
    }
    static PyObject* const method = PyUnicode_InternFromString("storage_offset");
    entries += integer(py::reinterpret_steal<py::object>(call(object, method)));
    const int64_t bytes = entries * ((tensor_.dtype.bits + 7) / 8);
    if (bytes > room)
      throw std::runtime_error(std::string(name_) + " has entries, but its data is not allocated: they reach to byte " +
                               std::to_string(bytes) + " of a storage of " + std::to_string(room));
  }

  static const dlpack::ExchangeApi* find_api(PyObject* object) {
    const py::object capsule =
        py::getattr(reinterpret_cast<PyObject*>(Py_TYPE(object)), "__dlpack_c_exchange_api__", py::none());
    if (!PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api")) return nullptr;
    auto api = static_cast<const dlpack::ExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    while (api && api->major != dlpack::kMajor) api = api->previous;
    return api && api->from_object ? api : nullptr;
  }
  void describe(PyObject* object) {
    static const dlpack::ExchangeApi* const api = find_api(object);  // one type of tensors calls these kernels
    if (!api) return describe_by_attributes(object);
    if (api->from_object(object, &tensor_) != 0) throw py::error_already_set();
    // Memory of the host that a device reaches, and the reverse, is what its tensor says it is.
    if (tensor_.device.type == dlpack::kCUDAHost) tensor_.device = {dlpack::kCPU, 0};
    if (tensor_.device.type == dlpack::kCUDAManaged) tensor_.device.type = dlpack::kCUDA;
  }
  // Of versions of PyTorch that do not offer the exchange.
  void describe_by_attributes(py::handle tensor) {
    own_.reserve(2 * py::len(tensor.attr("shape")));
    for (py::handle size : tensor.attr("shape")) own_.push_back(integer(size));
    for (py::handle stride : tensor.attr("stride")()) own_.push_back(integer(stride));
    const size_t ndim = own_.size() / 2;
    const py::object device = tensor.attr("device"), index = device.attr("index");
    const std::string type = py::cast<std::string>(device.attr("type"));
    const int32_t number = index.is_none() ? 0 : int32_t(integer(index));
    tensor_ = {PyLong_AsVoidPtr(tensor.attr("data_ptr")().ptr()),
               {type == "cpu"    ? dlpack::kCPU
                : type == "cuda" ? dlpack::kCUDA
                                 : -1,
                number},
               int32_t(ndim),
               parse_type(py::cast<std::string>(py::str(tensor.attr("dtype")))),
               own_.data(),
               own_.data() + ndim,
               0};
  }
  // "torch.float32"
  static dlpack::DataType parse_type(const std::string& text) {
    const size_t name = text.find('.') + 1, digits = std::min(text.find_first_of("0123456789"), text.size());
    const std::string kind = text.substr(name, digits - name);
    if (kind == "bool") return {dlpack::kBool, 8, 1};
    const uint8_t bits = uint8_t(std::atoi(text.c_str() + digits));
    const bool plain = text.find('_') == std::string::npos;  // not an exotic float8
    const int code = kind == "int"       ? dlpack::kInt
                     : kind == "uint"    ? dlpack::kUInt
                     : kind == "float"   ? dlpack::kFloat
                     : kind == "bfloat"  ? dlpack::kBFloat
                     : kind == "complex" ? dlpack::kComplex
                                         : 255;
    return {uint8_t(plain ? code : 255), bits, 1};
  }

  const char* name_;
  dlpack::Tensor tensor_;
  std::vector<int64_t> own_;  // sizes and strides that nobody else keeps
};

// A tensor's place for the kernels.
template <class T>
struct Located {
  T* data = nullptr;
  Strides strides{0, 0, 0, 0};
};

// What the tensors of a call are to be: all on one device, elements of one dtype in one shape, numbers beside them.
struct Elements {
  DType dtype;
  dlpack::DataType type;
  dlpack::Device device;
  std::vector<int64_t> sizes;

  Elements(DType dtype, const dlpack::Device& device, std::vector<int64_t> sizes)
      : dtype(dtype), type(data_type(dtype)), device(device), sizes(std::move(sizes)) {}

  TensorView view(const char* name, const Argument& argument, Role role) const {
    TensorView view(name, argument, role);
    view.require(type, device, sizes);
    return view;
  }
  // Contiguous numbers of another dtype and shape; null for None.
  template <class T>
  T* numbers(const char* name, const Argument& argument, Role role, const dlpack::DataType& type,
             const std::vector<int64_t>& sizes) const {
    if (!argument) return nullptr;
    const TensorView view(name, argument, role);
    view.require(type, device, sizes);
    view.require_contiguous();
    return static_cast<T*>(view.data());
  }
};

// Vectors along dimension `dim`. The first `cut` of the other dimensions are numbered by `outer`, the rest by `inner`.
struct Vectors : Elements {
  int dim, cut;
  std::vector<int64_t> rest;   // the sizes without `dim`: what there is one of per vector
  std::vector<int64_t> state;  // [2, *rest]
  Shape shape{1, 1, 1, 1};

  Vectors(DType dtype, const dlpack::Device& device, const std::vector<int64_t>& sizes, int dim, int cut)
      : Elements(dtype, device, sizes), dim(dim), cut(cut) {
    const int ndim = int(sizes.size());
    if (dim < 0 || dim >= ndim)
      throw py::index_error("dim must lie in [0, " + std::to_string(ndim - 1) + "], got " + std::to_string(dim));
    if (cut < 0 || cut >= ndim)
      throw py::index_error("cut must lie in [0, " + std::to_string(ndim - 1) + "], got " + std::to_string(cut));
    state.push_back(2);
    for (int d = 0; d < ndim; ++d) {
      if (d == dim) continue;
      (int(rest.size()) < cut ? shape.outer : shape.inner) *= sizes[d];
      rest.push_back(sizes[d]);
      state.push_back(sizes[d]);
    }
    shape.n2 = sizes[dim];
  }

  template <class T = void>
  Located<T> at(const char* name, const Argument& argument, Role role, const dlpack::DataType& type) const {
    const TensorView view(name, argument, role);
    view.require(type, device, sizes);
    const int border = dim < cut ? cut + 1 : cut;  // the first dimension of `inner`, or `dim` itself
    return {static_cast<T*>(view.data()),
            {view.collapsed(0, border, dim), view.collapsed(border, view.ndim(), dim), 0, view.stride(dim)}};
  }
  Located<void> at(const char* name, const Argument& argument, Role role) const {
    return at<void>(name, argument, role, type);
  }
  // Null for None.
  template <class T = void>
  Located<T> given(const char* name, const Argument& argument, Role role, const dlpack::DataType& type) const {
    return argument ? at<T>(name, argument, role, type) : Located<T>{};
  }
  Located<void> given(const char* name, const Argument& argument, Role role) const {
    return given<void>(name, argument, role, type);
  }
  const double* per_vector(const char* name, const Argument& argument) const {
    return numbers<const double>(name, argument, Role::kInput, kFloat64, rest);
  }
};

}  // namespace hypersimplex

template <>
struct pybind11::detail::type_caster<hypersimplex::Argument> {
  PYBIND11_TYPE_CASTER(hypersimplex::Argument, const_name("Tensor | None"));
  bool load(handle source, bool) {
    if (!source.is_none()) value.object = source.ptr();
    return true;
  }
};
