//! The built program as its users meet it, without privileges: `/proc` is the source.
#![allow(missing_docs, reason = "tests")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]
#![allow(clippy::disallowed_methods, reason = "conditions are asked for again after a pause")]

#[path = "../support/mod.rs"]
mod support;

mod command_line;
mod pprof;
mod procfs;
mod readme;
mod reload;
mod serving;
