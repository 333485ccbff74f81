//! Messages of `io.prometheus.client` (metrics.proto of prometheus/client_model), each family preceded by its length.
//!
//! Written by hand as the lines are, and for their reason: the labels of a worker are put together once and copied into
//! each of its samples, where a library for messages wants every label of every sample as a value of its own. The little
//! of protobuf that this takes is below; the tests read it back with such a library.
//!
//! Histograms are both at once, classic buckets and native ones, and whoever asks takes what it wants. Prometheus adds
//! sum and count to every summary it is sent; ours have none, so quantiles come as gauges, which makes the same series
//! as in the text formats.

use super::buffer::{BLOCK, Buffer, Piece};
use super::family::{Family, Kind};
use super::native::{Native, SCHEMA};
use super::writer::Exemplar;
use crate::snapshot::Distribution;
use crate::units::NANOS_PER_SECOND;

// Keys of fields: number, and how the value is written.
const VARINT: u8 = 0;
const FIXED: u8 = 1;
const BYTES: u8 = 2;

const fn key(field: u8, wire: u8) -> u8 {
    assert!(field < 16, "it fits into one byte");
    field << 3 | wire
}

const FAMILY_NAME: u8 = key(1, BYTES);
const FAMILY_HELP: u8 = key(2, BYTES);
const FAMILY_TYPE: u8 = key(3, VARINT);
const FAMILY_METRIC: u8 = key(4, BYTES);
const FAMILY_UNIT: u8 = key(5, BYTES);
const METRIC_LABEL: u8 = key(1, BYTES);
const METRIC_GAUGE: u8 = key(2, BYTES);
const METRIC_COUNTER: u8 = key(3, BYTES);
const METRIC_HISTOGRAM: u8 = key(7, BYTES);
const LABEL_NAME: u8 = key(1, BYTES);
const LABEL_VALUE: u8 = key(2, BYTES);
/// In a gauge and in a counter.
const POINT_VALUE: u8 = key(1, FIXED);
const HISTOGRAM_COUNT: u8 = key(1, VARINT);
const HISTOGRAM_SUM: u8 = key(2, FIXED);
const HISTOGRAM_BUCKET: u8 = key(3, BYTES);
const HISTOGRAM_SCHEMA: u8 = key(5, VARINT);
const HISTOGRAM_ZERO_THRESHOLD: u8 = key(6, FIXED);
const HISTOGRAM_ZERO_COUNT: u8 = key(7, VARINT);
const HISTOGRAM_POSITIVE_SPAN: u8 = key(12, BYTES);
const HISTOGRAM_POSITIVE_DELTA: u8 = key(13, BYTES);
const BUCKET_CUMULATIVE_COUNT: u8 = key(1, VARINT);
const BUCKET_UPPER_BOUND: u8 = key(2, FIXED);
const BUCKET_EXEMPLAR: u8 = key(3, BYTES);
const EXEMPLAR_LABEL: u8 = key(1, BYTES);
const EXEMPLAR_VALUE: u8 = key(2, FIXED);
const EXEMPLAR_TIMESTAMP: u8 = key(3, BYTES);
const TIMESTAMP_SECONDS: u8 = key(1, VARINT);
const TIMESTAMP_NANOS: u8 = key(2, VARINT);
const SPAN_OFFSET: u8 = key(1, VARINT);
const SPAN_LENGTH: u8 = key(2, VARINT);

/// Length of a gauge or counter with its key: that, its own length, and a value with a key.
const POINT: usize = 11;

/// No varint is longer.
const VARINT_LENGTH: usize = 10;

/// Writes the fields of a family but for its samples.
pub(super) fn put_header(out: &mut Buffer, family: &Family) {
    const COUNTER: u64 = 0;
    const GAUGE: u64 = 1;
    const HISTOGRAM: u64 = 4;
    put_text(out, FAMILY_NAME, family.name);
    put_text(out, FAMILY_HELP, family.help);
    out.put_byte(FAMILY_TYPE);
    put_varint(
        out,
        match family.kind {
            Kind::Counter => COUNTER,
            Kind::Gauge | Kind::Summary | Kind::Info => GAUGE,
            Kind::Histogram => HISTOGRAM,
        },
    );
    if !family.unit.is_empty() {
        put_text(out, FAMILY_UNIT, family.unit);
    }
}

/// Writes a length before what was written from `start` on.
pub(super) fn put_length_before(out: &mut Buffer, start: usize) {
    let length = out.end - start;
    let width = varint_length(length as u64);
    out.reserve(width);
    out.bytes.copy_within(start..out.end, start + width);
    out.end = start;
    put_varint(out, length as u64);
    out.end += length;
}

/// Writes a label.
pub(super) fn put_label(out: &mut Buffer, name: &str, value: &[u8]) {
    nested(out, METRIC_LABEL, |out| {
        put_text(out, LABEL_NAME, name);
        put_bytes(out, LABEL_VALUE, value);
    });
}

/// Writes a sample that is one number. Apart, or every place that writes a line would be as long again.
#[cold]
#[inline(never)]
pub(super) fn put_sample<const N: usize>(out: &mut Buffer, kind: Kind, labels: [Piece<'_>; N], value: f64) {
    let length = labels.iter().map(|piece| piece.length).sum::<usize>() + POINT;
    out.reserve(1 + VARINT_LENGTH);
    out.bytes[out.end] = FAMILY_METRIC;
    out.end += 1;
    put_varint(out, length as u64);
    out.put_pieces(labels);
    let mut point = [0; POINT];
    point[0] = if kind == Kind::Counter { METRIC_COUNTER } else { METRIC_GAUGE };
    point[1] = POINT as u8 - 2;
    point[2] = POINT_VALUE;
    point[3..].copy_from_slice(&value.to_le_bytes());
    out.put(&point);
}

/// Writes a histogram; `native` is where its buckets are put together.
pub(super) fn put_histogram(
    out: &mut Buffer,
    labels: Piece<'_>,
    distribution: &Distribution,
    exemplars: &[Exemplar],
    native: &mut Native,
) {
    native.fill(distribution);
    nested(out, FAMILY_METRIC, |out| {
        out.put_pieces([labels]);
        nested(out, METRIC_HISTOGRAM, |out| {
            put_count(out, HISTOGRAM_COUNT, distribution.count);
            put_double(out, HISTOGRAM_SUM, distribution.sum);
            let mut above = f64::NEG_INFINITY;
            for (bound, count) in distribution.bounds.iter().zip(&distribution.cumulative) {
                nested(out, HISTOGRAM_BUCKET, |out| {
                    put_count(out, BUCKET_CUMULATIVE_COUNT, *count);
                    put_double(out, BUCKET_UPPER_BOUND, *bound);
                    put_exemplar(out, Exemplar::within(exemplars, above, *bound));
                });
                above = *bound;
            }
            if let Some(exemplar) = Exemplar::within(exemplars, above, f64::INFINITY) {
                // Readers make this bucket of the count; an example needs one.
                nested(out, HISTOGRAM_BUCKET, |out| {
                    put_count(out, BUCKET_CUMULATIVE_COUNT, distribution.count);
                    put_double(out, BUCKET_UPPER_BOUND, f64::INFINITY);
                    put_exemplar(out, Some(exemplar));
                });
            }
            put_count(out, HISTOGRAM_SCHEMA, zigzag(SCHEMA.into()));
            put_double(out, HISTOGRAM_ZERO_THRESHOLD, native.zero_threshold);
            put_count(out, HISTOGRAM_ZERO_COUNT, native.zero_count);
            for (offset, length) in &native.spans {
                nested(out, HISTOGRAM_POSITIVE_SPAN, |out| {
                    put_count(out, SPAN_OFFSET, zigzag((*offset).into()));
                    put_count(out, SPAN_LENGTH, (*length).into());
                });
            }
            if !native.deltas.is_empty() {
                nested(out, HISTOGRAM_POSITIVE_DELTA, |out| {
                    native.deltas.iter().for_each(|delta| put_varint(out, zigzag(*delta)));
                });
            }
        });
    });
}

fn put_exemplar(out: &mut Buffer, exemplar: Option<&Exemplar>) {
    let Some(Exemplar { seconds, ended_unix_ns, profile }) = exemplar else { return };
    nested(out, BUCKET_EXEMPLAR, |out| {
        nested(out, EXEMPLAR_LABEL, |out| {
            put_text(out, LABEL_NAME, "profile");
            put_text(out, LABEL_VALUE, profile);
        });
        put_double(out, EXEMPLAR_VALUE, *seconds);
        nested(out, EXEMPLAR_TIMESTAMP, |out| {
            put_count(out, TIMESTAMP_SECONDS, ended_unix_ns / NANOS_PER_SECOND);
            put_count(out, TIMESTAMP_NANOS, ended_unix_ns % NANOS_PER_SECOND);
        });
    });
}

/// Writes a field whose length is known when it has been written.
fn nested(out: &mut Buffer, key: u8, write: impl FnOnce(&mut Buffer)) {
    out.put_byte(key);
    let start = out.end;
    // Most are short.
    out.put_byte(0);
    write(out);
    let length = out.end - start - 1;
    if length < 0x80 {
        out.bytes[start] = length as u8;
    } else {
        out.bytes.copy_within(start + 1..out.end, start);
        out.end -= 1;
        put_length_before(out, start);
    }
}

fn put_text(out: &mut Buffer, key: u8, text: &str) {
    put_bytes(out, key, text.as_bytes());
}

fn put_bytes(out: &mut Buffer, key: u8, bytes: &[u8]) {
    put_count(out, key, bytes.len() as u64);
    out.put(bytes);
}

fn put_count(out: &mut Buffer, key: u8, count: u64) {
    out.put_byte(key);
    put_varint(out, count);
}

fn put_double(out: &mut Buffer, key: u8, value: f64) {
    out.put_byte(key);
    out.put(&value.to_le_bytes());
}

/// Seven bits a byte, the lowest first; the highest bit says that there are more.
#[inline]
fn put_varint(out: &mut Buffer, mut value: u64) {
    out.reserve(VARINT_LENGTH.max(BLOCK));
    while value >= 0x80 {
        out.bytes[out.end] = value as u8 | 0x80;
        out.end += 1;
        value >>= 7;
    }
    out.bytes[out.end] = value as u8;
    out.end += 1;
}

fn varint_length(value: u64) -> usize {
    (value | 1).ilog2() as usize / 7 + 1
}

/// Signed numbers so that small ones are short: 0, -1, 1, -2 …
fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}
