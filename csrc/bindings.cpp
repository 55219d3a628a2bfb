// Python bindings: tensors in, launcher out, C++ exception -> Python exception. Tensors are looked at here, and only
// here, right before the kernels get their addresses (tensor_view.h); None is a null pointer. The submodules `cpu` and
// `cuda` hold the same functions with the same leading arguments; a cpu function ends in `threads`, a cuda function in
// `stream, allocate`, where allocate(bytes) returns the address of device memory for this call's workspace. Projection
// and loss are objects, ProjectionCall and LossCall, which hold what the tensors and settings of every call of one
// layout or signature are to be.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <initializer_list>
#include <tuple>
#include <utility>

#include "cpu/projection/solvers/solver.h"
#include "hypersimplex.h"
#include "loss_signature.h"
#include "tensor_view.h"

#ifndef HYPERSIMPLEX_MODULE
#define HYPERSIMPLEX_MODULE _C
#endif

namespace hypersimplex {
namespace {

using Address = std::uintptr_t;

template <class T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}
PerVector per_vector(const double* values, double value) { return {values, value}; }

DType dtype_of(int dtype) { return choice("dtype", dtype, DType::kBFloat16); }
DType dtype_of(const char* name, const TensorView& view) {
  for (DType dtype : {DType::kFloat32, DType::kFloat64, DType::kFloat16, DType::kBFloat16})
    if (view.dtype() == data_type(dtype)) return dtype;
  throw py::type_error(std::string(name) + " must be float16, bfloat16, float32 or float64, got " +
                       name_of(view.dtype()));
}
// "cpu" or "cuda", and a number.
dlpack::Device device_of(const std::string& type, int index) {
  return {type == "cpu" ? dlpack::kCPU : type == "cuda" ? dlpack::kCUDA : -1, index};
}
// What the tensors of a call are to be that has no other measure than this one.
Vectors vectors_like(const char* name, const Argument& tensor, int dim, int cut) {
  const TensorView view(name, tensor, Role::kInput);
  return Vectors(dtype_of(name, view), view.device(), view.sizes(), dim, cut);
}

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
  static void average_thresholds(const ThresholdAverage& average, int) { cpu::average_thresholds(average); }
  static void shard_sums(const LossArgs& args, const ShardCall& call, int threads) {
    py::gil_scoped_release release;
    cpu::shard_sums(args, call, threads);
  }
  static void shard_step(const LossArgs& args, const ShardCall& call, int) {
    py::gil_scoped_release release;
    cpu::shard_step(args, call);
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
  static void average_thresholds(const ThresholdAverage& average, Address stream, const py::function&) {
    cuda::average_thresholds(average, pointer<void>(stream));
  }
  static void shard_sums(const LossArgs& args, const ShardCall& call, Address stream, const py::function& allocate) {
    void* memory = workspace(cuda::shard_sums_workspace(args), allocate);
    py::gil_scoped_release release;
    cuda::shard_sums(args, call, memory, pointer<void>(stream));
  }
  static void shard_step(const LossArgs& args, const ShardCall& call, Address stream, const py::function&) {
    py::gil_scoped_release release;
    cuda::shard_step(args, call, pointer<void>(stream));
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

// The projection of tensors of one layout, and its products.
template <class Backend, class... Tail>
void define_projection(py::module_& m) {
  struct Call : Vectors {
    using Vectors::Vectors;
    State state_at(const char* name, const Argument& tensor, Role role) const {
      double* p = numbers<double>(name, tensor, role, kFloat64, state);
      return {p, p ? p + shape.outer * shape.inner : nullptr};
    }
  };
  // Local: the emulator's module has classes of the same names.
  py::class_<Call>(m, "ProjectionCall", py::module_local())
      .def(py::init([](int dtype, const std::string& device, int index, const Sizes& sizes, int dim, int cut) {
        return Call(dtype_of(dtype), device_of(device, index), sizes, dim, cut);
      }))
      .def("threshold",
           [](const Call& call, Argument x, Argument k_values, double k, Argument tau_values, double tau, Argument y,
              Argument state, Tail... tail) {
             const auto from = call.at("x", x, Role::kInput), to = call.at("y", y, Role::kOutput);
             Backend::threshold(
                 {call.dtype, call.shape, from.data, from.strides, per_vector(call.per_vector("k_values", k_values), k),
                  per_vector(call.per_vector("tau_values", tau_values), tau), to.data, to.strides,
                  call.state_at("state", state, Role::kOutput)},
                 tail...);
           })
      .def("jvp", [](const Call& call, Argument x, Argument v, Argument state, Argument tau_values, double tau,
                     Argument out, Argument sums, Tail... tail) {
        const auto at = call.at("x", x, Role::kInput), along = call.at("v", v, Role::kInput);
        const auto to = call.at("out", out, Role::kOutput);
        require_given("state", state);
        const State left = call.state_at("state", state, Role::kInput);
        const State grads = call.state_at("sums", sums, Role::kOutput);
        Backend::jvp(
            {call.dtype, call.shape, at.data, at.strides, along.data, along.strides, left,
             per_vector(call.per_vector("tau_values", tau_values), tau), to.data, to.strides, grads.p, grads.d},
            tail...);
      });
}

template <class Backend, class... Tail>
void define_loss(py::module_& m) {
  struct Call : LossSignature {  // one for each backend
    using LossSignature::LossSignature;
  };
  py::class_<Call>(m, "LossCall", py::module_local())
      .def(py::init([](int dtype, const std::string& device, int index, const Sizes& sizes, int target_kind, double k,
                       int mass_kind, double tau, int64_t ignore_index, double label_smoothing, int kind,
                       int reduction) {
        LossArgs args{};
        args.dtype = dtype_of(dtype);
        args.target_kind = choice("target_kind", target_kind, TargetKind::kNone);
        args.mass_kind = choice("mass_kind", mass_kind, MassKind::kFraction);
        args.k.value = k;
        args.tau.value = tau;
        args.ignore_index = ignore_index;
        args.label_smoothing = label_smoothing;
        args.kind = choice("kind", kind, LossKind::kFenchelYoung);
        args.reduction = choice("reduction", reduction, Reduction::kSum);
        return Call(args.dtype, device_of(device, index), sizes, args);
      }))
      .def("forward",
           [](const Call& call, const LossTensors& tensors, Argument loss, Tail... tail) {
             const TensorView value("loss", loss, Role::kOutput);
             value.require(call.type, call.device, call.none);
             Backend::loss_forward(call.at(tensors, Role::kOutput), value.data(), tail...);
           })
      .def("backward",
           [](const Call& call, const LossTensors& tensors, Argument grad_output, Argument grad, Tail... tail) {
             const LossArgs placed = call.at(tensors, Role::kInput);
             const TensorView upstream("grad", grad_output, Role::kInput), to = call.view("out", grad, Role::kOutput);
             upstream.require(call.type, call.device, call.none);
             Backend::loss_backward(placed, {upstream.data(), to.data(), Call::strides_of(to, true)}, tail...);
           })
      .def("search_bytes", [](const Call& call) { return call.search_bytes(); })
      .def("shard_rows",
           [](const Call&, int stage) {
             const ShardRows rows = shard_rows(choice("stage", stage, ShardStage::kLoss));
             return std::make_pair(rows.added, rows.greatest);
           })
      .def("shard_sums",
           [](const Call& call, const LossTensors& tensors, int stage, Argument searches, Argument sums, Tail... tail) {
             Backend::shard_sums(call.at(tensors, Role::kInput),
                                 call.shard_call(stage, searches, sums, Role::kOutput, {}, {}, 0), tail...);
           })
      .def("shard_step", [](const Call& call, const LossTensors& tensors, int stage, Argument searches, Argument totals,
                            Argument after, Argument loss, double few, Tail... tail) {
        require_given("after", after);
        if (stage == int(ShardStage::kLoss)) require_given("loss", loss);
        Backend::shard_step(call.at(tensors, Role::kInput),
                            call.shard_call(stage, searches, totals, Role::kInput, after, loss, few), tail...);
      });
  // `state` begins with the thresholds p [C], d [C].
  m.def("average_thresholds", [](Argument state, Argument average, Argument batches, double momentum, Tail... tail) {
    const TensorView from("state", state, Role::kInput), to("average", average, Role::kInput);
    const DType dtype = dtype_of("average", to);
    if (dtype != DType::kFloat32 && dtype != DType::kFloat64)
      throw py::type_error("average must be float32 or float64, got " + name_of(to.dtype()));
    if (to.ndim() != 1 || from.ndim() != 1 || from.size(0) < 2 * to.size(0))
      throw py::value_error("state must be a vector of at least twice the size of average, a vector, got " +
                            text_of(from.sizes()) + " and " + text_of(to.sizes()));
    const int64_t classes = to.size(0);
    const Elements elements(dtype, to.device(), {classes});
    from.require(kFloat64, to.device(), from.sizes());
    from.require_contiguous();
    to.require_contiguous();
    require_given("batches", batches);
    auto* counts = elements.numbers<int64_t>("batches", batches, Role::kInput, kInt64, {classes});
    const double* p = static_cast<const double*>(from.data());
    Backend::average_thresholds({dtype, classes, p, p + classes, to.data(), counts, momentum}, tail...);
  });
}

template <class Backend, class... Tail>
void define_sort(py::module_& m) {
  m.def("sort", [](int dim, int cut, Argument x, bool descending, Argument values, Argument order, bool wide_order,
                   Tail... tail) {
    const Vectors call = vectors_like("x", x, dim, cut);
    const auto from = call.at("x", x, Role::kInput), to = call.given("values", values, Role::kOutput);
    const auto places = call.given("order", order, Role::kOutput, wide_order ? kInt64 : kInt32);
    Backend::sort({call.dtype, call.shape, from.data, from.strides, descending, to.data, to.strides, places.data,
                   places.strides, wide_order},
                  tail...);
  });
}

// A term arrives as (tensor, scale, logarithm), a placed tensor as (tensor, ordered).
using TermTuple = std::tuple<Argument, double, bool>;
using PlacedTuple = std::tuple<Argument, bool>;

// Bits in 32-bit words, of which torch knows the bytes: uint8 [*rest, 4 * ceil(n / 32)].
Blocks* blocks_of(const Vectors& call, const Argument& blocks, Role role) {
  Sizes sizes = call.rest;
  sizes.push_back((call.shape.n2 + 31) / 32 * 4);
  require_given("blocks", blocks);
  auto* bytes = call.numbers<char>("blocks", blocks, role, kByte, sizes);
  if (reinterpret_cast<Address>(bytes) % sizeof(Blocks))
    throw py::value_error("blocks must begin at a multiple of 4 bytes");
  return reinterpret_cast<Blocks*>(bytes);
}

template <class Backend, class... Tail>
void define_isotonic(py::module_& m) {
  m.def("isotonic", [](int dim, int cut, int divergence, bool increasing, const TermTuple& a, const TermTuple& b,
                       Argument weight, int result, double scale, Argument out, Argument order, Argument share,
                       Argument blocks, Tail... tail) {
    const bool by_a = bool(std::get<0>(a));
    const Vectors call = vectors_like(by_a ? "a" : "b", std::get<0>(by_a ? a : b), dim, cut);
    auto term = [&](const char* name, const TermTuple& t) -> IsotonicTerm {
      const auto data = call.given(name, std::get<0>(t), Role::kInput);
      return {data.data, data.strides, std::get<1>(t), std::get<2>(t)};
    };
    const auto w = call.given("weight", weight, Role::kInput), to = call.at("out", out, Role::kOutput);
    const auto places = call.given<const int32_t>("order", order, Role::kInput, kInt32);
    const auto shares = call.given("share", share, Role::kOutput);
    Backend::isotonic(
        {call.dtype, call.shape, choice("divergence", divergence, Divergence::kKL), increasing, term("a", a),
         term("b", b), w.data, w.strides, choice("result", result, IsotonicResult::kExpPrimal), scale, to.data,
         to.strides, places.data, places.strides, shares.data, shares.strides, blocks_of(call, blocks, Role::kOutput)},
        tail...);
  });
  m.def("block_product", [](int dim, int cut, int product, const PlacedTuple& v, const PlacedTuple& weight,
                            const PlacedTuple& out, double scale, Argument order, Argument blocks, Tail... tail) {
    const Vectors call = vectors_like("v", std::get<0>(v), dim, cut);
    auto placed = [&](const char* name, const PlacedTuple& p, Role role) -> Placed {
      const auto data = call.given(name, std::get<0>(p), role);
      return {data.data, data.strides, std::get<1>(p)};
    };
    const auto places = call.given<const int32_t>("order", order, Role::kInput, kInt32);
    Backend::block_product(
        {call.dtype, call.shape, choice("product", product, BlockProduct::kResidual), placed("v", v, Role::kInput),
         placed("weight", weight, Role::kInput), placed("out", out, Role::kOutput), scale, places.data, places.strides,
         blocks_of(call, blocks, Role::kInput)},
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

// The enumerations of hypersimplex.h as Python names them.
py::dict enumerations() {
  using namespace py::literals;
  auto codes = [](std::initializer_list<std::pair<const char*, int>> values) {
    py::dict named;
    for (const auto& [name, value] : values) named[name] = value;
    return named;
  };
  return py::dict(
      "DType"_a = codes({{"FLOAT32", int(DType::kFloat32)},
                         {"FLOAT64", int(DType::kFloat64)},
                         {"FLOAT16", int(DType::kFloat16)},
                         {"BFLOAT16", int(DType::kBFloat16)}}),
      "LossKind"_a = codes({{"SQUARED", int(LossKind::kSquared)}, {"FENCHEL_YOUNG", int(LossKind::kFenchelYoung)}}),
      "Reduction"_a = codes({{"MEAN", int(Reduction::kMean)}, {"SUM", int(Reduction::kSum)}}),
      "MassKind"_a = codes({{"VALUE", int(MassKind::kValue)},
                            {"TARGETS", int(MassKind::kTargets)},
                            {"FRACTION", int(MassKind::kFraction)}}),
      "Divergence"_a = codes({{"L2", int(Divergence::kL2)}, {"KL", int(Divergence::kKL)}}),
      "IsotonicResult"_a = codes({{"REGRESSION", int(IsotonicResult::kRegression)},
                                  {"PRIMAL", int(IsotonicResult::kPrimal)},
                                  {"EXP_PRIMAL", int(IsotonicResult::kExpPrimal)}}),
      "BlockProduct"_a = codes({{"MEAN", int(BlockProduct::kMean)},
                                {"RATIO", int(BlockProduct::kRatio)},
                                {"TRANSPOSED", int(BlockProduct::kTransposed)},
                                {"RESIDUAL", int(BlockProduct::kResidual)}}),
      "LossState"_a = codes({{"ROWS", kLossStateRows}}),
      "TargetKind"_a = codes({{"CLASS_INDEX", int(TargetKind::kClassIndex)},
                              {"DENSE", int(TargetKind::kDense)},
                              {"NONE", int(TargetKind::kNone)}}),
      "ShardStage"_a = codes({{"MOMENTS", int(ShardStage::kMoments)},
                              {"COUNTS", int(ShardStage::kCounts)},
                              {"EDGES", int(ShardStage::kEdges)},
                              {"LOSS", int(ShardStage::kLoss)}}));
}

}  // namespace
}  // namespace hypersimplex

PYBIND11_MODULE(HYPERSIMPLEX_MODULE, m) {
  using namespace hypersimplex;
  m.def("build_info", &build_info);
  m.def("enumerations", &enumerations);
  m.def("check_memory", [](const char* name, Argument tensor) { TensorView(name, tensor, Role::kInput); });
  py::module_ on_cpu = m.def_submodule("cpu");
  define_projection<Cpu, int>(on_cpu);
  define_loss<Cpu, int>(on_cpu);
  define_sort<Cpu, int>(on_cpu);
  define_isotonic<Cpu, int>(on_cpu);
  on_cpu.def("force_solver", &cpu::force_solver);
  on_cpu.def("take_solvers", &cpu::take_solvers);
#ifdef HYPERSIMPLEX_WITH_CUDA
  py::module_ on_cuda = m.def_submodule("cuda");
  define_projection<Cuda, Address, py::function>(on_cuda);
  define_loss<Cuda, Address, py::function>(on_cuda);
  define_sort<Cuda, Address, py::function>(on_cuda);
  define_isotonic<Cuda, Address, py::function>(on_cuda);
#endif
}
