//! Real programs in a real kernel, and ground truth that the test itself makes. Runs as root.
//!
//! `portable` needs nothing but a kernel and our own programs: it also runs in the virtual machines of
//! `cargo xtask vm`, on older kernels. The other modules start servers from distribution packages.
#![allow(missing_docs, reason = "tests")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]
#![allow(clippy::disallowed_methods, reason = "conditions are asked for again after a pause")]

#[path = "../support/mod.rs"]
mod support;

mod fallback;
mod portable;
mod profiles;
mod prometheus;
mod requests;
mod schedule;
mod servers;
mod storm;
mod trace;
mod waterfall;
