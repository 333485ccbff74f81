//! `collector` sees inside worker processes from outside.
pub mod aggregate;
pub mod histogram;
pub mod input;
pub mod kernel;
pub mod snapshot;
pub mod units;
pub mod worker;
