"""What evaluates a potential: plain torch, compiled C++ on a CPU, Triton kernels or a recorded CUDA graph on a GPU.

`learning` and `kernel_learning` are what trains one: generated code whose results can be differentiated by the weights.
"""
