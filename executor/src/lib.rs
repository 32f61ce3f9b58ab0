//! The executor of sstep: carries a plan out on a backend, with image sources and host memory
