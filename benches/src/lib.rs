//! Benchmarks of weighbridge against its peers.
