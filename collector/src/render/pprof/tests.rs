#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use flate2::read::GzDecoder;
use proptest::prelude::*;
use prost::Message as _;
use sha2::{Digest as _, Sha256};

use super::*;
use crate::heap::sampled::Amount;
use crate::profile::heap::{Shown, Values};
use crate::profile::threads::{Dump, Thread};
use crate::profile::{Function, Labels, Line, Location, Losses, Mapping, Sample};

mod model;

const SECOND: u64 = 1_000_000_000;

fn mapping(path: &str, build_id: &str, symbolized: bool) -> Mapping {
    Mapping {
        start: 0x1000,
        limit: 0x9000,
        file_offset: 0x1000,
        path: path.into(),
        build_id: build_id.into(),
        symbolized,
    }
}

fn function(name: &str, file: &str) -> Function {
    Function { name: name.into(), system_name: format!("_{name}").into(), file: file.into(), start_line: 7 }
}

fn location(mapping: Option<u32>, address: u64, lines: &[(u32, u32)]) -> Location {
    let lines = lines.iter().map(|(function, line)| Line { function: *function, line: *line }).collect();
    Location { mapping, address, lines }
}

fn labels(pool: &str, slot: u32, state: &'static str, reason: Option<&'static str>) -> Labels {
    Labels {
        pool: pool.into(),
        slot: Some((slot, 3)),
        pid: 4711,
        tid: 4712,
        thread: "worker".into(),
        state,
        reason,
        ended_unix_ns: None,
    }
}

fn sample(stack: &[u32], labels: u32, count: u64) -> Sample {
    Sample { stack: stack.into(), labels, count, value_ns: count * 10_000_000, truncated: false }
}

/// Two workers: one computes, in a function that others were inlined into; the other reads, and its callers are not known.
fn profile(kind: Kind) -> Profile {
    Profile {
        kind,
        started_unix_ns: 1_700_000_000 * SECOND,
        duration_ns: 30 * SECOND,
        period_ns: if matches!(kind, Kind::OnCpu | Kind::Cycles | Kind::Wall) { 10_000_000 } else { 0 },
        mappings: vec![
            mapping("/usr/bin/app", "abcd", true),
            mapping("[kernel.kallsyms]", "", true),
            mapping("/usr/lib/libz.so.1", "ef01", false),
        ],
        functions: vec![
            function("main", "/src/main.c"),
            function("serve", "/src/serve.c"),
            function("parse", "/src/parse.h"),
            function("vfs_read", ""),
        ],
        locations: vec![
            location(Some(0), 0x1100, &[(0, 12)]),
            location(Some(0), 0x1200, &[(2, 5), (1, 30)]),
            location(Some(1), 0xffff_ffff_8100_0000, &[(3, 0)]),
            location(Some(2), 0x1300, &[]),
            location(None, 0x7f00, &[]),
        ],
        labels: vec![labels("web", 0, "on_cpu", None), labels("web", 1, "blocked", Some("disk"))],
        samples: vec![
            Sample { truncated: true, ..sample(&[2, 3], 1, 3) },
            sample(&[1, 0], 0, 40),
            sample(&[4, 0], 1, 1),
        ],
        losses: Losses { samples: 44, truncated: 3, lost: 2, passed_over: 0 },
    }
}

/// Reads `profile.proto` and insists on what its readers do: Go's `CheckValid`, Parca's `ValidatePprofProfile`.
fn read(profile: &Profile) -> model::Profile {
    read_bytes(&render(profile, Format::Proto).unwrap())
}

/// What was written, checked for what no profile may lack.
fn read_bytes(written: &[u8]) -> model::Profile {
    let mut bytes = Vec::new();
    GzDecoder::new(written).read_to_end(&mut bytes).unwrap();
    let read = model::Profile::decode(&*bytes).unwrap();
    assert_eq!(read.string_table[0], "");
    assert_eq!(read.string_table.iter().collect::<BTreeSet<_>>().len(), read.string_table.len());
    let text = |index: i64| assert!(usize::try_from(index).unwrap() < read.string_table.len());
    let ids = |ids: Vec<u64>| assert_eq!(ids, (1..=ids.len() as u64).collect::<Vec<_>>());
    ids(read.mapping.iter().map(|mapping| mapping.id).collect());
    ids(read.location.iter().map(|location| location.id).collect());
    ids(read.function.iter().map(|function| function.id).collect());
    for sample in &read.sample {
        assert_eq!(sample.value.len(), read.sample_type.len());
        assert!(!sample.location_id.is_empty());
        assert!(sample.location_id.iter().all(|id| (1..=read.location.len() as u64).contains(id)));
        for label in &sample.label {
            assert!(
                label.key != 0 && (label.str != 0) != (label.num != 0) && label.num_unit == 0,
                "{label:?}"
            );
            text(label.key);
            text(label.str);
        }
    }
    for mapping in &read.mapping {
        text(mapping.filename);
        text(mapping.build_id);
    }
    for location in &read.location {
        assert!(location.mapping_id <= read.mapping.len() as u64);
        assert!(
            location.line.iter().all(|line| (1..=read.function.len() as u64).contains(&line.function_id))
        );
    }
    for function in &read.function {
        [function.name, function.system_name, function.filename].into_iter().for_each(text);
    }
    read.comment.iter().copied().chain([read.default_sample_type]).for_each(text);
    read.sample_type.iter().chain(&read.period_type).for_each(|of| {
        text(of.r#type);
        text(of.unit);
    });
    read
}

impl model::Profile {
    fn text(&self, index: i64) -> &str {
        &self.string_table[index as usize]
    }

    fn value_type(&self, of: &model::ValueType) -> (&str, &str) {
        (self.text(of.r#type), self.text(of.unit))
    }

    /// Names of the functions of a sample, innermost first.
    fn stack(&self, sample: &model::Sample) -> Vec<&str> {
        let locations = sample.location_id.iter().map(|id| &self.location[*id as usize - 1]);
        let lines = locations.flat_map(|location| &location.line);
        lines.map(|line| self.text(self.function[line.function_id as usize - 1].name)).collect()
    }

    fn labels(&self, sample: &model::Sample) -> BTreeMap<&str, String> {
        let value = |label: &model::Label| match label.str {
            0 => label.num.to_string(),
            text => format!("{:?}", self.text(text)),
        };
        sample.label.iter().map(|label| (self.text(label.key), value(label))).collect()
    }

    fn totals(&self) -> [i128; 2] {
        [0, 1].map(|at| self.sample.iter().map(|sample| i128::from(sample.value[at])).sum())
    }
}

#[test]
fn types_and_periods_are_those_of_go() {
    let check = |kind, types: [(&str, &str); 2], period: (&str, &str), length| {
        let read = read(&profile(kind));
        assert_eq!(read.sample_type.iter().map(|of| read.value_type(of)).collect::<Vec<_>>(), types);
        assert_eq!(read.value_type(&read.period_type.unwrap()), period);
        assert_eq!(read.period, length);
        assert_eq!(read.text(read.default_sample_type), types[1].0);
        assert_eq!(read.time_nanos, 1_700_000_000_000_000_000);
        assert_eq!(read.duration_nanos, 30_000_000_000);
    };
    let cpu = ("cpu", "nanoseconds");
    check(Kind::OnCpu, [("samples", "count"), cpu], cpu, 10_000_000);
    let cycles = ("cycles", "count");
    check(Kind::Cycles, [("samples", "count"), cycles], cycles, 10_000_000);
    let wall = ("wall", "nanoseconds");
    check(Kind::Wall, [("samples", "count"), wall], wall, 10_000_000);
    let contentions = ("contentions", "count");
    for kind in [Kind::OffCpu, Kind::RunQueue] {
        check(kind, [contentions, ("delay", "nanoseconds")], contentions, 1);
    }
}

#[test]
fn stacks_begin_with_the_innermost_frame() {
    let read = read(&profile(Kind::OnCpu));
    let stacks: Vec<_> =
        read.sample.iter().map(|sample| (read.stack(sample), sample.value.clone())).collect();
    assert_eq!(
        stacks,
        [
            (vec!["vfs_read", "[truncated]"], vec![3, 30_000_000]),
            (vec!["parse", "serve", "main"], vec![40, 400_000_000]),
            (vec!["main"], vec![1, 10_000_000]),
        ]
    );
    let serve = &read.location[1];
    assert_eq!((serve.mapping_id, serve.address), (1, 0x1200));
    assert_eq!(serve.line.iter().map(|line| line.line).collect::<Vec<_>>(), [5, 30]);
    let main = &read.function[0];
    assert_eq!((read.text(main.name), read.text(main.system_name)), ("main", "_main"));
    assert_eq!((read.text(main.filename), main.start_line), ("/src/main.c", 7));
}

/// A number that is 0 would be no label at all to readers.
#[test]
fn slot_zero_has_a_label() {
    let mut profile = profile(Kind::OnCpu);
    profile.labels[1].slot = None;
    profile.labels[1].thread = "".into();
    let read = read(&profile);
    let labels = |sample: usize| {
        let labels = read.labels(&read.sample[sample]);
        labels.into_iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
    };
    let worker = r#"generation=3 pid=4711 pool="web" slot="0" state="on_cpu" thread="worker" tid=4712"#;
    assert_eq!(labels(1), worker);
    assert_eq!(labels(0), r#"pid=4711 pool="web" reason="disk" state="blocked" tid=4712"#);
}

#[test]
fn readers_are_told_what_they_need_not_look_up() {
    let read = read(&profile(Kind::OnCpu));
    let said: Vec<_> = read
        .mapping
        .iter()
        .map(|m| {
            let has = [m.has_functions, m.has_filenames, m.has_line_numbers, m.has_inline_frames];
            (read.text(m.filename), read.text(m.build_id), has)
        })
        .collect();
    assert_eq!(
        said,
        [
            ("/usr/bin/app", "abcd", [true; 4]),
            ("[kernel.kallsyms]", "", [true, false, false, false]),
            ("/usr/lib/libz.so.1", "ef01", [false; 4]),
        ]
    );
    let app = read.mapping[0];
    assert_eq!((app.memory_start, app.memory_limit, app.file_offset), (0x1000, 0x9000, 0x1000));
}

#[test]
fn losses_are_told_everywhere() {
    let mut profile = profile(Kind::OffCpu);
    profile.samples.push(sample(&[9], 0, 5));
    profile.samples.push(sample(&[0], 9, 6));
    let remarks = [
        "waits truncated: 3 of 44",
        "waits lost: 2",
        "waits left out, as they refer to what is not in the profile: 11",
    ];
    let read = read(&profile);
    assert_eq!(read.comment.iter().map(|comment| read.text(*comment)).collect::<Vec<_>>(), remarks);
    assert_eq!(read.sample.len(), 3);
    let text = text(&profile, Format::Text);
    assert!(remarks.iter().all(|remark| text.contains(&format!("\n{remark}\n"))), "{text}");
    assert!(self::text(&profile, Format::FlameGraph).contains(&format!(">{}<", remarks.join(", "))));

    profile.losses = Losses { samples: 44, ..Losses::default() };
    profile.samples.truncate(3);
    assert!(self::read(&profile).comment.is_empty());
}

fn text(profile: &Profile, format: Format) -> String {
    String::from_utf8(render(profile, format).unwrap()).unwrap()
}

#[test]
fn text_is_for_humans() {
    let expected = "\
--- on-CPU profile: samples/count cpu/nanoseconds @
started 2023-11-14T22:13:20Z
measured for 30s
a sample every 10ms of CPU time
44 samples, 440ms
samples truncated: 3 of 44
samples lost: 2

40 400000000 @ pool=\"web\" slot=0 generation=3 pid=4711 tid=4712 thread=\"worker\" state=on_cpu
#\tparse (inlined)\t/src/parse.h:5
#\tserve\t/src/serve.c:30
#\tmain\t/src/main.c:12

3 30000000 @ pool=\"web\" slot=1 generation=3 pid=4711 tid=4712 thread=\"worker\" state=blocked reason=disk
#\tvfs_read
#\t/usr/lib/libz.so.1+0x1300
#\t[truncated]

1 10000000 @ pool=\"web\" slot=1 generation=3 pid=4711 tid=4712 thread=\"worker\" state=blocked reason=disk
#\t0x7f00
#\tmain\t/src/main.c:12
";
    assert_eq!(text(&profile(Kind::OnCpu), Format::Text), expected);
    let of_cycles = expected
        .replace(
            "--- on-CPU profile: samples/count cpu/nanoseconds @",
            "--- cycles profile: samples/count cycles/count @",
        )
        .replace("every 10ms of CPU time", "every 10000000 cycles on average")
        .replace("44 samples, 440ms", "44 samples, 440000000 cycles");
    assert_eq!(text(&profile(Kind::Cycles), Format::Text), of_cycles);
}

#[test]
fn folded_stacks_begin_with_the_pool() {
    let check = |kind, expected: &str| assert_eq!(text(&profile(kind), Format::Folded), expected);
    check(
        Kind::OnCpu,
        "\
web;[truncated];libz.so.1+0x1300;vfs_read_[k] 3
web;main;0x7f00 1
web;main;serve;parse_[i] 40
",
    );
    check(
        Kind::Cycles,
        "\
web;[truncated];libz.so.1+0x1300;vfs_read_[k] 30000000
web;main;0x7f00 10000000
web;main;serve;parse_[i] 400000000
",
    );
    // Microseconds.
    check(
        Kind::OffCpu,
        "\
web;[truncated];libz.so.1+0x1300;vfs_read_[k] 30000
web;main;0x7f00 10000
web;main;serve;parse_[i] 400000
",
    );
    check(
        Kind::Wall,
        "\
web;blocked;[truncated];libz.so.1+0x1300;vfs_read_[k] 30000
web;blocked;main;0x7f00 10000
web;on_cpu;main;serve;parse_[i] 400000
",
    );
}

#[test]
fn workers_of_a_pool_are_added_up() {
    let mut profile = profile(Kind::OnCpu);
    profile.samples = vec![sample(&[0], 0, 1), sample(&[0], 1, 2)];
    assert_eq!(text(&profile, Format::Folded), "web;main 3\n");
}

/// As if the worker had chosen each of its names to harm who reads them.
#[test]
fn hostile_names_are_harmless() {
    let mut profile = profile(Kind::OnCpu);
    profile.labels[0].pool = "# p;\u{1b}[2J".into();
    profile.labels[0].thread = "\"\n99 99 @ \u{202e}".into();
    profile.functions[0].name = "</title><script>alert(1)</script>\u{0}]]>".into();
    profile.functions[1].name = " operator 5".into();
    profile.functions[2].name = "".into();
    profile.functions[2].system_name = "".into();
    profile.functions[1].file = "/src/a\nb".into();
    profile.mappings[2].path = "/tmp/a\t;1 2".into();
    profile.samples = vec![sample(&[3, 0], 0, 2), sample(&[1], 0, 1)];

    assert_eq!(
        text(&profile, Format::Folded),
        "_ p:\u{fffd}[2J;</title><script>alert(1)</script>\u{fffd}]]>;a\u{fffd}:1_2+0x1300 2\n\
         _ p:\u{fffd}[2J;operator_5 1\n"
    );
    let shown = text(&profile, Format::Text);
    assert!(!shown.contains(|c: char| frames::acts(c) && !matches!(c, '\n' | '\t')), "{shown:?}");
    for line in [
        r##"2 20000000 @ pool="# p;\u{1b}[2J" slot=0 generation=3 pid=4711 tid=4712 thread="\"\n99 99 @ \u{202e}" state=on_cpu"##,
        "#\t/tmp/a\\t;1 2+0x1300",
        "#\t operator 5\t/src/a\\nb:30",
    ] {
        assert!(shown.lines().any(|shown| shown == line), "{line}\n{shown}");
    }
    let graph = text(&profile, Format::FlameGraph);
    assert_eq!(graph.matches("<script").count(), 1);
    assert_eq!(graph.matches("</title>").count(), graph.matches("<title>").count());
    assert!(!graph.contains(|c: char| frames::acts(c) && !matches!(c, '\n')), "{graph:?}");
    assert!(graph.contains("(2 samples, 66.67%)"), "{graph}");
}

#[test]
fn the_flame_graph_says_what_it_shows() {
    let graph = text(&profile(Kind::OnCpu), Format::FlameGraph);
    for part in [
        ">web: on-CPU, 30s<",
        ">samples truncated: 3 of 44, samples lost: 2<",
        "all (44 samples, 100%)",
        "web (44 samples, 100.00%)",
        "serve (40 samples, 90.91%)",
        "[truncated] (3 samples, 6.82%)",
    ] {
        assert!(graph.contains(part), "{part}");
    }
    assert_eq!(graph, text(&profile(Kind::OnCpu), Format::FlameGraph), "the same each time");
    let waits = text(&profile(Kind::RunQueue), Format::FlameGraph);
    assert!(waits.contains(">web: run queue, 30s<") && waits.contains("all (440,000 us, 100%)"), "{waits}");
}

/// What a browser is allowed to run is the script that inferno writes, and nothing else.
#[test]
fn the_policy_knows_the_script_of_the_flame_graph() {
    let hash = |text: &str| format!("'sha256-{}'", BASE64_STANDARD.encode(Sha256::digest(text)));
    for kind in [Kind::OnCpu, Kind::Cycles, Kind::OffCpu, Kind::RunQueue, Kind::Wall, Kind::Threads] {
        let graph = text(&profile(kind), Format::FlameGraph);
        let (_, script) = graph.split_once("<script type=\"text/ecmascript\">").unwrap();
        let (script, _) = script.split_once("</script>").unwrap();
        let script = script.replace("<![CDATA[", "").replace("]]>", "");
        assert_eq!(graph.matches(" onload=\"init(evt)\"").count(), 1);
        for part in [script.as_str(), "init(evt)"] {
            let hash = hash(part);
            assert!(CONTENT_SECURITY_POLICY.contains(&hash), "{hash} is not allowed");
        }
    }
}

#[test]
fn a_profile_without_samples_is_one_too() {
    for kind in [Kind::OnCpu, Kind::Cycles, Kind::OffCpu] {
        let mut profile = profile(kind);
        profile.samples.clear();
        assert!(read(&profile).sample.is_empty());
        assert!(text(&profile, Format::Text).contains("\n0 "));
        assert_eq!(text(&profile, Format::Folded), "");
        assert!(text(&profile, Format::FlameGraph).contains(": no "));
    }
}

/// Many deep stacks of long names, all different: no format for eyes grows with them, and no time is lost.
#[test]
fn formats_for_eyes_are_bounded() {
    let mut profile = profile(Kind::OnCpu);
    let names = 0..1000_u32;
    profile.functions = names.clone().map(|n| function(&format!("{n}{}", "x".repeat(2000)), "")).collect();
    profile.locations = names.map(|n| location(Some(0), n.into(), &[(n, 0)])).collect();
    let stack = |n: u32| (0..60).map(|depth| (n * (depth + 1) + depth) % 1000).collect::<Vec<_>>();
    profile.samples = (0..1000).map(|n| sample(&stack(n), 0, 1 + u64::from(n))).collect();

    assert!(text(&profile, Format::Text).len() < ROOM + ROOM / 16);
    let folded = text(&profile, Format::Folded);
    assert!(folded.len() < ROOM + ROOM / 16);
    assert!(folded.contains("web;[left out] "), "there was room for all");
    let total: u64 =
        folded.lines().map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()).sum();
    assert_eq!(total, 1000 * 1001 / 2);
    let graph = text(&profile, Format::FlameGraph);
    assert!(graph.len() <= flamegraph::LARGEST);
    assert!(graph.contains(" % are left out"));
}

fn any_profile(any_index: bool) -> impl Strategy<Value = Profile> {
    // Of a table of this length, or of none.
    let index = move |length: usize| match any_index {
        true => any::<u32>().prop_map(|index| index % 8).boxed(),
        false => (0..length.max(1) as u32).boxed(),
    };
    let text = || any::<String>().prop_map(|text| text.as_str().into());
    let mappings = proptest::collection::vec(
        (text(), any::<[u64; 3]>(), any::<bool>()).prop_map(
            |(path, [start, limit, file_offset], symbolized)| Mapping {
                start,
                limit,
                file_offset,
                path,
                build_id: "ab".into(),
                symbolized,
            },
        ),
        1..5,
    );
    let functions =
        proptest::collection::vec(
            (text(), text(), text(), any::<u32>()).prop_map(|(name, system_name, file, start_line)| {
                Function { name, system_name, file, start_line }
            }),
            1..5,
        );
    let labels = proptest::collection::vec(
        (text(), text(), any::<Option<(u32, u64)>>(), any::<[u32; 2]>()).prop_map(
            |(pool, thread, slot, [pid, tid])| Labels {
                pool,
                slot,
                pid,
                tid,
                thread,
                state: "blocked",
                reason: Some("lock"),
                ended_unix_ns: None,
            },
        ),
        1..5,
    );
    let kinds = [Kind::OnCpu, Kind::Cycles, Kind::OffCpu, Kind::RunQueue, Kind::Wall];
    let kind = proptest::sample::select(kinds.to_vec());
    (kind, any::<[u64; 6]>(), mappings, functions, labels).prop_flat_map(
        move |(kind, numbers, mappings, functions, labels)| {
            let line =
                (index(functions.len()), any::<u32>()).prop_map(|(function, line)| Line { function, line });
            let location = (
                proptest::option::of(index(mappings.len())),
                any::<u64>(),
                proptest::collection::vec(line, 0..3),
            )
                .prop_map(|(mapping, address, lines)| Location { mapping, address, lines });
            let labels_index = index(labels.len());
            (proptest::collection::vec(location, 1..5), Just(labels_index)).prop_flat_map(
                move |(locations, labels_index)| {
                    let sample = (
                        proptest::collection::vec(index(locations.len()), 0..6),
                        labels_index,
                        any::<[u64; 2]>(),
                        any::<bool>(),
                    )
                        .prop_map(|(stack, labels, [count, value_ns], truncated)| Sample {
                            stack,
                            labels,
                            count,
                            value_ns,
                            truncated,
                        });
                    let rest = Profile {
                        kind,
                        started_unix_ns: numbers[0],
                        duration_ns: numbers[1],
                        period_ns: numbers[2],
                        mappings: mappings.clone(),
                        functions: functions.clone(),
                        locations,
                        labels: labels.clone(),
                        samples: Vec::new(),
                        losses: Losses {
                            samples: numbers[3],
                            truncated: numbers[4],
                            lost: numbers[5],
                            passed_over: 0,
                        },
                    };
                    proptest::collection::vec(sample, 0..6)
                        .prop_map(move |samples| Profile { samples, ..rest.clone() })
                },
            )
        },
    )
}

proptest! {
    #[test]
    fn nothing_is_lost_or_invented(profile in any_profile(false)) {
        let read = read(&profile);
        let signed = |value: u64| i128::from(value.min(i64::MAX.cast_unsigned()));
        let total = |of: fn(&Sample) -> u64| profile.samples.iter().map(|sample| signed(of(sample))).sum::<i128>();
        prop_assert_eq!(read.totals(), [total(|sample| sample.count), total(|sample| sample.value_ns)]);
        prop_assert_eq!(read.sample.len(), profile.samples.len());
        for (read, sample) in read.sample.iter().zip(&profile.samples) {
            let stack: Vec<u64> = sample.stack.iter().map(|index| u64::from(*index) + 1).collect();
            prop_assert_eq!(&read.location_id[..stack.len()], &stack);
            let cut = usize::from(sample.truncated || sample.stack.is_empty());
            prop_assert_eq!(read.location_id.len(), stack.len() + cut);
        }
    }

    /// Not even of what cannot be.
    #[test]
    fn every_format_can_be_written_of_any_profile(profile in any_profile(true)) {
        read(&profile);
        for format in [Format::Text, Format::Folded, Format::FlameGraph] {
            let text = text(&profile, format);
            prop_assert!(!text.contains(|c: char| frames::acts(c) && !matches!(c, '\n' | '\t')), "{:?}", text);
        }
        for line in text(&profile, Format::Folded).lines() {
            let (stack, value) = line.rsplit_once(' ').unwrap();
            prop_assert!(value.parse::<u64>().is_ok());
            // No second number, which would make a difference of two.
            let last = stack.rsplit_once(' ').map(|(_, last)| last);
            prop_assert!(last.is_none_or(|last| last.bytes().any(|byte| !byte.is_ascii_digit() && byte != b'.')));
        }
    }
}

/// Two threads that wait alike, one that runs, and one that the kernel does not tell of.
fn dump() -> Dump {
    let labels = |tid, state| Labels { tid, ..labels("web", 0, state, None) };
    let sample = |stack: &[u32], labels, truncated| Sample {
        stack: stack.into(),
        labels,
        count: 1,
        value_ns: 0,
        truncated,
    };
    let waits = Thread {
        wait_channel: Some("vfs_read".into()),
        syscall: Some("read".into()),
        no_kernel_frames: None,
        no_user_frames: None,
    };
    let runs = Thread { no_user_frames: Some("it runs".into()), ..Thread::default() };
    let refused = Thread { no_kernel_frames: Some("not\nsupported".into()), ..Thread::default() };
    Dump {
        profile: Profile {
            duration_ns: 0,
            labels: vec![
                labels(1, "sleeping"),
                labels(2, "running"),
                labels(3, "sleeping"),
                labels(4, "disk sleep"),
            ],
            // In another order than the threads.
            samples: vec![
                sample(&[4], 3, true),
                sample(&[2, 1, 0], 0, false),
                sample(&[], 1, false),
                sample(&[2, 1, 0], 2, false),
            ],
            losses: Losses { samples: 4, truncated: 1, lost: 7, passed_over: 0 },
            ..profile(Kind::Threads)
        },
        threads: vec![waits.clone(), runs, waits, refused],
    }
}

#[test]
fn threads_are_listed_each_with_its_stack() {
    let stack = "\
#\t[k] vfs_read
#\tparse (inlined)\t/src/parse.h:5
#\tserve\t/src/serve.c:30
#\tmain\t/src/main.c:12
";
    let who = "pool=\"web\" slot=0 generation=3 pid=4711 thread=\"worker\"";
    let header = "\
--- threads: 4 of 1 processes @
taken 2023-11-14T22:13:20Z
threads truncated: 1 of 4
threads left out, as they are too many: 7
pool=, slot= and pid= ask for fewer
";
    let expected = format!(
        "{header}
thread 1 [sleeping]: {who} wchan=vfs_read syscall=read
{stack}
thread 2 [running]: {who}
#\t[no frames of the program: it runs]

thread 3 [sleeping]: {who} wchan=vfs_read syscall=read
{stack}
thread 4 [disk sleep]: {who}
#\t[no frames of the kernel: not\\nsupported]
#\t0x7f00
#\t[truncated]
"
    );
    assert_eq!(listed(&dump()), expected);
    let expected = format!(
        "{header}
2 @ pool=\"web\" state=\"sleeping\" wchan=vfs_read syscall=read
# threads 1 3
{stack}
1 @ pool=\"web\" state=\"running\"
# threads 2
#\t[no frames of the program: it runs]

1 @ pool=\"web\" state=\"disk sleep\"
# threads 4
#\t[no frames of the kernel: not\\nsupported]
#\t0x7f00
#\t[truncated]
"
    );
    assert_eq!(collapsed(&dump()), expected);
}

#[test]
fn a_profile_of_threads_counts_them_and_nothing_else() {
    let read = read(&dump().profile);
    let threads = ("threads", "count");
    assert_eq!(read.sample_type.iter().map(|of| read.value_type(of)).collect::<Vec<_>>(), [threads]);
    assert_eq!((read.value_type(&read.period_type.unwrap()), read.period), (threads, 1));
    assert_eq!(read.text(read.default_sample_type), "threads");
    assert!(read.sample.iter().all(|sample| sample.value == [1]));
    assert_eq!(
        text(&dump().profile, Format::Folded),
        "web;disk sleep;[truncated];0x7f00 1\n\
         web;running;[truncated] 1\n\
         web;sleeping;main;serve;parse_[i];vfs_read_[k] 2\n"
    );
}

/// Of some time, in which less became in use at one place.
fn of_heap() -> Heap {
    let nobody = Labels { pid: 0, tid: 0, slot: None, thread: "".into(), ..labels("", 0, "", None) };
    let sample = |stack: &[u32], bytes| Sample {
        stack: stack.into(),
        labels: 0,
        count: 1,
        value_ns: bytes,
        truncated: false,
    };
    let values = |allocated: (i64, i64), in_use: (i64, i64)| {
        let amount = |(objects, bytes)| Amount { objects, bytes };
        Values { allocated: amount(allocated), in_use: amount(in_use) }
    };
    Heap {
        profile: Profile {
            duration_ns: 2 * SECOND,
            labels: vec![nobody],
            samples: vec![sample(&[1, 0], 0), sample(&[0], 4096)],
            losses: Losses { samples: 2, truncated: 0, lost: 3, passed_over: 0 },
            ..profile(Kind::Heap)
        },
        values: vec![values((1, 512), (-2, -1024)), values((3, 5000), (1, 4096))],
        shown: Shown::InUse,
        malloc_in_use: 123_456,
    }
}

#[test]
fn a_profile_of_a_heap_has_the_values_of_go() {
    for (shown, default) in [(Shown::InUse, "inuse_space"), (Shown::Allocated, "alloc_space")] {
        let read = read_bytes(&render_heap(&Heap { shown, ..of_heap() }, Format::Proto).unwrap());
        let types: Vec<_> = read.sample_type.iter().map(|of| read.value_type(of)).collect();
        let expected = [
            ("alloc_objects", "count"),
            ("alloc_space", "bytes"),
            ("inuse_objects", "count"),
            ("inuse_space", "bytes"),
        ];
        assert_eq!(types, expected);
        let values: Vec<_> = read.sample.iter().map(|sample| &*sample.value).collect();
        assert_eq!(values, [[1, 512, -2, -1024], [3, 5000, 1, 4096]]);
        assert_eq!(read.text(read.default_sample_type), default);
        assert_eq!(read.value_type(&read.period_type.unwrap()), ("space", "bytes"));
        assert_eq!(read.period, 524_288);
        assert!(read.sample.iter().all(|sample| sample.label.is_empty()), "memory is nobody's");
        let comments: Vec<&str> = read.comment.iter().map(|index| read.text(*index)).collect();
        assert!(comments.iter().any(|comment| comment.ends_with("malloc, counted: 123456")), "{comments:?}");
    }
}

#[test]
fn a_heap_is_shown_by_its_bytes() {
    let text = |format| String::from_utf8(render_heap(&of_heap(), format).unwrap()).unwrap();
    let expected = "\
--- heap profile: -1: 3072 [4: 5512] @ heap/524288
of 2s until 2023-11-14T22:13:20Z
blocks and bytes that were in use in the end less those in the beginning [asked for meanwhile]
bytes in use by all of malloc, counted: 123456
allocations sampled and not followed to their end, so that they are missing from what is in use: 3

1: 4096 [3: 5000] @
#\tmain\t/src/main.c:12

-2: -1024 [1: 512] @
#\tparse (inlined)\t/src/parse.h:5
#\tserve\t/src/serve.c:30
#\tmain\t/src/main.c:12
";
    assert_eq!(text(Format::Text), expected);
    assert_eq!(text(Format::Folded), "heap;main 4096\nheap;main;serve;parse_[i] 0\n");
    assert!(text(Format::FlameGraph).contains("heap, 2s"));
}
