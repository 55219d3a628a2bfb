"""What the compiled CUDA kernels cost, counted in their instructions: no GPU is needed, and nothing is measured."""
