// What threads are asked for, also where there is no OpenMP: then one thread does all the work.
#pragma once
#ifdef _OPENMP
#include <omp.h>
#else
static inline int omp_get_thread_num() { return 0; }
static inline int omp_get_num_threads() { return 1; }
#endif
