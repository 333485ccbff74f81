//! `collector doctor`: what this kernel and these rights allow, feature by feature, and what would bring the rest.
//!
//! Asks by doing: the programs are loaded and attached, and let go of again. What is said here is what
//! `collector_feature_enabled` says while running.

use std::io::{self, Write};

use serde::Serialize;

use crate::config::cli::{Flags, ReportFormat};
use crate::kernel::support::Support;
use crate::snapshot::Feature;
use crate::source;
use crate::units::HostFacts;

#[derive(Serialize)]
struct Report<'a> {
    version: &'static str,
    kernel: &'a str,
    lockdown: Option<&'a str>,
    source: Option<&'static str>,
    error: Option<String>,
    features: Vec<Item<'a>>,
}

#[derive(Serialize)]
struct Item<'a> {
    name: &'static str,
    enabled: bool,
    #[serde(skip_serializing_if = "str::is_empty")]
    reason: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    remedy: &'a str,
}

/// Writes the report. True if the source that was asked for works; a reduced one works, too.
pub fn run(flags: &Flags, format: ReportFormat, out: &mut dyn Write) -> io::Result<bool> {
    let support = Support::probe(&flags.sysfs);
    let opened =
        source::open(flags.source, flags.requests_by, &support, &flags.procfs, HostFacts::of_this_host());
    let (source, features, error) = match opened {
        Ok(opened) => {
            let mut features = opened.obstacles;
            features.extend(opened.source.features());
            if let Some(Err(error)) = opened.samplers.map(|samplers| samplers.try_all())
                && let Some(profiles) = features.iter_mut().find(|feature| feature.name == "profiles")
            {
                profiles.enabled = false;
                profiles.reason = format!("workers cannot be profiled: {error}");
                profiles.remedy = error.remedy();
            }
            (Some(opened.source.name()), features, None)
        }
        Err(error) => (None, Vec::new(), Some(format!("{error:#}"))),
    };
    let works = error.is_none();
    match format {
        ReportFormat::Json => {
            let report = Report {
                version: env!("CARGO_PKG_VERSION"),
                kernel: &support.release,
                lockdown: support.lockdown.as_deref(),
                source,
                error,
                features: features
                    .iter()
                    .map(|f| Item { name: f.name, enabled: f.enabled, reason: &f.reason, remedy: &f.remedy })
                    .collect(),
            };
            serde_json::to_writer_pretty(&mut *out, &report)?;
            writeln!(out)?;
        }
        ReportFormat::Text => text(&support, source, &features, error.as_deref(), out)?,
    }
    Ok(works)
}

fn text(
    support: &Support,
    source: Option<&str>,
    features: &[Feature],
    error: Option<&str>,
    out: &mut dyn Write,
) -> io::Result<()> {
    writeln!(out, "kernel    {}", support.release)?;
    if let Some(lockdown) = &support.lockdown {
        writeln!(out, "lockdown  {lockdown}")?;
    }
    writeln!(out, "source    {}", source.unwrap_or("none"))?;
    if let Some(error) = error {
        writeln!(out, "\n{error}")?;
    }
    writeln!(out)?;
    let width = features.iter().map(|f| f.name.len()).max().unwrap_or(0);
    for feature in features {
        let verdict = if feature.enabled { "yes" } else { "no " };
        write!(out, "{verdict}  {:width$}", feature.name)?;
        if !feature.reason.is_empty() {
            write!(out, "  {}", feature.reason)?;
        }
        writeln!(out)?;
        if !feature.remedy.is_empty() {
            writeln!(out, "     {:width$}  → {}", "", feature.remedy)?;
        }
    }
    let missing = features.iter().filter(|f| !f.enabled).count();
    match (missing, features.len()) {
        (_, 0) => Ok(()),
        (0, all) => writeln!(out, "\nall {all} features work here"),
        (missing, all) => writeln!(out, "\n{} of {all} features work here", all - missing),
    }
}
