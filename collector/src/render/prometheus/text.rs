//! How families and samples are written, in both text formats.

use std::io::Write as _;

use super::Format;
use super::family::Family;
use crate::snapshot::Distribution;
use crate::units::NANOS_PER_SECOND;

pub(super) struct Writer<'a> {
    pub(super) out: &'a mut Vec<u8>,
    pub(super) format: Format,
    pub(super) after_family: &'a mut dyn FnMut(&mut Vec<u8>),
}

impl Writer<'_> {
    /// Writes the header and what `samples` adds, or nothing if it adds nothing.
    pub(super) fn family(&mut self, family: &Family, samples: impl FnOnce(&mut Samples<'_>)) {
        let start = self.out.len();
        let name = family.header_name(self.format);
        let kind = family.kind.as_str(self.format);
        for part in ["# HELP ", name, " ", family.help, "\n# TYPE ", name, " ", kind, "\n"] {
            self.out.extend_from_slice(part.as_bytes());
        }
        if self.format == Format::OpenMetrics && !family.unit.is_empty() {
            for part in ["# UNIT ", name, " ", family.unit, "\n"] {
                self.out.extend_from_slice(part.as_bytes());
            }
        }
        let body = self.out.len();
        samples(&mut Samples { out: self.out, name: family.name, format: self.format });
        if self.out.len() == body {
            self.out.truncate(start);
        }
        (self.after_family)(self.out);
    }

    pub(super) fn single<V: Value>(&mut self, family: &Family, value: Option<V>) {
        self.family(family, |samples| samples.add_known(b"", "", value));
    }
}

/// The samples of one family.
pub(super) struct Samples<'a> {
    pub(super) out: &'a mut Vec<u8>,
    name: &'static str,
    pub(super) format: Format,
}

impl Samples<'_> {
    /// Adds a sample; `labels` and `more` are escaped already, and `more` begins with a comma.
    pub(super) fn add<V: Value>(&mut self, labels: &[u8], more: &str, value: V) {
        self.add_suffixed("", labels, more, value);
    }

    pub(super) fn add_known<V: Value>(&mut self, labels: &[u8], more: &str, value: Option<V>) {
        if let Some(value) = value {
            self.add(labels, more, value);
        }
    }

    pub(super) fn add_suffixed<V: Value>(&mut self, suffix: &str, labels: &[u8], more: &str, value: V) {
        self.out.extend_from_slice(self.name.as_bytes());
        self.out.extend_from_slice(suffix.as_bytes());
        if !labels.is_empty() {
            self.out.push(b'{');
            self.out.extend_from_slice(labels);
            self.out.extend_from_slice(more.as_bytes());
            self.out.push(b'}');
        }
        self.out.push(b' ');
        value.write(self.out);
        self.out.push(b'\n');
    }

    pub(super) fn add_buckets(&mut self, labels: &[u8], distribution: &Distribution) {
        let mut more = Vec::new();
        for (bound, count) in distribution.bounds.iter().zip(&distribution.cumulative) {
            more.clear();
            more.extend_from_slice(labels);
            more.extend_from_slice(b",le=\"");
            write_bound(&mut more, *bound, self.format);
            more.push(b'"');
            self.add_suffixed("_bucket", &more, "", *count);
        }
        self.add_suffixed("_bucket", labels, r#",le="+Inf""#, distribution.count);
        self.add_suffixed("_sum", labels, "", distribution.sum);
        self.add_suffixed("_count", labels, "", distribution.count);
    }

    pub(super) fn add_quantiles(&mut self, labels: &[u8], distribution: &Distribution) {
        let mut more = Vec::new();
        for window in &distribution.windows {
            for (quantile, value) in [("0.5", window.p50), ("0.95", window.p95), ("0.99", window.p99)] {
                more.clear();
                more.extend_from_slice(labels);
                more_label(&mut more, "quantile", quantile);
                more_label(&mut more, "window", window.window);
                self.add(&more, "", value);
            }
        }
    }
}

/// Something that can stand behind a series.
pub(super) trait Value {
    fn write(self, out: &mut Vec<u8>);
}

impl Value for u64 {
    fn write(self, out: &mut Vec<u8>) {
        out.extend_from_slice(itoa::Buffer::new().format(self).as_bytes());
    }
}

impl Value for u32 {
    fn write(self, out: &mut Vec<u8>) {
        out.extend_from_slice(itoa::Buffer::new().format(self).as_bytes());
    }
}

impl Value for f64 {
    fn write(self, out: &mut Vec<u8>) {
        let text = if self.is_finite() {
            return out.extend_from_slice(ryu::Buffer::new().format_finite(self).as_bytes());
        } else if self.is_nan() {
            "NaN"
        } else if self > 0.0 {
            "+Inf"
        } else {
            "-Inf"
        };
        out.extend_from_slice(text.as_bytes());
    }
}

/// Nanoseconds, written as seconds with all their digits: no rounding, and cheaper than a float.
#[derive(Clone, Copy)]
pub(super) struct Nanos(pub(super) u64);

impl Value for Nanos {
    fn write(self, out: &mut Vec<u8>) {
        (self.0 / NANOS_PER_SECOND).write(out);
        let mut fraction = self.0 % NANOS_PER_SECOND;
        if fraction == 0 {
            return;
        }
        let mut digits = [b'.'; 10];
        for digit in digits[1..].iter_mut().rev() {
            *digit = b'0' + (fraction % 10) as u8;
            fraction /= 10;
        }
        let end = digits.iter().rposition(|digit| *digit != b'0').map_or(0, |last| last + 1);
        out.extend_from_slice(&digits[..end]);
    }
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

/// Replaces the content of `labels` by one label.
pub(super) fn label<'a>(labels: &'a mut Vec<u8>, name: &str, value: &str) -> &'a [u8] {
    labels.clear();
    write_label(labels, name, value);
    labels
}

/// Appends a comma and a label.
pub(super) fn more_label(out: &mut Vec<u8>, name: &str, value: &str) {
    out.push(b',');
    write_label(out, name, value);
}

/// Appends a label. A value can hold any character: both formats escape three, all others stand for themselves.
pub(super) fn write_label(out: &mut Vec<u8>, name: &str, value: &str) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"=\"");
    let mut rest = value.as_bytes();
    while let Some(at) = rest.iter().position(|byte| matches!(byte, b'\\' | b'"' | b'\n')) {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(match rest[at] {
            b'\\' => br"\\",
            b'"' => br#"\""#,
            _ => br"\n",
        });
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
    out.push(b'"');
}
