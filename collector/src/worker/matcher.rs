//! Which pool a process belongs to, by the rules of the configuration. Pure: bytes in, verdict out.
//!
//! All conditions of a rule must hold; of several values of one condition any may. The first rule that matches
//! wins. Names, command lines and paths are matched as bytes, because any byte can occur in them.

use regex::bytes::{Captures, Regex};

use super::flags::Limits;
use crate::input::{IdleIn, Needs, Profile};

/// Longest pool name, in characters.
pub const MAX_NAME: usize = 128;

/// What is known of a process when it is judged. Facts that were not read are `None` and match no condition.
#[derive(Clone, Copy, Debug, Default)]
pub struct Facts<'a> {
    /// Name, as the kernel holds it.
    pub comm: &'a [u8],
    /// Path of the executable.
    pub exe: Option<&'a [u8]>,
    /// Arguments, each ended by a zero byte, or a title written over them.
    pub cmdline: Option<&'a [u8]>,
    /// Effective user id.
    pub uid: Option<u32>,
    /// Control group path.
    pub cgroup: Option<&'a [u8]>,
}

/// Conditions on one process; an empty list or `None` is no condition.
#[derive(Clone, Debug, Default)]
pub struct Conditions {
    /// The name is one of these.
    pub comm: Vec<Vec<u8>>,
    /// The path of the executable is one of these.
    pub exe: Vec<Vec<u8>>,
    /// The arguments, joined by spaces, match.
    pub cmdline: Option<Regex>,
    /// The user is one of these.
    pub uid: Vec<u32>,
    /// The control group path matches.
    pub cgroup: Option<Regex>,
}

impl Conditions {
    /// There is none.
    pub fn is_empty(&self) -> bool {
        self.comm.is_empty()
            && self.exe.is_empty()
            && self.cmdline.is_none()
            && self.uid.is_empty()
            && self.cgroup.is_none()
    }

    fn needs(&self) -> Needs {
        Needs {
            exe: !self.exe.is_empty(),
            cmdline: self.cmdline.is_some(),
            uid: !self.uid.is_empty(),
            cgroup: self.cgroup.is_some(),
            parent: false,
        }
    }

    fn hold(&self, facts: &Facts<'_>, joined: &[u8]) -> bool {
        let one_of = |values: &[Vec<u8>], fact: Option<&[u8]>| {
            values.is_empty() || fact.is_some_and(|fact| values.iter().any(|value| value == fact))
        };
        one_of(&self.comm, Some(facts.comm))
            && one_of(&self.exe, facts.exe)
            && (self.uid.is_empty() || facts.uid.is_some_and(|uid| self.uid.contains(&uid)))
            && self.cgroup.as_ref().is_none_or(|regex| facts.cgroup.is_some_and(|path| regex.is_match(path)))
            && self.cmdline.as_ref().is_none_or(|regex| facts.cmdline.is_some() && regex.is_match(joined))
    }
}

/// What one piece of a pool's work is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// The life of a worker: a process per job.
    Runs,
    /// From the first byte that a worker receives on a connection that somebody else opened to the last one that it
    /// answers.
    Requests,
    /// From the moment in which a worker ceases to wait for work until it waits again.
    Spans,
}

impl Work {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::Runs, Self::Requests, Self::Spans];

    /// As the configuration has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Runs => "runs",
            Self::Requests => "requests",
            Self::Spans => "spans",
        }
    }
}

/// One pool of the configuration.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Name of the pool; `${capture}` takes a named capture of the command line.
    pub name: String,
    /// Conditions on the worker.
    pub worker: Conditions,
    /// Conditions on its parent. The children of such a parent are workers from their first microsecond.
    pub parent: Conditions,
    /// Configured number of workers.
    pub size: Option<u32>,
    /// Nanoseconds between readings.
    pub interval_ns: Option<u64>,
    /// What is watched of the scheduler.
    pub profile: Option<Profile>,
    /// How its work is measured; `None` for the default.
    pub work: Option<Work>,
    /// Where its workers wait for work.
    pub idle_in: Option<IdleIn>,
    /// The status of HTTP/1 answers is looked at.
    pub http_status: bool,
    /// How long they may be in one state.
    pub flags: Limits,
}

impl Rule {
    /// The name, if it does not depend on the process.
    pub fn fixed_name(&self) -> Option<&str> {
        (!self.name.contains("${")).then_some(self.name.as_str())
    }

    /// Whoever its condition on the parent holds for is a master, and all its children are workers.
    pub fn takes_every_child(&self) -> bool {
        !self.parent.is_empty() && self.worker.is_empty()
    }

    /// A pool of this name may come from this rule, as far as the fixed parts of its name tell.
    pub fn could_name(&self, pool: &str) -> bool {
        let parts = Parts::of(&self.name);
        let Some((last, between)) = parts.after.split_last() else { return pool == cut(parts.first) };
        // A capture may have been so long that what follows it was cut off.
        if pool.chars().count() >= MAX_NAME && pool.starts_with(&cut(parts.first)) {
            return true;
        }
        let Some(rest) = pool.strip_prefix(parts.first) else { return false };
        // Each fixed part where it comes first leaves the most room for those after it.
        let rest = between.iter().try_fold(rest, |rest, (_, fixed)| Some(rest.split_once(fixed)?.1));
        rest.is_some_and(|rest| rest.ends_with(last.1))
    }
}

/// The verdict on a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Match {
    /// Index of the rule.
    pub rule: usize,
    /// Name of the pool.
    pub pool: String,
    /// The capture `app`.
    pub app: Option<String>,
    /// The capture `size`, if it is a number.
    pub size: Option<u32>,
}

/// All rules, in order.
#[derive(Clone, Debug, Default)]
pub struct Matcher {
    rules: Vec<Rule>,
}

impl Matcher {
    /// Takes rules in their order.
    pub fn new(rules: Vec<Rule>) -> Self {
        Self { rules }
    }

    /// The rules.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// The rule that made a pool of this name: the one that has the name, or else the first that could have given it.
    pub fn rule_of(&self, pool: &str) -> Option<&Rule> {
        let named = self.rules.iter().find(|rule| rule.fixed_name() == Some(pool));
        named.or_else(|| self.rules.iter().find(|rule| rule.could_name(pool)))
    }

    /// What any of the rules needs to know.
    pub fn needs(&self) -> Needs {
        self.rules.iter().fold(Needs::default(), |needs, rule| {
            let parent = Needs { parent: !rule.parent.is_empty(), ..rule.parent.needs() };
            needs.with(rule.worker.needs()).with(parent)
        })
    }

    /// The first rule that the process matches.
    pub fn classify(&self, process: &Facts<'_>, parent: Option<&Facts<'_>>) -> Option<Match> {
        let own_line = joined(process.cmdline);
        let parent_line = parent.map(|p| joined(p.cmdline));
        let (index, rule) = self.rules.iter().enumerate().find(|(_, rule)| {
            let by_parent = rule.parent.is_empty()
                || parent
                    .zip(parent_line.as_ref())
                    .is_some_and(|(facts, line)| rule.parent.hold(facts, line));
            by_parent && rule.worker.hold(process, &own_line)
        })?;
        let captures = rule.worker.cmdline.as_ref().and_then(|regex| regex.captures(&own_line));
        let capture = |name: &str| captures.as_ref().and_then(|c| captured(c, name));
        Some(Match {
            rule: index,
            pool: expand(&rule.name, &capture),
            app: capture("app").filter(|app| !app.is_empty()),
            size: capture("size").and_then(|size| size.parse().ok()),
        })
    }

    /// The first rule with conditions on the parent, and on nothing else, that this process meets as a parent: all
    /// its children are workers.
    pub fn master_of(&self, process: &Facts<'_>) -> Option<usize> {
        let line = joined(process.cmdline);
        self.rules.iter().position(|rule| rule.takes_every_child() && rule.parent.hold(process, &line))
    }
}

/// Arguments as one line: zero bytes between them become spaces.
pub fn joined(cmdline: Option<&[u8]>) -> Vec<u8> {
    let mut line = cmdline.unwrap_or_default().to_vec();
    while line.last() == Some(&0) {
        line.pop();
    }
    for byte in &mut line {
        if *byte == 0 {
            *byte = b' ';
        }
    }
    line
}

/// Text that is fit for a label: valid, without control characters, of bounded length.
pub fn label_text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(MAX_NAME)
        .collect()
}

fn captured(captures: &Captures<'_>, name: &str) -> Option<String> {
    captures.name(name).map(|m| label_text(m.as_bytes()))
}

/// What a name is made of.
struct Parts<'a> {
    first: &'a str,
    /// The names of captures, each with the fixed part that follows it.
    after: Vec<(&'a str, &'a str)>,
}

impl<'a> Parts<'a> {
    /// `${` without `}` is no capture.
    fn of(template: &'a str) -> Self {
        let mut pieces = template.split("${");
        let first = pieces.next().unwrap_or_default();
        Self { first, after: pieces.map(|piece| piece.split_once('}').unwrap_or(("", piece))).collect() }
    }
}

fn expand(template: &str, capture: &dyn Fn(&str) -> Option<String>) -> String {
    let parts = Parts::of(template);
    let mut name = parts.first.to_owned();
    for (variable, fixed) in parts.after {
        name.push_str(&capture(variable).unwrap_or_default());
        name.push_str(fixed);
    }
    cut(&name)
}

/// A name as long as it may be.
fn cut(name: &str) -> String {
    name.chars().take(MAX_NAME).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rule(name: &str, worker: Conditions) -> Rule {
        Rule {
            name: name.into(),
            worker,
            parent: Conditions::default(),
            size: None,
            interval_ns: None,
            profile: None,
            work: None,
            http_status: true,
            idle_in: None,
            flags: Limits::default(),
        }
    }

    fn comm(name: &str) -> Conditions {
        Conditions { comm: vec![name.into()], ..Conditions::default() }
    }

    fn line(regex: &str) -> Conditions {
        Conditions { cmdline: Some(Regex::new(regex).unwrap()), ..Conditions::default() }
    }

    fn facts<'a>(comm: &'a str, cmdline: &'a [u8]) -> Facts<'a> {
        Facts { comm: comm.as_bytes(), cmdline: Some(cmdline), ..Facts::default() }
    }

    #[test]
    fn the_first_match_wins() {
        let matcher =
            Matcher::new(vec![rule("one", comm("a")), rule("two", comm("a")), rule("rest", line("."))]);
        assert_eq!(matcher.classify(&facts("a", b"x"), None).unwrap().pool, "one");
        assert_eq!(matcher.classify(&facts("b", b"x"), None).unwrap().pool, "rest");
        assert_eq!(matcher.classify(&facts("b", b""), None), None);
    }

    #[test]
    fn captures_name_the_pool_the_app_and_the_size() {
        let matcher =
            Matcher::new(vec![rule("gunicorn-${app}", line(r"worker \[(?P<app>[^\]]+)\] of (?P<size>\d+)"))]);
        let found = matcher.classify(&facts("g", b"gunicorn: worker [shop] of 4\0"), None).unwrap();
        assert_eq!(
            found,
            Match { rule: 0, pool: "gunicorn-shop".into(), app: Some("shop".into()), size: Some(4) }
        );
    }

    #[test]
    fn parents_are_judged_too() {
        let mut by_parent = rule("jobs", Conditions::default());
        by_parent.parent = comm("master");
        let matcher = Matcher::new(vec![by_parent]);
        assert!(matcher.needs().parent);
        let master = facts("master", b"");
        assert!(matcher.classify(&facts("w", b""), Some(&master)).is_some());
        assert!(matcher.classify(&facts("w", b""), None).is_none());
        assert_eq!(matcher.master_of(&master), Some(0));
    }

    #[test]
    fn hostile_captures_become_plain_text() {
        let matcher = Matcher::new(vec![rule("${app}", line(r"(?s-u)app=(?P<app>.*)"))]);
        let hostile = [b"app=a\n\"\\\xff".as_slice(), &[b'x'; 100_000]].concat();
        let found = matcher.classify(&facts("x", &hostile), None).unwrap();
        assert!(found.pool.starts_with("a \"\\\u{fffd}"), "{:?}", &found.pool[..8]);
        assert_eq!(found.pool.chars().count(), MAX_NAME);
    }

    #[test]
    fn only_needed_facts_are_asked_for() {
        assert_eq!(Matcher::new(vec![rule("a", comm("a"))]).needs(), Needs::default());
        assert!(Matcher::new(vec![rule("a", line("a"))]).needs().cmdline);
    }

    #[test]
    fn a_name_has_the_fixed_parts_of_its_rule_in_their_order() {
        let long = "x".repeat(MAX_NAME);
        for (template, could, could_not) in [
            ("web", &["web"][..], &["web-1", "we", "", "aweb"][..]),
            ("${app}", &["", "a", "web"], &[]),
            ("${app}-web", &["-web", "a-web", "web-web", &long], &["web", "a-web-1", "a-we", ""]),
            ("web-${app}", &["web-", "web-a"], &["web", "a-web-", &long]),
            ("${a}-${b}.x", &["-.x", "a-b.x", "a-b-c.x.x"], &["a.b-x", "-x", ".x-", "a-b.xy"]),
            ("a${b}a", &["aa", "aba"], &["a", "ab"]),
        ] {
            let rule = rule(template, comm("x"));
            for name in could {
                assert!(rule.could_name(name), "{template}: {name}");
            }
            for name in could_not {
                assert!(!rule.could_name(name), "{template}: {name}");
            }
        }
    }

    #[test]
    fn a_pool_is_of_the_rule_that_has_its_name() {
        let rule = |name: &str| rule(name, Conditions::default());
        let matcher = Matcher::new(vec![rule("q-${n}"), rule("q-jobs"), rule("r-${n}")]);
        let of = |pool: &str| matcher.rule_of(pool).map(|rule| rule.name.as_str());
        assert_eq!(of("q-jobs"), Some("q-jobs"));
        assert_eq!(of("q-7"), Some("q-${n}"));
        assert_eq!(of("r-q-jobs"), Some("r-${n}"));
        assert_eq!(of("jobs"), None);
    }

    proptest! {
        #[test]
        fn a_rule_could_name_every_pool_that_it_names(
            template in "([ab-]|é{60}|\\$\\{[xy]\\}|\\$\\{){0,8}",
            captures in proptest::collection::vec("[ab-]{0,4}|é{0,200}", 2),
        ) {
            let capture = |name: &str| match name {
                "x" => Some(captures[0].clone()),
                "y" => Some(captures[1].clone()),
                _ => None,
            };
            let name = expand(&template, &capture);
            prop_assert!(rule(&template, comm("x")).could_name(&name), "{}", name);
            // One that lacks a fixed part.
            let mut fixed = template.split("${").map(|p| p.split_once('}').map_or(p, |(_, p)| p));
            if fixed.any(|part| !part.is_empty()) {
                prop_assert!(!rule(&template, comm("x")).could_name("????"));
            }
        }

        #[test]
        fn never_panics(bytes: Vec<u8>, name in "[a-z${}]{0,12}") {
            let matcher = Matcher::new(vec![rule(&name, line("(?-u)(?P<app>.)"))]);
            let _ = matcher.classify(&Facts { comm: &bytes, cmdline: Some(&bytes), ..Facts::default() }, None);
        }
    }
}
