//! Run time of the BPF programs that a process has open, by tracepoint, from the `fdinfo` of its descriptors.

use std::collections::HashMap;
use std::fs;

use anyhow::{Context, ensure};

pub(crate) const SWITCH: &str = "sched_switch";
pub(crate) const WAKEUP: &str = "sched_wakeup";
/// What the programs here attach to.
pub(crate) const TRACEPOINTS: [&str; 3] = [SWITCH, WAKEUP, "sched_wakeup_new"];

/// Run time, ns, and runs, by tracepoint.
#[derive(Debug, Default)]
pub(crate) struct Cost(HashMap<String, (u64, u64)>);

impl Cost {
    /// Links say what a program is attached to, programs how long they ran. `process` is a number or `self`.
    pub(crate) fn of(process: &str) -> anyhow::Result<Self> {
        let directory = format!("/proc/{process}/fdinfo");
        let (mut programs, mut links) = (HashMap::new(), HashMap::new());
        for entry in fs::read_dir(&directory).with_context(|| format!("listing {directory}"))? {
            // A process closes descriptors while we look.
            let Ok(text) = fs::read_to_string(entry?.path()) else { continue };
            let field = |name: &str| {
                let rest = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
                rest.map(|rest| rest.trim().to_owned())
            };
            let number = |name: &str| field(name).and_then(|value| value.parse::<u64>().ok());
            let Some(program) = number("prog_id") else { continue };
            if let Some(tracepoint) = field("tp_name") {
                links.insert(program, tracepoint);
            } else if let (Some(ns), Some(runs)) = (number("run_time_ns"), number("run_cnt")) {
                programs.insert(program, (ns, runs));
            }
        }
        let mut cost = Self::default();
        for (program, (ns, runs)) in programs {
            if let Some(tracepoint) = links.remove(&program) {
                let sum = cost.0.entry(tracepoint).or_default();
                *sum = (sum.0 + ns, sum.1 + runs);
            }
        }
        ensure!(cost.0.contains_key(SWITCH), "process {process} has no program at {SWITCH}");
        Ok(cost)
    }

    pub(crate) fn since(&self, before: &Self) -> Self {
        let difference = |(name, (ns, runs)): (&String, &(u64, u64))| {
            let (ns_before, runs_before) = before.0.get(name).copied().unwrap_or_default();
            (name.clone(), (ns - ns_before, runs - runs_before))
        };
        Self(self.0.iter().map(difference).collect())
    }

    /// Run time of all, ns, and what is left of it without what `empty` took for as many runs, where it is attached.
    pub(crate) fn ns_and_net_ns(&self, empty: &Self) -> (f64, f64) {
        let ns: u64 = self.0.values().map(|(ns, _)| ns).sum();
        let counting: f64 = self
            .0
            .iter()
            .filter(|(name, (_, runs))| *runs > 0 && empty.0.contains_key(*name))
            .map(|(name, (_, runs))| *runs as f64 * empty.ns_per_run(name))
            .sum();
        (ns as f64, ns as f64 - counting)
    }

    /// Tracepoints with runs there and their mean run time, ns, the busiest first.
    pub(crate) fn by_tracepoint(&self) -> Vec<(&str, u64, f64)> {
        let mut all: Vec<_> =
            self.0.iter().map(|(name, (_, runs))| (name.as_str(), *runs, self.ns_per_run(name))).collect();
        all.sort_by_key(|(_, runs, _)| std::cmp::Reverse(*runs));
        all
    }

    /// Not a number when it did not run.
    pub(crate) fn ns_per_run(&self, tracepoint: &str) -> f64 {
        let (ns, runs) = self.0.get(tracepoint).copied().unwrap_or_default();
        if runs == 0 { f64::NAN } else { ns as f64 / runs as f64 }
    }

    /// Net of what `empty` says; zero for a tracepoint that it does not use.
    pub(crate) fn net_ns_per_run(&self, tracepoint: &str, empty: &Self) -> f64 {
        if self.0.contains_key(tracepoint) {
            self.ns_per_run(tracepoint) - empty.ns_per_run(tracepoint)
        } else {
            0.0
        }
    }
}
