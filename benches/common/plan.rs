//! What a bench of probes is told by its arguments.

use std::path::PathBuf;

/// How to run.
#[derive(Debug)]
pub(crate) struct Plan {
    /// A short run.
    pub(crate) quick: bool,
    /// A missed target fails the run.
    pub(crate) check: bool,
    /// The collector that is measured.
    pub(crate) collector: PathBuf,
    /// Of the parts of the bench, the one to run alone.
    pub(crate) part: Option<String>,
}

impl Plan {
    /// By the arguments of the process. `collector` is the one to measure if they name none; `parts` are those that the bench
    /// has.
    pub(crate) fn from_arguments(collector: &str, parts: &[&str]) -> anyhow::Result<Self> {
        let mut plan = Self { quick: false, check: false, collector: collector.into(), part: None };
        for argument in std::env::args().skip(1) {
            match argument.as_str() {
                // What cargo adds.
                "--bench" => {}
                "--quick" => plan.quick = true,
                "--check" => plan.check = true,
                other => match other.split_once('=') {
                    Some(("--collector", path)) => plan.collector = path.into(),
                    Some(("--part", part)) if parts.contains(&part) => plan.part = Some(part.into()),
                    _ => anyhow::bail!(
                        "unknown argument {other}; there are --quick, --check, --collector=PATH and --part= with \
                         one of {parts:?}"
                    ),
                },
            }
        }
        Ok(plan)
    }

    /// This part is to run.
    pub(crate) fn wants(&self, part: &str) -> bool {
        self.part.as_deref().is_none_or(|wanted| wanted == part)
    }
}
