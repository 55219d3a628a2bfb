// Python bindings: integers in, launcher out, C++ exception -> Python exception. Pointers arrive as integers
// (0 is null), shapes and strides (in elements) as 4-tuples. The submodules `cpu` and `cuda` hold the same functions
// with the same leading arguments; a cpu function ends in `threads`, a cuda function in `stream, allocate`, where
// allocate(bytes) returns the address of device memory for this call's workspace. Projection and loss are objects,
// ProjectionCall and LossCall, which hold what is the same in every call of one layout or signature, and take tensors
// as they are, None for null.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <tuple>

#include "hypersimplex.h"

#ifndef HYPERSIMPLEX_MODULE
#define HYPERSIMPLEX_MODULE _C
#endif

namespace py = pybind11;

namespace hypersimplex {
// The address of a tensor, null for None.
struct Data {
  void* address = nullptr;
  template <class T>
  operator T*() const {
    return static_cast<T*>(address);
  }
};
}  // namespace hypersimplex

template <>
struct pybind11::detail::type_caster<hypersimplex::Data> {
  PYBIND11_TYPE_CASTER(hypersimplex::Data, const_name("Tensor | None"));
  bool load(handle source, bool) {
    if (source.is_none()) return true;
    static PyObject* const method = PyUnicode_InternFromString("data_ptr");
    object address = reinterpret_steal<object>(PyObject_CallMethodNoArgs(source.ptr(), method));
    if (!address) throw error_already_set();
    value.address = PyLong_AsVoidPtr(address.ptr());
    return true;
  }
};

namespace hypersimplex {
namespace {

using Address = std::uintptr_t;
using Four = std::array<int64_t, 4>;

template <class T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}
Shape shape_of(const Four& a) { return {a[0], a[1], a[2], a[3]}; }
Strides strides_of(const Four& a) { return {a[0], a[1], a[2], a[3]}; }
PerVector per_vector(const double* values, double value) { return {values, value}; }

// A backend turns (arguments, tail of the Python call) into a launch without the GIL.
struct Cpu {
  static void threshold(const ThresholdArgs& args, int threads) {
    py::gil_scoped_release release;
    cpu::threshold(args, threads);
  }
  static void jvp(const JvpArgs& args, int threads) {
    py::gil_scoped_release release;
    cpu::jvp(args, threads);
  }
  static void loss_forward(const LossArgs& args, void* loss, int threads) {
    py::gil_scoped_release release;
    cpu::loss_forward(args, loss, threads);
  }
  static void loss_backward(const LossArgs& args, const LossBackward& backward, int threads) {
    py::gil_scoped_release release;
    cpu::loss_backward(args, backward, threads);
  }
  static void sort(const SortArgs& args, int threads) {
    py::gil_scoped_release release;
    cpu::sort(args, threads);
  }
  static void isotonic(const IsotonicArgs& args, int threads) {
    py::gil_scoped_release release;
    cpu::isotonic(args, threads);
  }
  static void block_product(const BlockProductArgs& args, int threads) {
    py::gil_scoped_release release;
    cpu::block_product(args, threads);
  }
};

#ifdef HYPERSIMPLEX_WITH_CUDA
struct Cuda {
  static void* workspace(size_t bytes, const py::function& allocate) {
    return bytes == 0 ? nullptr : pointer<void>(allocate(bytes).cast<Address>());
  }
  static void threshold(const ThresholdArgs& args, Address stream, const py::function& allocate) {
    void* memory = workspace(cuda::threshold_workspace(args), allocate);
    py::gil_scoped_release release;
    cuda::threshold(args, memory, pointer<void>(stream));
  }
  static void jvp(const JvpArgs& args, Address stream, const py::function& allocate) {
    void* memory = workspace(cuda::jvp_workspace(args), allocate);
    py::gil_scoped_release release;
    cuda::jvp(args, memory, pointer<void>(stream));
  }
  static void loss_forward(const LossArgs& args, void* loss, Address stream, const py::function& allocate) {
    void* memory = workspace(cuda::loss_forward_workspace(args), allocate);
    py::gil_scoped_release release;
    cuda::loss_forward(args, loss, memory, pointer<void>(stream));
  }
  static void loss_backward(const LossArgs& args, const LossBackward& backward, Address stream, const py::function&) {
    py::gil_scoped_release release;
    cuda::loss_backward(args, backward, pointer<void>(stream));
  }
  static void sort(const SortArgs& args, Address stream, const py::function& allocate) {
    void* memory = workspace(cuda::sort_workspace(args), allocate);
    py::gil_scoped_release release;
    cuda::sort(args, memory, pointer<void>(stream));
  }
  static void isotonic(const IsotonicArgs& args, Address stream, const py::function& allocate) {
    void* memory = workspace(cuda::isotonic_workspace(args), allocate);
    py::gil_scoped_release release;
    cuda::isotonic(args, memory, pointer<void>(stream));
  }
  static void block_product(const BlockProductArgs& args, Address stream, const py::function& allocate) {
    void* memory = workspace(cuda::block_product_workspace(args), allocate);
    py::gil_scoped_release release;
    cuda::block_product(args, memory, pointer<void>(stream));
  }
};
#endif

// The projection of tensors of one layout, and its products. y and out lie alike.
template <class Backend>
struct ProjectionCall {
  DType dtype;
  Shape shape;
  Strides x_strides, y_strides;

  State state_at(double* p) const { return {p, p ? p + shape.outer * shape.inner : nullptr}; }  // [2, vectors]
};

template <class Backend, class... Tail>
void define_projection(py::module_& m) {
  using Call = ProjectionCall<Backend>;
  // Local: the emulator's module has classes of the same names.
  py::class_<Call>(m, "ProjectionCall", py::module_local())
      .def(py::init([](int dtype, const Four& shape, const Four& x_strides, const Four& y_strides) {
        return Call{DType(dtype), shape_of(shape), strides_of(x_strides), strides_of(y_strides)};
      }))
      .def("threshold",
           [](const Call& call, Data x, Data k_values, double k, Data tau_values, double tau, Data y, Data state,
              Tail... tail) {
             Backend::threshold({call.dtype, call.shape, x, call.x_strides, per_vector(k_values, k),
                                 per_vector(tau_values, tau), y, call.y_strides, call.state_at(state)},
                                tail...);
           })
      .def("jvp", [](const Call& call, Data x, Data v, const Four& v_strides, Data state, Data tau_values, double tau,
                     Data out, Data sums, Tail... tail) {
        const State grads = call.state_at(sums);
        Backend::jvp({call.dtype, call.shape, x, call.x_strides, v, strides_of(v_strides), call.state_at(state),
                      per_vector(tau_values, tau), out, call.y_strides, grads.p, grads.d},
                     tail...);
      });
}

// The loss for one signature: all of LossArgs that is the same in every call.
using LossTensors = std::array<Data, 7>;  // x, state, target, k_values, tau_values, weight, sample_weight
template <class Backend>
struct LossCall {
  LossArgs args;
  Strides grad_strides;

  LossArgs at(const LossTensors& tensors) const {
    LossArgs placed = args;
    placed.x = tensors[0];
    placed.state = tensors[1];
    placed.target = tensors[2];
    placed.k.values = tensors[3];
    placed.tau.values = tensors[4];
    placed.weight = tensors[5];
    placed.sample_weight = tensors[6];
    return placed;
  }
};

template <class Backend, class... Tail>
void define_loss(py::module_& m) {
  using Call = LossCall<Backend>;
  py::class_<Call>(m, "LossCall", py::module_local())
      .def(py::init([](int dtype, const Four& shape, const Four& x_strides, int target_kind, const Four& target_strides,
                       const Four& grad_strides, double k, int mass_kind, double tau, int64_t ignore_index,
                       double label_smoothing, int kind, int reduction) {
        return Call{{DType(dtype), shape_of(shape), nullptr, strides_of(x_strides), TargetKind(target_kind), nullptr,
                     strides_of(target_strides), MassKind(mass_kind), per_vector(nullptr, k), per_vector(nullptr, tau),
                     nullptr, nullptr, ignore_index, label_smoothing, LossKind(kind), Reduction(reduction), nullptr},
                    strides_of(grad_strides)};
      }))
      .def("forward", [](const Call& call, const LossTensors& tensors, Data loss,
                         Tail... tail) { Backend::loss_forward(call.at(tensors), loss, tail...); })
      .def("backward", [](const Call& call, const LossTensors& tensors, Data grad_output, Data grad, Tail... tail) {
        Backend::loss_backward(call.at(tensors), {grad_output, grad, call.grad_strides}, tail...);
      });
}

template <class Backend, class... Tail>
void define_sort(py::module_& m) {
  m.def("sort",
        [](int dtype, const Four& shape, Address x, const Four& x_strides, bool descending, Address values,
           const Four& values_strides, Address order, const Four& order_strides, bool wide_order, Tail... tail) {
          Backend::sort({DType(dtype), shape_of(shape), pointer<const void>(x), strides_of(x_strides), descending,
                         pointer<void>(values), strides_of(values_strides), pointer<void>(order),
                         strides_of(order_strides), wide_order},
                        tail...);
        });
}

// A term arrives as (address, strides, scale, logarithm), a placed tensor as (address, strides, ordered).
using TermTuple = std::tuple<Address, Four, double, bool>;
using PlacedTuple = std::tuple<Address, Four, bool>;
IsotonicTerm term_of(const TermTuple& t) {
  return {pointer<const void>(std::get<0>(t)), strides_of(std::get<1>(t)), std::get<2>(t), std::get<3>(t)};
}
Placed placed_of(const PlacedTuple& p) {
  return {pointer<void>(std::get<0>(p)), strides_of(std::get<1>(p)), std::get<2>(p)};
}

template <class Backend, class... Tail>
void define_isotonic(py::module_& m) {
  m.def("isotonic", [](int dtype, const Four& shape, int divergence, bool increasing, const TermTuple& a,
                       const TermTuple& b, Address weight, const Four& weight_strides, int result, double scale,
                       Address out, const Four& out_strides, Address order, const Four& order_strides, Address share,
                       const Four& share_strides, Address blocks, Tail... tail) {
    Backend::isotonic(
        {DType(dtype), shape_of(shape), Divergence(divergence), increasing, term_of(a), term_of(b),
         pointer<const void>(weight), strides_of(weight_strides), IsotonicResult(result), scale, pointer<void>(out),
         strides_of(out_strides), pointer<const int32_t>(order), strides_of(order_strides), pointer<void>(share),
         strides_of(share_strides), pointer<Blocks>(blocks)},
        tail...);
  });
  m.def("block_product", [](int dtype, const Four& shape, int product, const PlacedTuple& v, const PlacedTuple& weight,
                            const PlacedTuple& out, double scale, Address order, const Four& order_strides,
                            Address blocks, Tail... tail) {
    Backend::block_product(
        {DType(dtype), shape_of(shape), BlockProduct(product), placed_of(v), placed_of(weight), placed_of(out), scale,
         pointer<const int32_t>(order), strides_of(order_strides), pointer<const Blocks>(blocks)},
        tail...);
  });
}

py::dict build_info() {
  py::dict info;
  info["version"] = HYPERSIMPLEX_VERSION;
  info["compiler"] = HYPERSIMPLEX_COMPILER;
  info["vector_extension"] = cpu::vector_extension();
  info["cuda"] = HYPERSIMPLEX_CUDA_VERSION[0] == '\0' ? py::object(py::none()) : py::str(HYPERSIMPLEX_CUDA_VERSION);
  info["cuda_architectures"] = HYPERSIMPLEX_CUDA_ARCHITECTURES;
  return info;
}

}  // namespace
}  // namespace hypersimplex

PYBIND11_MODULE(HYPERSIMPLEX_MODULE, m) {
  using namespace hypersimplex;
  m.def("build_info", &build_info);
  py::module_ on_cpu = m.def_submodule("cpu");
  define_projection<Cpu, int>(on_cpu);
  define_loss<Cpu, int>(on_cpu);
  define_sort<Cpu, int>(on_cpu);
  define_isotonic<Cpu, int>(on_cpu);
#ifdef HYPERSIMPLEX_WITH_CUDA
  py::module_ on_cuda = m.def_submodule("cuda");
  define_projection<Cuda, Address, py::function>(on_cuda);
  define_loss<Cuda, Address, py::function>(on_cuda);
  define_sort<Cuda, Address, py::function>(on_cuda);
  define_isotonic<Cuda, Address, py::function>(on_cuda);
#endif
}
