//! Whatever fails, everything else goes on: every operation that loads, with every fault that can be
//! made, and one check after each of them (`world`).
//!
//! `operations` has the operations and `world` what must hold, whatever happened. The faults: `loaders`
//! (sources that fail, panic, or write too little), `memory` (arenas that are refused), `hanging` (sources
//! that take their time), `holders` (leases and fences that never end), and on Linux the operating system's
//! own (`tap`): `files` (errors, short reads, files that change under the reader), `pieces` (the same where several
//! threads read one file), `streams` (the same where layers come and go), `limits` (descriptors, threads, address space), `killed` (the process ends in the
//! middle).

#[path = "../support/mod.rs"]
mod support;

mod faulty;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
mod files;
mod hanging;
mod heap;
mod holders;
#[cfg(unix)]
mod killed;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
mod limits;
mod loaders;
mod memory;
mod operations;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
mod pieces;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
mod streams;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
mod tap;
mod world;
