//! What it costs that the allocator remembers samples of what it gives out: `cargo bench --bench heap`.
//!
//! CPU time of this thread for a block that is asked for and given back, with the C library's allocator and with ours in front of it, in
//! turn; of several rounds the middle one.
#![allow(clippy::disallowed_methods, missing_docs, reason = "a program")]
#![allow(unsafe_code, reason = "allocators are unsafe to call")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::io::Write as _;
use std::time::Duration;

use collector::heap::sampled::{PERIOD_BYTES, Sampled};
use nix::time::ClockId;

const ROUNDS: usize = 41;

/// Blocks that are in use at a time.
const IN_USE: usize = 64;

/// Enough that a round takes some milliseconds.
const TURNS: usize = 2000;

fn main() -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "| blocks of | malloc | sampled | more | samples |")?;
    writeln!(out, "|---|---|---|---|---|")?;
    for size in [16, 256, 4096, 65_536] {
        let layout = Layout::from_size_align(size, 8)?;
        let (mut plain, mut sampled) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            plain.push(ns_of_a_block(&System, layout)?);
            sampled.push(ns_of_a_block(&Sampled, layout)?);
        }
        let (plain, sampled) = (middle(plain), middle(sampled));
        let share = -(-(size as f64) / PERIOD_BYTES as f64).exp_m1();
        writeln!(
            out,
            "| {size} bytes | {plain:.1} ns | {sampled:.1} ns | {:.1} ns | {:.3} % |",
            sampled - plain,
            share * 100.0
        )?;
    }
    Ok(())
}

fn ns_of_a_block(allocator: &impl GlobalAlloc, layout: Layout) -> anyhow::Result<f64> {
    let mut blocks = [std::ptr::null_mut(); IN_USE];
    let begin = cpu()?;
    for _ in 0..TURNS {
        for block in &mut blocks {
            // SAFETY: of a size that is not zero.
            *block = black_box(unsafe { allocator.alloc(layout) });
        }
        for block in blocks {
            // SAFETY: it came from there with this layout.
            unsafe { allocator.dealloc(block, layout) };
        }
    }
    Ok((cpu()? - begin).as_secs_f64() * 1e9 / (TURNS * IN_USE) as f64)
}

fn cpu() -> anyhow::Result<Duration> {
    Ok(ClockId::CLOCK_THREAD_CPUTIME_ID.now()?.into())
}

fn middle(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}
