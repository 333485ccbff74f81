//! `collector` sees inside worker processes from outside.
pub mod input;
pub mod snapshot;
pub mod units;
