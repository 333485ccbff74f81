//! What the configuration file says: YAML, unknown keys are errors, and every error names its place.

use std::collections::HashSet;
use std::path::Path;

use collector_ebpf::schedule::DISK;
use regex::bytes::{Regex, RegexBuilder};
use serde::Deserialize;
use thiserror::Error;

use crate::files;
use crate::input::{IdleIn, Profile, TIME_KINDS};
use crate::render::prometheus::Groups;
use crate::units::NANOS_PER_SECOND;
use crate::worker::flags;
use crate::worker::matcher::{Conditions, MAX_NAME, Matcher, Rule, Work};

/// Compiled size of one regular expression at most.
const MAX_REGEX_BYTES: usize = 1 << 20;

const MILLISECOND: u64 = NANOS_PER_SECOND / 1000;
const SHORTEST_INTERVAL_NS: u64 = 100 * MILLISECOND;
const LONGEST_INTERVAL_NS: u64 = 3600 * NANOS_PER_SECOND;
const SHORTEST_LIMIT_NS: u64 = NANOS_PER_SECOND / 10;
const LONGEST_LIMIT_NS: u64 = 366 * 24 * 3600 * NANOS_PER_SECOND;

/// Why a configuration file cannot be used.
#[derive(Debug, Error)]
pub enum FileError {
    /// It cannot be read.
    #[error(transparent)]
    Read(#[from] files::Error),
    /// It is not YAML of this shape.
    #[error("{path}: {message}")]
    Syntax {
        /// The file.
        path: String,
        /// Line, column, and what is wrong there.
        message: String,
    },
    /// A value makes no sense.
    #[error("{path}: {place}: {message}")]
    Value {
        /// The file.
        path: String,
        /// Which value, e.g. `pools[2] (web): match.cmdline`.
        place: String,
        /// What is wrong with it.
        message: String,
    },
}

/// A validated configuration.
#[derive(Clone, Debug)]
pub struct FileConfig {
    /// Rules in their order.
    pub matcher: Matcher,
    /// Find pools that no rule names.
    pub zero_config: bool,
    /// Nanoseconds between readings where a rule does not say.
    pub interval_ns: u64,
    /// What is watched of the scheduler where a rule does not say.
    pub profile: Profile,
    /// How long a worker may be in one state, where a rule does not say.
    pub flags: flags::Limits,
    /// Pools at most.
    pub max_pools: usize,
    /// Workers per pool with series of their own, at most.
    pub max_workers: usize,
    /// Death certificates kept, of all pools together.
    pub exits_kept: usize,
    /// Groups of metrics in a scrape that does not name others.
    pub groups: Groups,
}

impl Default for FileConfig {
    fn default() -> Self {
        let limits = Limits::default();
        Self {
            matcher: Matcher::default(),
            zero_config: true,
            interval_ns: NANOS_PER_SECOND,
            profile: Profile::default(),
            flags: flags::Limits::default(),
            max_pools: limits.pools,
            max_workers: limits.workers_per_pool,
            exits_kept: limits.exits,
            groups: Groups::default(),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Written {
    interval: Option<String>,
    scheduler: Option<WrittenProfile>,
    stuck_after: Option<String>,
    idle_ttl: Option<String>,
    zero_config: Option<bool>,
    // A key with nothing under it is null, neither a mapping nor a list.
    limits: Option<Limits>,
    metrics: Option<WrittenMetrics>,
    pools: Option<Vec<WrittenPool>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct WrittenMetrics {
    collect: Option<Vec<String>>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Limits {
    pools: usize,
    workers_per_pool: usize,
    exits: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { pools: 256, workers_per_pool: 2000, exits: 1000 }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenPool {
    // A key with nothing under it is null here, too.
    name: Option<String>,
    #[serde(rename = "match")]
    worker: Option<WrittenConditions>,
    parent: Option<WrittenConditions>,
    size: Option<u32>,
    interval: Option<String>,
    scheduler: Option<WrittenProfile>,
    work: Option<String>,
    idle_in: Option<Vec<String>>,
    http_status: Option<bool>,
    stuck_after: Option<String>,
    idle_ttl: Option<String>,
}

/// `scheduler`
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum WrittenProfile {
    None,
    Counters,
    Histograms,
}

impl From<WrittenProfile> for Profile {
    fn from(written: WrittenProfile) -> Self {
        match written {
            WrittenProfile::None => Self::None,
            WrittenProfile::Counters => Self::Counters,
            WrittenProfile::Histograms => Self::Histograms,
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct WrittenConditions {
    comm: Texts,
    exe: Texts,
    cmdline: Option<String>,
    user: Users,
    cgroup: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "a text or a list of texts is expected here; what YAML reads as a boolean or a number, such as y, no or 12, has to be quoted"
)]
enum Texts {
    One(String),
    Many(Vec<String>),
}

impl Default for Texts {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

impl Texts {
    fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(value) => vec![value],
            Self::Many(values) => values,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "the name of a user, an id from 0 on, or a list of these is expected here; a name that YAML reads as a boolean or a number, such as y, no or 12, has to be quoted"
)]
enum Users {
    One(User),
    Many(Vec<User>),
}

impl Default for Users {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

impl Users {
    fn into_vec(self) -> Vec<User> {
        match self {
            Self::One(user) => vec![user],
            Self::Many(users) => users,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum User {
    Id(u32),
    Name(String),
}

/// Reads and validates a file.
pub fn load(path: &Path) -> Result<FileConfig, FileError> {
    parse(&files::read_text(path)?, &path.display().to_string())
}

/// Validates the text of a file called `path`.
pub fn parse(text: &str, path: &str) -> Result<FileConfig, FileError> {
    // An empty document is null, not an empty mapping.
    let written: Option<Written> = serde_saphyr::from_str(text)
        .map_err(|e| FileError::Syntax { path: path.into(), message: e.to_string() })?;
    let written = written.unwrap_or_default();
    let at =
        |place: &str, message: String| FileError::Value { path: path.into(), place: place.into(), message };

    let limits = written.limits.unwrap_or_default();
    for (place, value, range) in [
        ("limits.pools", limits.pools, 1..=10_000),
        ("limits.workers_per_pool", limits.workers_per_pool, 0..=100_000),
        ("limits.exits", limits.exits, 0..=100_000),
    ] {
        if !range.contains(&value) {
            let message = format!("{value} is outside {} to {}", range.start(), range.end());
            return Err(at(place, message));
        }
    }
    let interval_ns = match &written.interval {
        Some(text) => interval(text).map_err(|e| at("interval", e))?,
        None => NANOS_PER_SECOND,
    };
    let flags = limits_of(written.stuck_after.as_deref(), written.idle_ttl.as_deref())
        .map_err(|(field, message)| at(&field, message))?;
    let groups = match &written.metrics.unwrap_or_default().collect {
        Some(names) => {
            Groups::named(names.iter().map(String::as_str)).map_err(|e| at("metrics.collect", e))?
        }
        None => Groups::default(),
    };
    let mut names = HashSet::new();
    let pools = written.pools.unwrap_or_default();
    let mut rules = Vec::with_capacity(pools.len());
    for (index, pool) in pools.into_iter().enumerate() {
        let name = pool.name.clone().unwrap_or_default();
        let place = if name.is_empty() {
            format!("pools[{index}]")
        } else {
            format!("pools[{index}] ({})", name.escape_debug())
        };
        let rule =
            rule(pool, name.clone()).map_err(|(field, message)| at(&format!("{place}: {field}"), message))?;
        if !names.insert(name) {
            let message = "another pool before it has this name; names must be unique".to_owned();
            return Err(at(&format!("{place}: name"), message));
        }
        rules.push(rule);
    }
    Ok(FileConfig {
        matcher: Matcher::new(rules),
        zero_config: written.zero_config.unwrap_or(true),
        interval_ns,
        profile: written.scheduler.map_or(Profile::default(), Profile::from),
        flags,
        max_pools: limits.pools,
        max_workers: limits.workers_per_pool,
        exits_kept: limits.exits,
        groups,
    })
}

fn rule(pool: WrittenPool, name: String) -> Result<Rule, (String, String)> {
    let of = |field: &str, message: &str| (field.to_owned(), message.to_owned());
    if name.trim().is_empty() {
        return Err(of("name", "a pool needs a name, e.g. `name: web`"));
    }
    if name.chars().count() > MAX_NAME || name.chars().any(char::is_control) {
        return Err(of("name", "a name has at most 128 characters and no control characters"));
    }
    let worker = conditions(pool.worker.unwrap_or_default(), "match")?;
    let parent = conditions(pool.parent.unwrap_or_default(), "parent")?;
    if worker.is_empty() && parent.is_empty() {
        return Err(of(
            "match",
            "a pool needs a condition: comm, exe, cmdline, user or cgroup, here or under `parent`",
        ));
    }
    let captures: Vec<&str> = worker.cmdline.iter().flat_map(|r| r.capture_names().flatten()).collect();
    for variable in name.split("${").skip(1) {
        let Some((variable, _)) = variable.split_once('}') else {
            return Err(of("name", "`${` without `}`"));
        };
        if !captures.contains(&variable) {
            let message = format!("match.cmdline has no capture `(?P<{variable}>…)`");
            return Err(("name".to_owned(), message));
        }
    }
    let interval_ns =
        pool.interval.as_deref().map(interval).transpose().map_err(|e| ("interval".to_owned(), e))?;
    let profile = pool.scheduler.map(Profile::from);
    let work = pool.work.as_deref().map(work).transpose().map_err(|e| ("work".to_owned(), e))?;
    let idle_in = pool.idle_in.as_deref().map(idle_in).transpose().map_err(|e| ("idle_in".to_owned(), e))?;
    let flags = limits_of(pool.stuck_after.as_deref(), pool.idle_ttl.as_deref())?;
    let http_status = pool.http_status.unwrap_or(true);
    Ok(Rule {
        name,
        worker,
        parent,
        size: pool.size,
        interval_ns,
        profile,
        work,
        idle_in,
        http_status,
        flags,
    })
}

fn conditions(written: WrittenConditions, under: &str) -> Result<Conditions, (String, String)> {
    let regex = |field: &str, pattern: Option<String>| -> Result<Option<Regex>, (String, String)> {
        let compile = |p: String| RegexBuilder::new(&p).size_limit(MAX_REGEX_BYTES).build();
        pattern.map(compile).transpose().map_err(|e| (format!("{under}.{field}"), e.to_string()))
    };
    let mut uid = Vec::new();
    for user in written.user.into_vec() {
        uid.push(match user {
            User::Id(id) => id,
            User::Name(name) => match nix::unistd::User::from_name(&name) {
                Ok(Some(user)) => user.uid.as_raw(),
                Ok(None) => {
                    let message = format!("there is no user {name:?} on this host; a number works always");
                    return Err((format!("{under}.user"), message));
                }
                Err(error) => {
                    return Err((format!("{under}.user"), format!("looking up {name:?}: {error}")));
                }
            },
        });
    }
    let bytes = |values: Texts| values.into_vec().into_iter().map(String::into_bytes);
    let comm: Vec<Vec<u8>> = bytes(written.comm).collect();
    if let Some(long) = comm.iter().find(|name| name.len() >= crate::input::COMM_LEN) {
        let message = format!(
            "the kernel keeps 15 bytes of a name, so {:?} never occurs; use its first 15 bytes, exe or cmdline",
            String::from_utf8_lossy(long)
        );
        return Err((format!("{under}.comm"), message));
    }
    Ok(Conditions {
        comm,
        exe: bytes(written.exe).collect(),
        cmdline: regex("cmdline", written.cmdline)?,
        uid,
        cgroup: regex("cgroup", written.cgroup)?,
    })
}

/// Where workers wait for work, by the names of kinds of time. A lock is one for good where it is named.
fn idle_in(names: &[String]) -> Result<IdleIn, String> {
    let kinds = names.iter().map(|name| {
        IdleIn::kind_named(name).ok_or_else(|| {
            let known = TIME_KINDS[DISK as usize..].join(", ");
            format!("{name:?} is no reason to be blocked; what there is: {known}")
        })
    });
    Ok(IdleIn::kinds(&kinds.collect::<Result<Vec<u32>, String>>()?))
}

/// How work is measured, by its name.
fn work(name: &str) -> Result<Work, String> {
    Work::ALL.into_iter().find(|work| work.as_str() == name).ok_or_else(|| {
        let known = Work::ALL.map(Work::as_str).join(", ");
        format!("{name:?} is no way to measure work; what there is: {known}")
    })
}

/// A duration such as `500ms`, `5s` or `1m30s`, in nanoseconds.
fn interval(text: &str) -> Result<u64, String> {
    duration(text)?
        .filter(|ns| (SHORTEST_INTERVAL_NS..=LONGEST_INTERVAL_NS).contains(ns))
        .ok_or_else(|| format!("{text} is outside 100ms to 1h"))
}

/// How long a worker may be in one state.
fn limits_of(stuck_after: Option<&str>, idle_ttl: Option<&str>) -> Result<flags::Limits, (String, String)> {
    let limit = |field: &str, text: Option<&str>| {
        let limit = |text: &str| {
            duration(text)?
                .filter(|ns| (SHORTEST_LIMIT_NS..=LONGEST_LIMIT_NS).contains(ns))
                .ok_or_else(|| format!("{text} is outside 100ms to 366d"))
        };
        text.map(limit).transpose().map_err(|message| (field.to_owned(), message))
    };
    Ok(flags::Limits {
        stuck_after_ns: limit("stuck_after", stuck_after)?,
        idle_ttl_ns: limit("idle_ttl", idle_ttl)?,
    })
}

/// Nanoseconds; `None` for what has no such number.
fn duration(text: &str) -> Result<Option<u64>, String> {
    let duration: jiff::SignedDuration =
        text.parse().map_err(|e| format!("{text:?} is no duration such as 500ms, 5s or 1m: {e}"))?;
    Ok(u64::try_from(duration.as_nanos()).ok())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use collector_ebpf::schedule::{PIPE, POLL};
    use proptest::prelude::*;

    fn check(text: &str, expected: &str) {
        let error = parse(text, "c.yml").map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(expected), "{text}\ngave: {error}");
        assert!(error.starts_with("c.yml"), "{error}");
    }

    #[test]
    fn nothing_written_is_the_default() {
        for text in ["", "# only a comment\n", "pools: []\n", "pools:\n", "pools:\nlimits:\nmetrics:\n"] {
            let config = parse(text, "c.yml").unwrap();
            assert!(config.zero_config);
            assert_eq!(config.interval_ns, NANOS_PER_SECOND);
            assert_eq!(config.groups, Groups::default());
            assert_eq!(config.matcher.rules().len(), 0);
        }
    }

    #[test]
    fn everything_written() {
        let config = parse(
            "interval: 2s
zero_config: false
limits: {pools: 8, workers_per_pool: 100, exits: 50}
metrics: {collect: [pools, workers, worker_details, collector]}
pools:
  - name: gunicorn-${app}
    match:
      comm: gunicorn
      cmdline: 'worker \\[(?P<app>[^\\]]+)\\]'
      user: [0, root]
    size: 4
    interval: 500ms
    scheduler: counters
  - name: jobs
    parent: {exe: [/usr/bin/runner]}
    work: runs
    http_status: false
    idle_in: [poll, pipe]
    stuck_after: 30s
    idle_ttl: 2h
",
            "c.yml",
        )
        .unwrap();
        assert_eq!((config.zero_config, config.interval_ns), (false, 2 * NANOS_PER_SECOND));
        assert_eq!((config.max_pools, config.max_workers, config.exits_kept), (8, 100, 50));
        assert_eq!(config.groups, Groups::all());
        let [first, second] = config.matcher.rules() else { panic!("two rules") };
        assert_eq!(first.worker.comm, [b"gunicorn"]);
        assert_eq!(first.worker.uid, [0, 0]);
        assert_eq!((first.size, first.interval_ns), (Some(4), Some(500 * MILLISECOND)));
        assert_eq!((first.profile, second.profile), (Some(Profile::Counters), None));
        assert_eq!((first.work, second.work), (None, Some(Work::Runs)));
        let limits =
            flags::Limits { stuck_after_ns: Some(30_000_000_000), idle_ttl_ns: Some(7_200_000_000_000) };
        assert_eq!((first.flags, second.flags), (flags::Limits::default(), limits));
        assert_eq!((first.http_status, second.http_status), (true, false));
        assert_eq!((first.idle_in, second.idle_in), (None, Some(IdleIn::kinds(&[POLL, PIPE]))));
        assert!(second.worker.is_empty());
        assert_eq!(second.parent.exe, [b"/usr/bin/runner"]);
    }

    #[test]
    fn errors_name_the_place_and_the_way_out() {
        check("pools: [{match: {comm: a}}]", "pools[0]: name: a pool needs a name");
        check("pools: [{name: web}]", "pools[0] (web): match: a pool needs a condition");
        check(
            "pools: [{name: a, match: {comm: a}}, {name: a, match: {comm: b}}]",
            "pools[1] (a): name: another pool",
        );
        check("pools: [{name: a, match: {cmdline: '('}}]", "pools[0] (a): match.cmdline: regex parse error");
        check("pools: [{name: 'x${app}', match: {cmdline: a}}]", "no capture `(?P<app>…)`");
        check("pools: [{name: 'x${app', match: {cmdline: a}}]", "without `}`");
        check("pools: [{name: a, match: {comm: sixteen-byte-nam}}]", "15 bytes");
        check("pools: [{name: a, match: {user: nobody-has-this-name}}]", "there is no user");
        for condition in ["comm: y", "comm: 12", "comm: [a, no]", "exe: 1.5", "exe: {a: b}"] {
            let text = format!("pools: [{{name: a, match: {{{condition}}}}}]");
            check(&text, "a text or a list of texts is expected here");
            check(&text, "has to be quoted");
        }
        for condition in ["user: -1", "user: yes", "user: [0, 4294967296]", "user: 1.5"] {
            let text = format!("pools: [{{name: a, match: {{{condition}}}}}]");
            check(&text, "an id from 0 on, or a list of these is expected here");
        }
        check("interval: 5", "interval");
        check("interval: soon", "no duration");
        check("interval: 1ms", "outside 100ms to 1h");
        check("limits: {pools: 0}", "limits.pools");
        check("metrics: {collect: [pools, workers_details]}", "metrics.collect: there is no group");
        check("metrics: {collect: []}", "metrics.collect: name at least one");
        check("metrics: {collects: [pools]}", "unknown field");
        check("scheduler: some", "unknown variant");
        check("pools: [{name: a, match: {comm: b}, work: jobs}]", "pools[0] (a): work: \"jobs\" is no way");
        check(
            "pools: [{name: a, match: {comm: b}, idle_in: [poll, on_cpu]}]",
            "idle_in: \"on_cpu\" is no reason",
        );
        check("pools: [{name: a, match: {comm: b}, idle_in: poll}]", "expected sequence");
        check("pools: [{name: a, match: {comm: b}, work: Runs}]", "what there is: runs, requests, spans");
        check("work: runs", "unknown field");
        check("pools: [{name: , match: {comm: a}}]", "pools[0]: name: a pool needs a name");
        check("pools: [{name: a, match: }]", "pools[0] (a): match: a pool needs a condition");
        check("stuck_after: 1ms", "stuck_after: 1ms is outside 100ms to 366d");
        check("pools: [{name: a, match: {comm: b}, idle_ttl: soon}]", "idle_ttl: \"soon\" is no duration");
        check("colour: red", "unknown field");
        check("pools: [{name: a, match: {com: b}}]", "unknown field");
        check("pools: {", "c.yml");
    }

    #[test]
    fn a_name_that_is_no_file_is_refused_at_once() {
        for name in ["/dev/zero", "/"] {
            let error = load(Path::new(name)).map(|_| ()).unwrap_err().to_string();
            assert_eq!(error, format!("{name} is no regular file"));
        }
    }

    #[test]
    fn errors_name_the_line() {
        let error = parse("interval: 1s\nzero_config: true\ncolour: red\n", "c.yml").unwrap_err().to_string();
        assert!(error.contains('3'), "{error}");
    }

    proptest! {
        #[test]
        fn any_text_gives_an_answer(text in "(pools|name|match|comm|[ :\\-{}\\[\\]\n'a-z0-9$]){0,40}") {
            let _ = parse(&text, "c.yml");
        }
    }
}
