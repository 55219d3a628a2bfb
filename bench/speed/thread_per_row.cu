// The published way to project on a GPU, written from its description to compare with: logits sorted in descending
// order come in, and one thread per row pools adjacent violators over them, serially, in global memory. Sorting and
// putting results back in order are left to PyTorch, see thread_per_row.py. Not part of the package.
#include <cuda_runtime.h>

#include <cstdint>

namespace {

constexpr int kThreads = 64;  // per block: few rows still spread over several multiprocessors

// v: the non-increasing isotonic regression of s - w, w being k ones and then zeros. Blocks of equal v are kept as a
// stack of sums and first entries; start[i] of the result is the first entry of the block that holds entry i. Sums are
// doubles, so that long rows agree with other methods.
__global__ void pool_kernel(const float* s, const float* k, float* v, int* start, double* sums, int64_t rows, int n) {
  int64_t row = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (row >= rows) return;
  s += row * n;
  v += row * n;
  start += row * n;
  sums += row * n;
  int blocks = 0;
  for (int i = 0; i < n; ++i) {
    double w = double(k[row]) - i;
    double sum = s[i] - (w < 0 ? 0 : w > 1 ? 1 : w);
    int first = i;
    while (blocks > 0 && sums[blocks - 1] * (i + 1 - first) < sum * (first - start[blocks - 1])) {
      --blocks;
      sum += sums[blocks];
      first = start[blocks];
    }
    sums[blocks] = sum;
    start[blocks] = first;
    ++blocks;
  }
  for (int end = n; blocks > 0; --blocks) {  // from the back, where no block's entry is overwritten before it is read
    int first = start[blocks - 1];
    float mean = float(sums[blocks - 1] / (end - first));
    for (int i = first; i < end; ++i) {
      v[i] = mean;
      start[i] = first;
    }
    end = first;
  }
}

// out: g less its mean over the block that holds the entry.
__global__ void centre_kernel(const float* g, const int* start, float* out, int64_t rows, int n) {
  int64_t row = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (row >= rows) return;
  g += row * n;
  start += row * n;
  out += row * n;
  for (int first = 0; first < n;) {
    double sum = 0;
    int end = first;
    for (; end < n && start[end] == first; ++end) sum += g[end];
    float mean = float(sum / (end - first));
    for (int i = first; i < end; ++i) out[i] = g[i] - mean;
    first = end;
  }
}

template <class... Parameters, class... Arguments>
int launch(int64_t rows, void* stream, void (*kernel)(Parameters...), Arguments... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned((rows + kThreads - 1) / kThreads));
  config.blockDim = dim3(kThreads);
  config.stream = static_cast<cudaStream_t>(stream);
  return int(cudaLaunchKernelEx(&config, kernel, arguments...));
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

// Pointers to device memory, [rows, n] but for k [rows]; sums is workspace. The result is a cudaError_t.
EXPORT int thread_per_row_pool(const float* s, const float* k, float* v, int* start, double* sums, int64_t rows, int n,
                               void* stream) {
  return launch(rows, stream, pool_kernel, s, k, v, start, sums, rows, n);
}
EXPORT int thread_per_row_centre(const float* g, const int* start, float* out, int64_t rows, int n, void* stream) {
  return launch(rows, stream, centre_kernel, g, start, out, rows, n);
}
