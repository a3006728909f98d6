//! Benchmarks of halfseg.
