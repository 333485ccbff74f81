//! How families and samples are written, in both text formats. The only place that knows what a line looks like.
//!
//! A scrape of a thousand workers is ten thousand lines, each of them the same few pieces and a number. So pieces are
//! escaped and put together once, and copied in blocks of a fixed size with whatever stands behind them, which the next
//! piece overwrites: a few stores instead of a call for each piece.

use std::io::Write as _;

use super::family::Family;
use super::{Format, Groups};
use crate::snapshot::Distribution;
use crate::units::NANOS_PER_SECOND;

/// What is copied in one go. Most pieces are shorter; longer ones are copied by their length.
const BLOCK: usize = 64;

/// No number is longer.
const NUMBER: usize = 40;

/// Text under way. What stands behind its end are leftovers, to be overwritten.
#[derive(Debug, Default)]
pub struct Buffer {
    bytes: Vec<u8>,
    end: usize,
}

impl Buffer {
    /// Writes over `leftovers`, which saves the kernel from finding and clearing that memory again.
    pub fn over(leftovers: Vec<u8>) -> Self {
        Self { bytes: leftovers, end: 0 }
    }

    /// What was written.
    pub fn written(&self) -> &[u8] {
        &self.bytes[..self.end]
    }

    /// Takes back what was written.
    pub fn clear(&mut self) {
        self.end = 0;
    }

    /// What was written, and nothing else.
    pub fn into_written(mut self) -> Vec<u8> {
        self.bytes.truncate(self.end);
        self.bytes
    }

    /// Makes room for so many bytes more.
    #[inline]
    fn reserve(&mut self, more: usize) {
        if self.bytes.len() - self.end < more {
            self.grow(more);
        }
    }

    /// All of the room is written to, hence counts as resident: large buffers grow in small steps, which the kernel
    /// makes by moving pages.
    #[cold]
    fn grow(&mut self, more: usize) {
        const DOUBLED_UP_TO: usize = 32 << 10;
        let needed = self.end + more;
        if needed > self.bytes.capacity() {
            let slack = (self.end / 8).max(self.end.min(DOUBLED_UP_TO));
            self.bytes.reserve_exact(needed + slack - self.bytes.len());
        }
        self.bytes.resize(self.bytes.capacity(), 0);
    }

    fn put(&mut self, bytes: &[u8]) {
        self.reserve(bytes.len());
        self.bytes[self.end..self.end + bytes.len()].copy_from_slice(bytes);
        self.end += bytes.len();
    }

    fn put_byte(&mut self, byte: u8) {
        self.reserve(1);
        self.bytes[self.end] = byte;
        self.end += 1;
    }

    fn put_number(&mut self, value: impl Value) {
        self.reserve(NUMBER);
        if let Some(place) = self.bytes[self.end..].first_chunk_mut() {
            self.end += value.write(place);
        }
    }

    /// A label's value can hold any character: both formats escape three, all others stand for themselves.
    fn put_escaped(&mut self, value: &str) {
        let mut rest = value.as_bytes();
        while let Some(at) = rest.iter().position(|byte| matches!(byte, b'\\' | b'"' | b'\n')) {
            self.put(&rest[..at]);
            self.put(match rest[at] {
                b'\\' => br"\\",
                b'"' => br#"\""#,
                _ => br"\n",
            });
            rest = &rest[at + 1..];
        }
        self.put(rest);
    }

    /// Leaves room for a value and the end of the line.
    #[inline]
    fn put_pieces<const N: usize>(&mut self, pieces: [Piece<'_>; N]) {
        let length: usize = pieces.iter().map(|piece| piece.length).sum();
        self.reserve(length + BLOCK + NUMBER + 1);
        for piece in pieces {
            piece.copy_to(&mut self.bytes[self.end..]);
            self.end += piece.length;
        }
    }

    /// A line of these pieces and a value.
    #[inline]
    fn put_line<const N: usize>(&mut self, pieces: [Piece<'_>; N], value: impl Value) {
        self.put_pieces(pieces);
        if let Some(place) = self.bytes[self.end..].first_chunk_mut() {
            self.end += value.write(place);
        }
        self.bytes[self.end] = b'\n';
        self.end += 1;
    }
}

/// Bytes to be copied, with the leftovers behind them.
#[derive(Clone, Copy)]
pub(super) struct Piece<'a> {
    padded: &'a [u8],
    length: usize,
}

impl Piece<'_> {
    /// The labels of a series that has none.
    pub(super) const EMPTY: Piece<'static> = Piece { padded: &[], length: 0 };

    #[inline]
    fn copy_to(self, place: &mut [u8]) {
        if self.length <= BLOCK
            && let Some(from) = self.padded.first_chunk::<BLOCK>()
            && let Some(to) = place.first_chunk_mut::<BLOCK>()
        {
            *to = *from;
        } else {
            self.copy_by_length(place);
        }
    }

    /// Apart, or the compiler would make one copy of unknown length out of both.
    #[cold]
    #[inline(never)]
    fn copy_by_length(self, place: &mut [u8]) {
        place[..self.length].copy_from_slice(&self.padded[..self.length]);
    }
}

/// Where a piece stands in [`Labels`].
#[derive(Clone, Copy)]
pub(super) struct Place {
    start: usize,
    length: usize,
}

/// Labels that series of many families have in common, ready to be copied.
#[derive(Default)]
pub(super) struct Labels(Buffer);

impl Labels {
    /// Adds the labels that `write` writes, after those of `base`.
    pub(super) fn add(&mut self, base: Option<Place>, write: impl FnOnce(&mut LabelWriter<'_>)) -> Place {
        let start = self.0.end;
        if let Some(base) = base {
            self.0.reserve(base.length);
            self.0.bytes.copy_within(base.start..base.start + base.length, start);
            self.0.end += base.length;
        }
        write(&mut LabelWriter { out: &mut self.0, first: base.is_none() });
        let length = self.0.end - start;
        self.0.reserve(BLOCK);
        Place { start, length }
    }

    #[inline]
    pub(super) fn get(&self, place: Place) -> Piece<'_> {
        Piece { padded: &self.0.bytes[place.start..], length: place.length }
    }
}

/// The name of a label, with what stands before and behind it.
pub(super) struct Name {
    text: [u8; 32],
    length: usize,
}

impl Name {
    pub(super) const fn new(name: &str) -> Self {
        let (name, mut text) = (name.as_bytes(), [0; 32]);
        text[0] = b',';
        let mut at = 0;
        while at < name.len() {
            text[at + 1] = name[at];
            at += 1;
        }
        text[at + 1] = b'=';
        text[at + 2] = b'"';
        Self { text, length: at + 3 }
    }
}

/// Writes the labels of one series.
pub(super) struct LabelWriter<'a> {
    out: &'a mut Buffer,
    first: bool,
}

impl LabelWriter<'_> {
    pub(super) fn text(&mut self, name: &Name, value: &str) {
        self.begin(name);
        self.out.put_escaped(value);
        self.out.put_byte(b'"');
    }

    pub(super) fn number(&mut self, name: &Name, value: impl Into<u64>) {
        self.begin(name);
        self.out.put_number(value.into());
        self.out.put_byte(b'"');
    }

    #[inline]
    fn begin(&mut self, name: &Name) {
        self.out.reserve(name.text.len());
        let start = self.out.end;
        if let Some(place) = self.out.bytes[start..].first_chunk_mut() {
            *place = name.text;
        }
        if std::mem::take(&mut self.first) {
            self.out.bytes[start] = b'{';
        }
        self.out.end += name.length;
    }
}

/// A piece that owns its bytes.
struct OwnPiece(Buffer);

impl OwnPiece {
    fn new(parts: &[&str]) -> Self {
        let mut buffer = Buffer::default();
        parts.iter().for_each(|part| buffer.put(part.as_bytes()));
        Self::of(buffer)
    }

    fn of(mut buffer: Buffer) -> Self {
        buffer.reserve(BLOCK);
        Self(buffer)
    }

    #[inline]
    fn get(&self) -> Piece<'_> {
        Piece { padded: &self.0.bytes, length: self.0.end }
    }
}

/// The values of a label that tells samples of one series apart, e.g. `mode`.
pub(super) struct Variants {
    name: Name,
    ends: Vec<(&'static str, OwnPiece)>,
}

impl Variants {
    pub(super) fn of(name: Name) -> Self {
        Self { name, ends: Vec::new() }
    }

    fn end(&mut self, value: &'static str) -> Piece<'_> {
        // Where it stands says which it is, for less than comparing text; the same text twice is no harm.
        let found = self.ends.iter().position(|(known, _)| std::ptr::eq(*known, value));
        let at = found.unwrap_or_else(|| {
            let mut end = Buffer::default();
            LabelWriter { out: &mut end, first: false }.text(&self.name, value);
            end.put(b"} ");
            self.ends.push((value, OwnPiece::of(end)));
            self.ends.len() - 1
        });
        self.ends[at].1.get()
    }
}

/// Writes families, one after the other.
pub(super) struct Writer<'a> {
    pub(super) out: &'a mut Buffer,
    pub(super) format: Format,
    pub(super) groups: Groups,
    pub(super) after_family: &'a mut dyn FnMut(&mut Buffer),
}

impl Writer<'_> {
    /// Writes the header and what `samples` adds, or nothing if it adds nothing or its group is not wanted.
    pub(super) fn family(&mut self, family: &Family, samples: impl FnOnce(&mut Samples<'_>)) {
        if !self.groups.contains(family.group) {
            return;
        }
        let start = self.out.end;
        let name = family.header_name(self.format);
        let kind = family.kind.as_str(self.format);
        for part in ["# HELP ", name, " ", family.help, "\n# TYPE ", name, " ", kind, "\n"] {
            self.out.put(part.as_bytes());
        }
        if self.format == Format::OpenMetrics && !family.unit.is_empty() {
            for part in ["# UNIT ", name, " ", family.unit, "\n"] {
                self.out.put(part.as_bytes());
            }
        }
        let body = self.out.end;
        samples(&mut Samples {
            out: self.out,
            format: self.format,
            name: family.name,
            head: OwnPiece::new(&[family.name]),
            end: OwnPiece::new(&["} "]),
        });
        if self.out.end == body {
            self.out.end = start;
        }
        (self.after_family)(self.out);
    }

    /// A family of at most one sample, which has no labels.
    pub(super) fn single<V: Value>(&mut self, family: &Family, value: Option<V>) {
        self.family(family, |samples| {
            if let Some(value) = value {
                let name = OwnPiece::new(&[family.name, " "]);
                samples.out.put_line([name.get()], value);
            }
        });
    }

    /// What ends an exposition.
    pub(super) fn end(self) {
        if self.format == Format::OpenMetrics {
            self.out.put(b"# EOF\n");
        }
        (self.after_family)(self.out);
    }
}

/// The samples of one family.
pub(super) struct Samples<'a> {
    out: &'a mut Buffer,
    format: Format,
    name: &'static str,
    head: OwnPiece,
    /// What stands between labels and value.
    end: OwnPiece,
}

impl Samples<'_> {
    #[inline]
    pub(super) fn add<V: Value>(&mut self, labels: Piece<'_>, value: V) {
        self.out.put_line([self.head.get(), labels, self.end.get()], value);
    }

    #[inline]
    pub(super) fn add_known<V: Value>(&mut self, labels: Piece<'_>, value: Option<V>) {
        if let Some(value) = value {
            self.add(labels, value);
        }
    }

    /// Adds a sample with one label more, of few values.
    #[inline]
    pub(super) fn add_variant<V: Value>(
        &mut self,
        labels: Piece<'_>,
        variants: &mut Variants,
        variant: &'static str,
        value: V,
    ) {
        self.out.put_line([self.head.get(), labels, variants.end(variant)], value);
    }

    /// Adds a sample with more labels, of any values.
    pub(super) fn add_labelled<V: Value>(
        &mut self,
        labels: Piece<'_>,
        more: impl FnOnce(&mut LabelWriter<'_>),
        value: V,
    ) {
        self.out.put_pieces([self.head.get(), labels]);
        more(&mut LabelWriter { out: self.out, first: labels.length == 0 });
        self.out.put_line([self.end.get()], value);
    }

    /// Adds classic histograms, which have the same bounds.
    pub(super) fn add_histograms<'a>(
        &mut self,
        histograms: impl Iterator<Item = (Piece<'a>, &'a Distribution)>,
    ) {
        let [bucket, sum, count] =
            ["_bucket", "_sum", "_count"].map(|suffix| OwnPiece::new(&[self.name, suffix]));
        let infinite = OwnPiece::new(&[",le=\"+Inf\"} "]);
        let (mut bounds, mut ends): (&[f64], Vec<OwnPiece>) = (&[], Vec::new());
        for (labels, distribution) in histograms {
            if !std::ptr::eq(bounds, distribution.bounds) {
                bounds = distribution.bounds;
                ends = bounds.iter().map(|bound| bucket_end(*bound, self.format)).collect();
            }
            for (end, value) in ends.iter().zip(&distribution.cumulative) {
                self.out.put_line([bucket.get(), labels, end.get()], *value);
            }
            self.out.put_line([bucket.get(), labels, infinite.get()], distribution.count);
            self.out.put_line([sum.get(), labels, self.end.get()], distribution.sum);
            self.out.put_line([count.get(), labels, self.end.get()], distribution.count);
        }
    }

    /// Adds quantiles of each window there is.
    pub(super) fn add_quantiles<'a>(
        &mut self,
        summaries: impl Iterator<Item = (Piece<'a>, &'a Distribution)>,
    ) {
        const QUANTILES: [&str; 3] = ["0.5", "0.95", "0.99"];
        let mut windows: Vec<(&str, [OwnPiece; 3])> = Vec::new();
        for (labels, distribution) in summaries {
            for window in &distribution.windows {
                let found = windows.iter().position(|(name, _)| *name == window.window);
                let at = found.unwrap_or_else(|| {
                    let end = |quantile| {
                        OwnPiece::new(&[",quantile=\"", quantile, "\",window=\"", window.window, "\"} "])
                    };
                    windows.push((window.window, QUANTILES.map(end)));
                    windows.len() - 1
                });
                for (end, value) in windows[at].1.iter().zip([window.p50, window.p95, window.p99]) {
                    self.out.put_line([self.head.get(), labels, end.get()], value);
                }
            }
        }
    }
}

/// Something that can stand behind a series.
pub(super) trait Value {
    /// Writes it to the beginning of `place` and returns its length.
    fn write(self, place: &mut [u8; NUMBER]) -> usize;
}

/// Every number below a hundred, in two digits.
const PAIRS: [[u8; 2]; 100] = {
    let mut pairs = [[b'0'; 2]; 100];
    let mut number = 0;
    while number < 100 {
        pairs[number] = [b'0' + (number / 10) as u8, b'0' + (number % 10) as u8];
        number += 1;
    }
    pairs
};

/// Where they are to stand, at once: digits that were written elsewhere would have to be read back before the
/// processor has put them away, which costs more than finding them.
impl Value for u64 {
    #[inline]
    fn write(self, place: &mut [u8; NUMBER]) -> usize {
        let length = self.checked_ilog10().map_or(1, |power| power as usize + 1);
        let (mut rest, mut at) = (self, length);
        while at >= 2 {
            at -= 2;
            place[at..at + 2].copy_from_slice(&PAIRS[(rest % 100) as usize]);
            rest /= 100;
        }
        if at == 1 {
            place[0] = b'0' + (rest % 10) as u8;
        }
        length
    }
}

impl Value for u32 {
    #[inline]
    fn write(self, place: &mut [u8; NUMBER]) -> usize {
        u64::from(self).write(place)
    }
}

/// Always true, as the value of an info is.
pub(super) struct One;

impl Value for One {
    #[inline]
    fn write(self, place: &mut [u8; NUMBER]) -> usize {
        place[0] = b'1';
        1
    }
}

impl Value for f64 {
    fn write(self, place: &mut [u8; NUMBER]) -> usize {
        let mut buffer = ryu::Buffer::new();
        let text = if self.is_finite() {
            buffer.format_finite(self)
        } else if self.is_nan() {
            "NaN"
        } else if self > 0.0 {
            "+Inf"
        } else {
            "-Inf"
        };
        place[..text.len()].copy_from_slice(text.as_bytes());
        text.len()
    }
}

/// Nanoseconds, written as seconds with all their digits: no rounding, and cheaper than a float.
#[derive(Clone, Copy)]
pub(super) struct Nanos(pub(super) u64);

impl Value for Nanos {
    #[inline]
    fn write(self, place: &mut [u8; NUMBER]) -> usize {
        let length = (self.0 / NANOS_PER_SECOND).write(place);
        let fraction = self.0 % NANOS_PER_SECOND;
        if fraction == 0 {
            return length;
        }
        let Some(digits) = place[length..].first_chunk_mut::<10>() else { return length };
        let fraction = fraction as u32;
        digits[0] = b'.';
        for (pair, unit) in digits[1..].as_chunks_mut::<2>().0.iter_mut().zip([10_000_000, 100_000, 1000, 10])
        {
            *pair = PAIRS[(fraction / unit % 100) as usize];
        }
        digits[9] = b'0' + (fraction % 10) as u8;
        let zeros = digits.iter().rev().take_while(|digit| **digit == b'0').count();
        length + digits.len() - zeros
    }
}

/// The same, and it may be less than nothing.
#[derive(Clone, Copy)]
pub(super) struct SignedNanos(pub(super) i64);

impl Value for SignedNanos {
    fn write(self, place: &mut [u8; NUMBER]) -> usize {
        let length = Nanos(self.0.unsigned_abs()).write(place);
        if self.0 >= 0 {
            return length;
        }
        place.copy_within(..length, 1);
        place[0] = b'-';
        length + 1
    }
}

/// What stands between the labels of a bucket and its count.
fn bucket_end(bound: f64, format: Format) -> OwnPiece {
    let mut text = b",le=\"".to_vec();
    write_bound(&mut text, bound, format);
    text.extend_from_slice(b"\"} ");
    let mut end = Buffer::default();
    end.put(&text);
    OwnPiece::of(end)
}

/// Writes a bucket's bound as Go's `%g` does, because `le` is a label and other exporters write it so. OpenMetrics
/// asks for the same with `.0` behind whole numbers ("canonical numbers").
pub(super) fn write_bound(out: &mut Vec<u8>, bound: f64, format: Format) {
    let start = out.len();
    // Writing to a vector cannot fail.
    if bound != 0.0 && !(1e-4..1e6).contains(&bound.abs()) {
        let _ = write!(out, "{bound:e}");
        if let Some(at) = out[start..].iter().position(|byte| *byte == b'e').map(|at| start + at + 1) {
            let negative = out.get(at) == Some(&b'-');
            let exponent: Vec<u8> = out.drain(at..).filter(|byte| *byte != b'-').collect();
            out.push(if negative { b'-' } else { b'+' });
            if exponent.len() < 2 {
                out.push(b'0');
            }
            out.extend_from_slice(&exponent);
        }
    } else {
        let _ = write!(out, "{bound}");
        if format == Format::OpenMetrics && !out[start..].contains(&b'.') {
            out.extend_from_slice(b".0");
        }
    }
}
