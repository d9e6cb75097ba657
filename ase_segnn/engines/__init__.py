"""What evaluates a potential: plain torch, compiled C++ on a CPU, or a recorded CUDA graph on a GPU."""
