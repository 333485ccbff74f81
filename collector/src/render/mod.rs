//! Snapshot to bytes, pure; the only home of wire formats. Knows nothing of HTTP, time or the host.

pub mod json;
pub mod prometheus;

#[cfg(test)]
pub(crate) mod fixture;
