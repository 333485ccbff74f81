//! How families and samples come into an exposition, whatever its format: what a line looks like is in [`text`],
//! what a message looks like in [`protobuf`].

use super::buffer::{BLOCK, Buffer, NUMBER, OwnPiece, Piece};
use super::family::Family;
use super::native::Native;
use super::text::{self, Value, bucket_end};
use super::{Format, Groups, protobuf};
use crate::snapshot::Distribution;

/// Where a piece stands in [`Labels`].
#[derive(Clone, Copy)]
pub(super) struct Place {
    start: usize,
    length: usize,
}

/// Labels that series of many families have in common, ready to be copied.
pub(super) struct Labels {
    out: Buffer,
    format: Format,
}

impl Labels {
    pub(super) fn of(format: Format) -> Self {
        Self { out: Buffer::default(), format }
    }

    /// Adds the labels that `write` writes, after those of `base`.
    pub(super) fn add(&mut self, base: Option<Place>, write: impl FnOnce(&mut LabelWriter<'_>)) -> Place {
        let start = self.out.end;
        if let Some(base) = base {
            self.out.reserve(base.length);
            self.out.bytes.copy_within(base.start..base.start + base.length, start);
            self.out.end += base.length;
        }
        write(&mut LabelWriter { out: &mut self.out, format: self.format, first: base.is_none() });
        let length = self.out.end - start;
        self.out.reserve(BLOCK);
        Place { start, length }
    }

    #[inline]
    pub(super) fn get(&self, place: Place) -> Piece<'_> {
        Piece { padded: &self.out.bytes[place.start..], length: place.length }
    }
}

/// The name of a label, with what stands before and behind it.
pub(super) struct Name {
    name: &'static str,
    text: [u8; 32],
    length: usize,
}

impl Name {
    pub(super) const fn new(name: &'static str) -> Self {
        let (bytes, mut text) = (name.as_bytes(), [0; 32]);
        text[0] = b',';
        let mut at = 0;
        while at < bytes.len() {
            text[at + 1] = bytes[at];
            at += 1;
        }
        text[at + 1] = b'=';
        text[at + 2] = b'"';
        Self { name, text, length: at + 3 }
    }
}

/// Writes the labels of one series.
pub(super) struct LabelWriter<'a> {
    out: &'a mut Buffer,
    format: Format,
    first: bool,
}

impl LabelWriter<'_> {
    pub(super) fn text(&mut self, name: &Name, value: &str) {
        if self.format == Format::Protobuf {
            protobuf::put_label(self.out, name.name, value.as_bytes());
            return;
        }
        self.begin(name);
        text::put_escaped(self.out, value);
        self.out.put_byte(b'"');
    }

    pub(super) fn number(&mut self, name: &Name, value: impl Into<u64>) {
        if self.format == Format::Protobuf {
            let mut place = [0; NUMBER];
            let length = value.into().write(&mut place);
            protobuf::put_label(self.out, name.name, &place[..length]);
            return;
        }
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

/// The values of a label that tells samples of one series apart, e.g. `mode`.
pub(super) struct Variants {
    name: Name,
    ends: Vec<(&'static str, OwnPiece)>,
}

impl Variants {
    pub(super) fn of(name: Name) -> Self {
        Self { name, ends: Vec::new() }
    }

    fn end(&mut self, value: &'static str, format: Format) -> Piece<'_> {
        // Where it stands says which it is, for less than comparing text; the same text twice is no harm.
        let found = self.ends.iter().position(|(known, _)| std::ptr::eq(*known, value));
        let at = found.unwrap_or_else(|| {
            self.ends.push((value, last_labels(format, |labels| labels.text(&self.name, value))));
            self.ends.len() - 1
        });
        self.ends[at].1.get()
    }
}

/// The last labels of a sample and what stands between them and its value.
fn last_labels(format: Format, write: impl FnOnce(&mut LabelWriter<'_>)) -> OwnPiece {
    let mut end = Buffer::default();
    write(&mut LabelWriter { out: &mut end, format, first: false });
    end.put(end_of_labels(format));
    OwnPiece::of(end)
}

fn end_of_labels(format: Format) -> &'static [u8] {
    if format == Format::Protobuf { b"" } else { b"} " }
}

/// Writes families, one after the other.
pub(super) struct Writer<'a> {
    pub(super) out: &'a mut Buffer,
    pub(super) format: Format,
    pub(super) groups: Groups,
    pub(super) native: Native,
    pub(super) after_family: &'a mut dyn FnMut(&mut Buffer),
}

impl Writer<'_> {
    /// Writes the header and what `samples` adds, or nothing if it adds nothing or its group is not wanted.
    pub(super) fn family(&mut self, family: &Family, samples: impl FnOnce(&mut Samples<'_>)) {
        if !self.groups.contains(family.group) {
            return;
        }
        let (start, format) = (self.out.end, self.format);
        match format {
            Format::Text | Format::OpenMetrics => text::put_header(self.out, family, format),
            Format::Protobuf => protobuf::put_header(self.out, family),
        }
        let body = self.out.end;
        samples(&mut Samples {
            out: self.out,
            format,
            family,
            head: OwnPiece::new(&[family.name]),
            end: last_labels(format, |_| ()),
            more: Buffer::default(),
            native: &mut self.native,
        });
        if self.out.end == body {
            self.out.end = start;
        } else if format == Format::Protobuf {
            protobuf::put_length_before(self.out, start);
        }
        (self.after_family)(self.out);
    }

    /// A family of at most one sample, which has no labels.
    pub(super) fn single<V: Value>(&mut self, family: &Family, value: Option<V>) {
        self.family(family, |samples| {
            let Some(value) = value else { return };
            if samples.format == Format::Protobuf {
                samples.add(Piece::EMPTY, value);
            } else {
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

/// One of those that a histogram counts.
pub(super) struct Exemplar {
    pub(super) seconds: f64,
    pub(super) ended_unix_ns: u64,
    /// Path and query of its profile.
    pub(super) profile: String,
}

impl Exemplar {
    /// The first that is above one number and not above another.
    pub(super) fn within(exemplars: &[Self], above: f64, most: f64) -> Option<&Self> {
        exemplars.iter().find(|exemplar| exemplar.seconds > above && exemplar.seconds <= most)
    }
}

/// The samples of one family.
pub(super) struct Samples<'a> {
    out: &'a mut Buffer,
    format: Format,
    family: &'a Family,
    /// What stands before the labels of a line.
    head: OwnPiece,
    /// What stands between labels and value.
    end: OwnPiece,
    /// Labels that one sample has, before it is known how long it is.
    more: Buffer,
    /// Where native histograms are put together.
    native: &'a mut Native,
}

impl Samples<'_> {
    #[inline]
    pub(super) fn add<V: Value>(&mut self, labels: Piece<'_>, value: V) {
        match self.format {
            Format::Protobuf => protobuf::put_sample(self.out, self.family.kind, [labels], value.number()),
            Format::Text | Format::OpenMetrics => {
                self.out.put_line([self.head.get(), labels, self.end.get()], value);
            }
        }
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
        self.add_ended(labels, variants.end(variant, self.format), value);
    }

    /// Adds a sample whose last labels are these.
    #[inline]
    fn add_ended<V: Value>(&mut self, labels: Piece<'_>, end: Piece<'_>, value: V) {
        match self.format {
            Format::Protobuf => {
                protobuf::put_sample(self.out, self.family.kind, [labels, end], value.number());
            }
            Format::Text | Format::OpenMetrics => self.out.put_line([self.head.get(), labels, end], value),
        }
    }

    /// Adds a sample with more labels, of any values.
    pub(super) fn add_labelled<V: Value>(
        &mut self,
        labels: Piece<'_>,
        more: impl FnOnce(&mut LabelWriter<'_>),
        value: V,
    ) {
        let (format, first) = (self.format, labels.length == 0);
        if format == Format::Protobuf {
            self.more.clear();
            more(&mut LabelWriter { out: &mut self.more, format, first });
            let more = Piece { padded: &self.more.bytes, length: self.more.end };
            protobuf::put_sample(self.out, self.family.kind, [labels, more], value.number());
            return;
        }
        self.out.put_pieces([self.head.get(), labels]);
        more(&mut LabelWriter { out: self.out, format, first });
        self.out.put_line([self.end.get()], value);
    }

    /// Adds histograms, each with what there are examples of, the latest first: none in Prometheus's own text, which has no place
    /// for them.
    pub(super) fn add_histograms<'a>(
        &mut self,
        histograms: impl Iterator<Item = (Piece<'a>, &'a Distribution, &'a [Exemplar])>,
    ) {
        if self.format == Format::Protobuf {
            for (labels, distribution, exemplars) in histograms {
                protobuf::put_histogram(self.out, labels, distribution, exemplars, self.native);
            }
            return;
        }
        let [bucket, sum, count] =
            ["_bucket", "_sum", "_count"].map(|suffix| OwnPiece::new(&[self.family.name, suffix]));
        let infinite = OwnPiece::new(&[",le=\"+Inf\"} "]);
        let (mut bounds, mut ends): (&[f64], Vec<OwnPiece>) = (&[], Vec::new());
        for (labels, distribution, exemplars) in histograms {
            if !std::ptr::eq(bounds, distribution.bounds) {
                bounds = distribution.bounds;
                ends = bounds.iter().map(|bound| bucket_end(*bound, self.format)).collect();
            }
            let mut above = f64::NEG_INFINITY;
            for ((end, value), bound) in ends.iter().zip(&distribution.cumulative).zip(bounds) {
                self.out.put_line([bucket.get(), labels, end.get()], *value);
                text::put_exemplar(self.out, Exemplar::within(exemplars, above, *bound));
                above = *bound;
            }
            self.out.put_line([bucket.get(), labels, infinite.get()], distribution.count);
            text::put_exemplar(self.out, Exemplar::within(exemplars, above, f64::INFINITY));
            self.out.put_line([sum.get(), labels, self.end.get()], distribution.sum);
            self.out.put_line([count.get(), labels, self.end.get()], distribution.count);
        }
    }

    /// Adds quantiles of each window there is.
    pub(super) fn add_quantiles<'a>(
        &mut self,
        summaries: impl Iterator<Item = (Piece<'a>, &'a Distribution)>,
    ) {
        const QUANTILE: Name = Name::new("quantile");
        const WINDOW: Name = Name::new("window");
        const QUANTILES: [&str; 3] = ["0.5", "0.95", "0.99"];
        let mut windows: Vec<(&str, [OwnPiece; 3])> = Vec::new();
        for (labels, distribution) in summaries {
            for window in &distribution.windows {
                let found = windows.iter().position(|(name, _)| *name == window.window);
                let at = found.unwrap_or_else(|| {
                    let end = |quantile| {
                        last_labels(self.format, |labels| {
                            labels.text(&QUANTILE, quantile);
                            labels.text(&WINDOW, window.window);
                        })
                    };
                    windows.push((window.window, QUANTILES.map(end)));
                    windows.len() - 1
                });
                for (end, value) in windows[at].1.iter().zip([window.p50, window.p95, window.p99]) {
                    self.add_ended(labels, end.get(), value);
                }
            }
        }
    }
}
