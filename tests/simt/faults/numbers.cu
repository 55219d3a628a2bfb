// The emulator's own arithmetic, for comparison with other implementations.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "launch.cuh"
#include "module.h"

float through_half(double v) { return __half2float(__half(v)); }
float through_bfloat16(double v) { return __bfloat162float(__nv_bfloat16(v)); }
float half_of_bits(int bits) { return __half2float(__ushort_as_half((unsigned short)(bits))); }

std::vector<float> float_directed(const std::string& operation, float a, float b) {
  if (operation == "add") return {__fadd_rd(a, b), __fadd_rn(a, b), __fadd_ru(a, b), __fadd_rz(a, b)};
  if (operation == "sub") return {__fsub_rd(a, b), __fsub_rn(a, b), __fsub_ru(a, b), __fsub_rz(a, b)};
  if (operation == "mul") return {__fmul_rd(a, b), __fmul_rn(a, b), __fmul_ru(a, b), __fmul_rz(a, b)};
  return {__fdiv_rd(a, b), __fdiv_rn(a, b), __fdiv_ru(a, b), __fdiv_rz(a, b)};
}

std::vector<float> float_of_double(double v) {
  return {__double2float_rd(v), __double2float_rn(v), __double2float_ru(v), __double2float_rz(v)};
}
