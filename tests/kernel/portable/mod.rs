//! What must hold on every kernel of the matrix.

mod accept_queues;
pub(crate) mod cgroup;
mod cpu;
mod cycles;
mod ends;
mod identity;
mod listing;
pub(crate) mod losses;
mod memory;
mod profiles;
mod requests;
pub(crate) mod runs;
pub(crate) mod schedule;
mod states;
mod tags;
