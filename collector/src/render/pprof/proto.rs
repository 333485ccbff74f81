//! `profile.proto` of google/pprof, compressed.
//!
//! Written by hand: a library for messages would want a second profile, made of messages, where this goes through the
//! first one and hands what it wrote to the compressor, message by message. The tests read it back with such a library,
//! and with `go tool pprof`.
//!
//! Identifiers are indices plus one, which Parca insists on (its `ValidatePprofProfile`): what has none is 0.
//!
//! Types of values are those of Go's profiles, as readers go by them: Parca and Pyroscope name a profile after its types
//! of values and its type of period, so profiles of waits have the period of Go's mutex profile, which is one contention, and
//! those of threads that of its goroutine profile, and those of memory all four values and the period of its heap profile.
//!
//! # Labels
//!
//! `pool`, `slot`, `thread`, `state` and `reason` are strings, `generation`, `pid` and `tid` numbers without a unit. What
//! is a string becomes a series in Pyroscope and a column in Parca and can be chosen from there, so strings are what
//! there are few of; Pyroscope drops numbers, which spares it a series for each process. A slot is a string although it
//! is a number: readers take a number that is 0 and has no unit for none (`postDecode` of google/pprof), and there is a
//! slot 0, but no generation, process or thread. In `go tool pprof`:
//!
//! ```text
//! -tagroot=pool,slot          a tree per worker
//! -tagfocus=pool=^web$        one pool
//! -tagfocus=slot=^3$          one slot; without the anchors, 3 would be taken for a number
//! -tagfocus=generation=2:     all but the first generation of each slot
//! -tagfocus=pid=4711          one process
//! ```

use std::collections::HashMap;
use std::io::{self, Write as _};

use flate2::Compression;
use flate2::write::GzEncoder;

use super::frames::{self, TRUNCATED};
use super::{Measure, heap, remarks};
use crate::heap::sampled::PERIOD_BYTES;
use crate::profile::heap::{Heap, Shown};
use crate::profile::{Kind, Labels, Profile, Sample};

/// What Go's profiles of heaps have.
const HEAP_VALUES: [(&str, &str); 4] = [
    ("alloc_objects", "count"),
    ("alloc_space", "bytes"),
    ("inuse_objects", "count"),
    ("inuse_space", "bytes"),
];

/// Writes a profile; of a heap with what is known of it.
pub(super) fn render(profile: &Profile, heap: Option<&Heap>) -> io::Result<Vec<u8>> {
    let slots: Vec<String> = profile.labels.iter().map(slot).collect();
    let mut remarks = remarks(profile);
    remarks.extend(heap.map(heap::of_malloc));
    let mut strings = Strings::default();
    // The empty string is the first of the table.
    strings.index("");
    // As fast as it can: who asks for a profile is waiting, and each name is in it once.
    let mut out = Out { gzip: GzEncoder::new(Vec::new(), Compression::fast()), message: Message::default() };

    let measure = Measure::of(profile.kind);
    let count = (measure.count, "count");
    let of_heap = heap.map(|_| HEAP_VALUES).into_iter().flatten();
    let measured = std::iter::once(count).chain(measure.value).filter(|_| heap.is_none());
    for (kind, unit) in of_heap.chain(measured) {
        out.put(PROFILE_SAMPLE_TYPE, |m| put_value_type(m, &mut strings, kind, unit))?;
    }
    let (period_type, period) = match (profile.kind, measure.value) {
        (Kind::OnCpu | Kind::Cycles | Kind::Wall, Some(value)) => (value, profile.period_ns),
        (Kind::Heap, _) => (("space", "bytes"), PERIOD_BYTES),
        _ => (count, 1),
    };
    let default = match heap {
        Some(heap) if heap.shown == Shown::Allocated => "alloc_space",
        _ => measure.value.unwrap_or(count).0,
    };
    out.put(PROFILE_PERIOD_TYPE, |m| put_value_type(m, &mut strings, period_type.0, period_type.1))?;
    out.put_number(PROFILE_PERIOD, period)?;
    out.put_number(PROFILE_TIME_NANOS, profile.started_unix_ns)?;
    out.put_number(PROFILE_DURATION_NANOS, profile.duration_ns)?;
    out.put_number(PROFILE_DEFAULT_SAMPLE_TYPE, strings.index(default))?;
    for remark in &remarks {
        out.put_number(PROFILE_COMMENT, strings.index(remark))?;
    }

    // Samples of one thread share their labels.
    let labels: Vec<Vec<u8>> =
        profile.labels.iter().zip(&slots).map(|(of, slot)| labels(of, slot, &mut strings)).collect();
    let mut any_truncated = false;
    for (at, sample) in profile.samples.iter().enumerate() {
        if frames::labels(profile, sample).is_none() {
            continue;
        }
        let truncated = frames::truncated(sample);
        any_truncated |= truncated;
        let labels = labels.get(sample.labels as usize).map_or(&[][..], Vec::as_slice);
        out.put(PROFILE_SAMPLE, |m| {
            let missing = truncated.then_some(profile.locations.len());
            if let Some(of) = heap.and_then(|heap| heap.values.get(at)) {
                let amounts = [of.allocated, of.in_use];
                // Less than nothing is the largest of numbers here.
                let values = amounts.map(|of| [of.objects.cast_unsigned(), of.bytes.cast_unsigned()]);
                put_sample(m, sample, missing, values.into_iter().flatten(), labels);
            } else {
                let values =
                    [Some(sample.count), measure.value.map(|_| sample.value_ns)].into_iter().flatten();
                // They are signed there.
                put_sample(m, sample, missing, values.map(|v| v.min(i64::MAX.cast_unsigned())), labels);
            }
        })?;
    }
    put_tables(profile, any_truncated, &mut strings, &mut out)?;
    for text in &strings.table {
        out.put(PROFILE_STRING_TABLE, |m| m.bytes.extend_from_slice(text.as_bytes()))?;
    }
    out.gzip.finish()
}

/// Mappings, locations and functions; after them what stands for missing frames.
fn put_tables<'a>(
    profile: &'a Profile,
    any_truncated: bool,
    strings: &mut Strings<'a>,
    out: &mut Out,
) -> io::Result<()> {
    for ((at, mapping), known) in profile.mappings.iter().enumerate().zip(known(profile)) {
        out.put(PROFILE_MAPPING, |m| {
            m.number(MAPPING_ID, id(at));
            m.number(MAPPING_START, mapping.start);
            m.number(MAPPING_LIMIT, mapping.limit);
            m.number(MAPPING_OFFSET, mapping.file_offset);
            m.number(MAPPING_FILENAME, strings.index(&mapping.path));
            m.number(MAPPING_BUILD_ID, strings.index(&mapping.build_id));
            // Readers look up what a mapping does not have, by its build id.
            m.number(MAPPING_HAS_FUNCTIONS, mapping.symbolized.into());
            m.number(MAPPING_HAS_FILENAMES, (mapping.symbolized && known.files).into());
            m.number(MAPPING_HAS_LINE_NUMBERS, (mapping.symbolized && known.lines).into());
            m.number(MAPPING_HAS_INLINE_FRAMES, (mapping.symbolized && known.inlined).into());
        })?;
    }
    for (at, location) in profile.locations.iter().enumerate() {
        let mapping = location.mapping.filter(|index| (*index as usize) < profile.mappings.len());
        out.put(PROFILE_LOCATION, |m| {
            m.number(LOCATION_ID, id(at));
            m.number(LOCATION_MAPPING_ID, mapping.map_or(0, |index| id(index as usize)));
            m.number(LOCATION_ADDRESS, location.address);
            let known = |function: u32| (function as usize) < profile.functions.len();
            for line in location.lines.iter().filter(|line| known(line.function)) {
                m.message(LOCATION_LINE, |m| {
                    m.number(LINE_FUNCTION_ID, id(line.function as usize));
                    m.number(LINE_LINE, line.line.into());
                });
            }
        })?;
    }
    for (at, function) in profile.functions.iter().enumerate() {
        out.put(PROFILE_FUNCTION, |m| {
            m.number(FUNCTION_ID, id(at));
            m.number(FUNCTION_NAME, strings.index(frames::name(function)));
            m.number(FUNCTION_SYSTEM_NAME, strings.index(&function.system_name));
            m.number(FUNCTION_FILENAME, strings.index(&function.file));
            m.number(FUNCTION_START_LINE, function.start_line.into());
        })?;
    }
    if any_truncated {
        let function = id(profile.functions.len());
        out.put(PROFILE_LOCATION, |m| {
            m.number(LOCATION_ID, id(profile.locations.len()));
            m.message(LOCATION_LINE, |m| m.number(LINE_FUNCTION_ID, function));
        })?;
        out.put(PROFILE_FUNCTION, |m| {
            m.number(FUNCTION_ID, function);
            m.number(FUNCTION_NAME, strings.index(TRUNCATED));
            m.number(FUNCTION_SYSTEM_NAME, strings.index(TRUNCATED));
        })?;
    }
    Ok(())
}

fn put_value_type<'a>(message: &mut Message, strings: &mut Strings<'a>, kind: &'a str, unit: &'a str) {
    message.number(VALUE_TYPE_TYPE, strings.index(kind));
    message.number(VALUE_TYPE_UNIT, strings.index(unit));
}

/// Writes the fields of a sample, whose last location stands for missing frames if it is given.
fn put_sample(
    message: &mut Message,
    sample: &Sample,
    missing: Option<usize>,
    values: impl Iterator<Item = u64>,
    labels: &[u8],
) {
    let stack = sample.stack.iter().map(|index| *index as usize).chain(missing);
    message.packed(SAMPLE_LOCATION_ID, stack.map(id));
    message.packed(SAMPLE_VALUE, values);
    message.bytes.extend_from_slice(labels);
}

/// The labels that a sample has, as fields of it.
fn labels<'a>(labels: &'a Labels, slot: &'a str, strings: &mut Strings<'a>) -> Vec<u8> {
    let mut message = Message::default();
    let texts = [
        ("pool", &*labels.pool),
        ("slot", slot),
        ("thread", &labels.thread),
        ("state", labels.state),
        ("reason", labels.reason.unwrap_or_default()),
    ];
    for (key, text) in texts.into_iter().filter(|(_, text)| !text.is_empty()) {
        message.message(SAMPLE_LABEL, |m| {
            m.number(LABEL_KEY, strings.index(key));
            m.number(LABEL_STR, strings.index(text));
        });
    }
    let numbers = [
        ("generation", labels.slot.map_or(0, |(_, generation)| generation)),
        ("pid", labels.pid.into()),
        ("tid", labels.tid.into()),
        // As other profilers that tell samples one by one name it.
        ("end_timestamp_ns", labels.ended_unix_ns.unwrap_or(0)),
    ];
    for (key, number) in numbers.into_iter().filter(|(_, number)| *number > 0) {
        message.message(SAMPLE_LABEL, |m| {
            m.number(LABEL_KEY, strings.index(key));
            m.number(LABEL_NUM, number);
        });
    }
    message.bytes
}

fn slot(labels: &Labels) -> String {
    labels.slot.map(|(slot, _)| slot.to_string()).unwrap_or_default()
}

/// What the locations of a mapping tell.
#[derive(Clone, Copy, Default)]
struct Known {
    files: bool,
    lines: bool,
    inlined: bool,
}

fn known(profile: &Profile) -> Vec<Known> {
    let mut known = vec![Known::default(); profile.mappings.len()];
    for location in &profile.locations {
        let Some(known) = location.mapping.and_then(|index| known.get_mut(index as usize)) else { continue };
        let mut functions =
            location.lines.iter().filter_map(|line| profile.functions.get(line.function as usize));
        known.files |= functions.any(|function| !function.file.is_empty());
        known.lines |= location.lines.iter().any(|line| line.line > 0);
        known.inlined |= location.lines.len() > 1;
    }
    known
}

/// Of what is at this index.
fn id(index: usize) -> u64 {
    index as u64 + 1
}

/// The table of strings: each of them once.
#[derive(Default)]
struct Strings<'a> {
    table: Vec<&'a str>,
    indices: HashMap<&'a str, u64>,
}

impl<'a> Strings<'a> {
    fn index(&mut self, text: &'a str) -> u64 {
        *self.indices.entry(text).or_insert_with(|| {
            self.table.push(text);
            self.table.len() as u64 - 1
        })
    }
}

/// Takes fields of a profile and compresses them, so that it never exists uncompressed as a whole.
struct Out {
    gzip: GzEncoder<Vec<u8>>,
    message: Message,
}

impl Out {
    fn put(&mut self, field: u8, write: impl FnOnce(&mut Message)) -> io::Result<()> {
        self.message.bytes.clear();
        self.message.message(field, write);
        self.gzip.write_all(&self.message.bytes)
    }

    fn put_number(&mut self, field: u8, number: u64) -> io::Result<()> {
        self.message.bytes.clear();
        self.message.number(field, number);
        self.gzip.write_all(&self.message.bytes)
    }
}

/// Fields of a message, one after the other.
#[derive(Default)]
struct Message {
    bytes: Vec<u8>,
}

const VARINT: u8 = 0;
const BYTES: u8 = 2;

impl Message {
    /// A number; none is written for 0, as that is what readers take for one that is missing.
    fn number(&mut self, field: u8, number: u64) {
        if number != 0 {
            self.bytes.push(field << 3 | VARINT);
            self.varint(number);
        }
    }

    /// A message, or text.
    fn message(&mut self, field: u8, write: impl FnOnce(&mut Self)) {
        self.bytes.push(field << 3 | BYTES);
        let start = self.bytes.len();
        write(self);
        let length = self.bytes.len() - start;
        // What comes before it is known only now.
        let end = self.bytes.len();
        self.varint(length as u64);
        let width = self.bytes.len() - end;
        self.bytes[start..].rotate_right(width);
    }

    /// Numbers of one field.
    fn packed(&mut self, field: u8, numbers: impl Iterator<Item = u64>) {
        self.message(field, |message| numbers.for_each(|number| message.varint(number)));
    }

    /// Seven bits a byte, the lowest first; the highest bit says that there are more.
    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.bytes.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.bytes.push(number as u8);
    }
}

// Numbers of fields. All are below 16, so that number and kind of a field fit into a byte.
const PROFILE_SAMPLE_TYPE: u8 = 1;
const PROFILE_SAMPLE: u8 = 2;
const PROFILE_MAPPING: u8 = 3;
const PROFILE_LOCATION: u8 = 4;
const PROFILE_FUNCTION: u8 = 5;
const PROFILE_STRING_TABLE: u8 = 6;
const PROFILE_TIME_NANOS: u8 = 9;
const PROFILE_DURATION_NANOS: u8 = 10;
const PROFILE_PERIOD_TYPE: u8 = 11;
const PROFILE_PERIOD: u8 = 12;
const PROFILE_COMMENT: u8 = 13;
const PROFILE_DEFAULT_SAMPLE_TYPE: u8 = 14;
const VALUE_TYPE_TYPE: u8 = 1;
const VALUE_TYPE_UNIT: u8 = 2;
const SAMPLE_LOCATION_ID: u8 = 1;
const SAMPLE_VALUE: u8 = 2;
const SAMPLE_LABEL: u8 = 3;
const LABEL_KEY: u8 = 1;
const LABEL_STR: u8 = 2;
const LABEL_NUM: u8 = 3;
const MAPPING_ID: u8 = 1;
const MAPPING_START: u8 = 2;
const MAPPING_LIMIT: u8 = 3;
const MAPPING_OFFSET: u8 = 4;
const MAPPING_FILENAME: u8 = 5;
const MAPPING_BUILD_ID: u8 = 6;
const MAPPING_HAS_FUNCTIONS: u8 = 7;
const MAPPING_HAS_FILENAMES: u8 = 8;
const MAPPING_HAS_LINE_NUMBERS: u8 = 9;
const MAPPING_HAS_INLINE_FRAMES: u8 = 10;
const LOCATION_ID: u8 = 1;
const LOCATION_MAPPING_ID: u8 = 2;
const LOCATION_ADDRESS: u8 = 3;
const LOCATION_LINE: u8 = 4;
const LINE_FUNCTION_ID: u8 = 1;
const LINE_LINE: u8 = 2;
const FUNCTION_ID: u8 = 1;
const FUNCTION_NAME: u8 = 2;
const FUNCTION_SYSTEM_NAME: u8 = 3;
const FUNCTION_FILENAME: u8 = 4;
const FUNCTION_START_LINE: u8 = 5;
