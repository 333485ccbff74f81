//! Snapshots and profiles to bytes, pure; the only home of wire formats. Knows nothing of HTTP, time or the host.

pub mod json;
pub mod pprof;
pub mod prometheus;
mod slow;

#[cfg(test)]
pub(crate) mod fixture;
