//! Who is a worker, of which pool, in which slot, and what is known about it. No IO anywhere below.

mod certificates;
pub mod conservation;
pub mod flags;
pub mod matcher;
pub mod pool;
pub mod process;
pub mod recognize;
pub mod registry;
pub mod requests;
mod rest;
pub mod runs;
pub mod schedule;
pub mod state;
pub mod utilization;
pub mod waterfall;
