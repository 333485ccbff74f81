//! What was typed. Every flag has an environment twin, `COLLECTOR_` and the flag's name in capitals.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::http;
use crate::kernel::RequestsBy;

/// The port that we listen on by default: above those that exporters have registered with Prometheus (the range
/// 9100–9999 is given away, its continuation has reached 10052).
pub const DEFAULT_LISTEN_ADDRESS: &str = "127.0.0.1:10087";

/// Watches worker processes from outside: who works, what it costs, how it ended.
///
/// Without a configuration it finds the pools of nginx, gunicorn, PostgreSQL and any other program that forks
/// workers by itself.
#[derive(Debug, Parser)]
#[command(name = "collector", version, max_term_width = 100)]
pub struct Cli {
    /// Flags of the service.
    #[command(flatten)]
    pub flags: Flags,
    /// Something else than to run.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// Other things it can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Say what this kernel and these rights allow, and what would bring the rest
    Doctor {
        /// How to say it
        #[arg(long, value_enum, default_value_t = ReportFormat::Text)]
        format: ReportFormat,
    },
    /// Check a configuration file and show the pools that it names
    CheckConfig {
        /// The file
        file: PathBuf,
    },
}

/// Flags of the service.
#[derive(Debug, Args)]
pub struct Flags {
    /// Rules for pools (YAML). Without it pools are found by themselves
    #[arg(long = "config.file", env = "COLLECTOR_CONFIG_FILE", value_name = "FILE", global = true)]
    pub config_file: Option<PathBuf>,

    /// Where facts come from: eBPF if this host allows it and /proc if not, or one of them or nothing
    #[arg(long, env = "COLLECTOR_SOURCE", value_enum, default_value_t = SourceChoice::Auto, global = true)]
    pub source: SourceChoice,

    /// Address to serve on; may be repeated
    #[arg(
        long = "web.listen-address",
        env = "COLLECTOR_WEB_LISTEN_ADDRESS",
        value_name = "ADDRESS:PORT",
        value_delimiter = ',',
        default_value = DEFAULT_LISTEN_ADDRESS,
        global = true
    )]
    pub listen_addresses: Vec<SocketAddr>,

    /// CPU that the scheduler probes may take for followed threads, percent of one CPU: above it they record less, in steps. 0 is no limit
    #[arg(
        long = "probes.overhead-budget",
        env = "COLLECTOR_PROBES_OVERHEAD_BUDGET",
        value_name = "PERCENT",
        default_value = "1",
        value_parser = percent,
        allow_negative_numbers = true,
        global = true
    )]
    pub overhead_budget: f64,

    /// What requests are followed by. Through system calls also before Linux 6.3, and through pipes; but then each
    /// system call of each thread of the host costs some 0.1 µs more
    #[arg(
        long = "probes.requests",
        env = "COLLECTOR_PROBES_REQUESTS",
        value_enum,
        default_value_t = RequestsBy::Sockets,
        global = true
    )]
    pub requests_by: RequestsBy,

    /// Have the kernel count runs and run time of our programs, which adds some 40 ns to each run
    #[arg(long = "probes.bpf-stats", env = "COLLECTOR_PROBES_BPF_STATS", global = true)]
    pub bpf_stats: bool,

    /// Sample what runs on each CPU so often a second, and each long wait, all the time, and keep the last ten minutes for
    /// `/debug/pprof/profile?from=-5m`, `offcpu` and slow requests; 19 is a good number. 0 samples nothing while nobody asks
    #[arg(
        long = "profiles.continuous-hz",
        env = "COLLECTOR_PROFILES_CONTINUOUS_HZ",
        value_name = "HZ",
        default_value_t = 0,
        value_parser = clap::value_parser!(u32).range(0..=MOST_CONTINUOUS_HZ),
        global = true
    )]
    pub continuous_hz: u32,

    /// Path of the metrics
    #[arg(
        long = "web.telemetry-path",
        env = "COLLECTOR_WEB_TELEMETRY_PATH",
        value_name = "PATH",
        default_value = "/metrics",
        value_parser = http::Config::with_telemetry_path,
        global = true
    )]
    pub http: http::Config,

    /// TLS, basic authentication and headers, in the format of Prometheus exporters (YAML)
    #[arg(long = "web.config.file", env = "COLLECTOR_WEB_CONFIG_FILE", value_name = "FILE", global = true)]
    pub web_config_file: Option<PathBuf>,

    /// Where procfs is mounted
    #[arg(
        long = "path.procfs",
        env = "COLLECTOR_PATH_PROCFS",
        value_name = "DIR",
        default_value = "/proc",
        global = true
    )]
    pub procfs: PathBuf,

    /// Where sysfs is mounted
    #[arg(
        long = "path.sysfs",
        env = "COLLECTOR_PATH_SYSFS",
        value_name = "DIR",
        default_value = "/sys",
        global = true
    )]
    pub sysfs: PathBuf,

    /// Least severe messages that are logged
    #[arg(long = "log.level", env = "COLLECTOR_LOG_LEVEL", value_enum, default_value_t = LogLevel::Info, global = true)]
    pub log_level: LogLevel,

    /// Form of the log on standard error
    #[arg(long = "log.format", env = "COLLECTOR_LOG_FORMAT", value_enum, default_value_t = LogFormat::Logfmt, global = true)]
    pub log_format: LogFormat,
}

/// What goes on all the time is not to be felt.
const MOST_CONTINUOUS_HZ: i64 = 199;

fn percent(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|percent| (0.0..=100_000.0).contains(percent))
        .ok_or_else(|| format!("{text:?} is no percentage such as 1 or 0.5"))
}

/// `--source`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SourceChoice {
    /// eBPF where it works, else `/proc`.
    Auto,
    /// eBPF, or exit with the reason.
    Ebpf,
    /// `/proc` alone.
    Procfs,
}

/// `--log.level`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    /// Everything.
    Debug,
    /// What an operator may want to know.
    Info,
    /// What costs a fact or a feature.
    Warn,
    /// What stops us.
    Error,
}

/// `--log.format`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// `key=value` pairs.
    Logfmt,
    /// One JSON object per line.
    Json,
}

/// Form of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ReportFormat {
    /// For people.
    Text,
    /// For programs.
    Json,
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_is_no_percentage_is_told_so() {
        for text in ["-1", "-0.5", "100001", "NaN", "much"] {
            let refused = Cli::try_parse_from(["collector", "--probes.overhead-budget", text]);
            let error = refused.map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(&format!("{text:?} is no percentage such as 1 or 0.5")), "{error}");
        }
    }

    #[test]
    fn every_flag_has_its_environment_twin() {
        for argument in Cli::command().get_arguments() {
            let Some(long) = argument.get_long().filter(|l| !["help", "version"].contains(l)) else {
                continue;
            };
            let twin = format!("COLLECTOR_{}", long.replace(['.', '-'], "_").to_uppercase());
            assert_eq!(argument.get_env().and_then(|e| e.to_str()), Some(twin.as_str()), "--{long}");
        }
    }
}
