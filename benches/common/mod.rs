//! What the benches share.
#![allow(dead_code, reason = "each bench uses its part")]

pub(crate) mod bpf;
pub(crate) mod cost;
pub(crate) mod empty;
pub(crate) mod launch;
pub(crate) mod plan;
pub(crate) mod sidecar;
pub(crate) mod statistics;
pub(crate) mod table;

/// The middle one, the upper of two; not a number where there is none.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
