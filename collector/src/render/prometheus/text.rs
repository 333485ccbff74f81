//! What stands in the lines of both text formats: escaped labels, numbers, bounds.

use std::io::Write as _;

use super::Format;
use super::buffer::{Buffer, NUMBER, OwnPiece};
use super::family::Family;
use super::writer::Exemplar;
use crate::units::NANOS_PER_SECOND;

/// Writes what stands before the samples of a family.
pub(super) fn put_header(out: &mut Buffer, family: &Family, format: Format) {
    let name = family.header_name(format);
    let kind = family.kind.as_str(format);
    for part in ["# HELP ", name, " ", family.help, "\n# TYPE ", name, " ", kind, "\n"] {
        out.put(part.as_bytes());
    }
    if format == Format::OpenMetrics && !family.unit.is_empty() {
        for part in ["# UNIT ", name, " ", family.unit, "\n"] {
            out.put(part.as_bytes());
        }
    }
}

/// A label's value can hold any character: both formats escape three, all others stand for themselves.
#[inline]
pub(super) fn put_escaped(out: &mut Buffer, value: &str) {
    let mut rest = value.as_bytes();
    while let Some(at) = rest.iter().position(|byte| matches!(byte, b'\\' | b'"' | b'\n')) {
        out.put(&rest[..at]);
        out.put(match rest[at] {
            b'\\' => br"\\",
            b'"' => br#"\""#,
            _ => br"\n",
        });
        rest = &rest[at + 1..];
    }
    out.put(rest);
}

/// Something that can be the value of a sample.
pub(super) trait Value {
    /// Writes it to the beginning of `place` and returns its length.
    fn write(self, place: &mut [u8; NUMBER]) -> usize;

    /// The same as a number.
    fn number(self) -> f64;
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

    #[inline]
    fn number(self) -> f64 {
        self as f64
    }
}

impl Value for u32 {
    #[inline]
    fn write(self, place: &mut [u8; NUMBER]) -> usize {
        u64::from(self).write(place)
    }

    #[inline]
    fn number(self) -> f64 {
        self.into()
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

    #[inline]
    fn number(self) -> f64 {
        1.0
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

    #[inline]
    fn number(self) -> f64 {
        self
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

    #[inline]
    fn number(self) -> f64 {
        self.0 as f64 / NANOS_PER_SECOND as f64
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

    #[inline]
    fn number(self) -> f64 {
        self.0 as f64 / NANOS_PER_SECOND as f64
    }
}

/// Adds an example to the line that was written last, if there is one.
pub(super) fn put_exemplar(out: &mut Buffer, exemplar: Option<&Exemplar>) {
    let Some(Exemplar { seconds, ended_unix_ns, profile }) = exemplar else { return };
    out.end -= b"\n".len();
    out.put(b" # {profile=\"");
    put_escaped(out, profile);
    out.put(b"\"} ");
    out.put_line([], *seconds);
    out.end -= b"\n".len();
    out.put_byte(b' ');
    out.put_line([], Nanos(*ended_unix_ns));
}

/// What stands between the labels of a bucket and its count.
pub(super) fn bucket_end(bound: f64, format: Format) -> OwnPiece {
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
