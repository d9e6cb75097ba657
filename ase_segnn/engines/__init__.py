"""What evaluates a potential: plain torch, compiled C++ on a CPU, or a recorded CUDA graph on a GPU.

`learning` is what trains one: compiled C++ whose results can be differentiated by the weights.
"""
