//! The command line: parses, calls [`collector::app`], turns the result into an exit code.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use collector::config::cli::{Cli, Command, Flags, LogFormat, LogLevel};
use collector::heap::sampled::Sampled;
use collector::{app, config, doctor};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

#[global_allocator]
static ALLOCATOR: Sampled = Sampled;

fn main() -> ExitCode {
    let cli = Cli::parse();
    start_logging(&cli.flags);
    let result = match cli.command {
        None => app::run(cli.flags).map(|()| true),
        Some(Command::Doctor { format }) => {
            doctor::run(&cli.flags, format, &mut std::io::stdout().lock()).map_err(Into::into)
        }
        Some(Command::CheckConfig { file }) => check_config(&file),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            // Standard error may be closed; there is nobody left to tell.
            let _ = writeln!(std::io::stderr(), "collector: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn check_config(file: &std::path::Path) -> anyhow::Result<bool> {
    let config = config::file::load(file)?;
    let mut out = std::io::stdout().lock();
    let count = config.matcher.rules().len();
    writeln!(out, "{}: valid, {count} {}", file.display(), if count == 1 { "pool" } else { "pools" })?;
    for rule in config.matcher.rules() {
        writeln!(out, "  {}", rule.name)?;
    }
    if config.zero_config {
        writeln!(out, "  and pools that are found by themselves")?;
    }
    Ok(true)
}

fn start_logging(flags: &Flags) {
    let level = match flags.log_level {
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Error => LevelFilter::ERROR,
    };
    let registry = tracing_subscriber::registry().with(level);
    match flags.log_format {
        LogFormat::Logfmt => {
            registry
                .with(tracing_logfmt::builder().with_target(false).layer().with_writer(std::io::stderr))
                .init();
        }
        LogFormat::Json => registry
            .with(
                tracing_subscriber::fmt::layer()
                    .json()
                    .flatten_event(true)
                    .with_target(false)
                    .with_writer(std::io::stderr),
            )
            .init(),
    }
}
