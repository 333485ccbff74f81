//! The eBPF source: loads the programs, and turns what comes out of the kernel into [`crate::input`] facts.
//!
//! Knows nothing of pools, names or rules; a pool is a number that comes back with a process.
#![allow(unsafe_code, reason = "bpf(2) and memory shared with the kernel; each block argues its case")]

mod alone;
pub mod btf;
mod events;
mod free_list;
mod load;
mod names;
mod object;
pub mod offsets;
mod requests;
mod sampler;
mod schedule;
mod shared;
mod slots;
mod source;
mod stacks;
pub mod support;
mod sys;
mod syscalls;
mod tags;
mod tasks;
mod threads;
mod waterfall;

pub use load::{LoadError, RequestsBy};
pub use names::Names;
pub use sampler::{Counts, Frames, Period, Sampler, Samplers, What};
pub use source::KernelSource;
pub use sys::run_time_statistics;
pub use threads::Threads;
