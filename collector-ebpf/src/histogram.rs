//! The one bucket layout of every histogram, in the kernel and outside: log-linear, as HdrHistogram.
//!
//! Values below 64 have a bucket each; above, every power of two is cut into 64 equal buckets, so a bucket is at
//! most 1/64 (1.6 %) as wide as its lower bound. A value needs one count-leading-zeros, one shift and one addition
//! to find its bucket: nothing that BPF cannot do.

/// Buckets per power of two.
pub const SUB_BUCKETS: u64 = 64;
const SUB_BUCKET_BITS: u32 = 6;

/// Values have at most this many bits (2^42 ns is 73 minutes; 2^42 bytes is 4 TiB); larger ones are clamped.
pub const VALUE_BITS: u32 = 42;

/// The largest value that has a bucket of its own right.
pub const MAX_VALUE: u64 = (1 << VALUE_BITS) - 1;

/// Number of buckets.
pub const BUCKETS: usize = ((VALUE_BITS - SUB_BUCKET_BITS + 1) as usize) * SUB_BUCKETS as usize;

/// Bucket of a value; values above [`MAX_VALUE`] go to the last one.
#[inline(always)]
pub const fn index(value: u64) -> usize {
    let value = if value > MAX_VALUE { MAX_VALUE } else { value };
    if value < SUB_BUCKETS {
        return value as usize;
    }
    let shift = 63 - value.leading_zeros() - SUB_BUCKET_BITS;
    // `value >> shift` is in 64..128.
    (((shift as u64) << SUB_BUCKET_BITS) + (value >> shift)) as usize
}

/// Lowest and highest value of a bucket, both inclusive.
pub const fn bounds(index: usize) -> (u64, u64) {
    let index = index as u64;
    if index < SUB_BUCKETS {
        return (index, index);
    }
    let shift = (index >> SUB_BUCKET_BITS) - 1;
    let lowest = (index - (shift << SUB_BUCKET_BITS)) << shift;
    (lowest, lowest + (1 << shift) - 1)
}

/// The value that stands for a bucket: its middle.
pub const fn middle(index: usize) -> u64 {
    let (low, high) = bounds(index);
    low + (high - low) / 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn buckets_meet_without_gap_or_overlap() {
        let mut next = 0;
        for i in 0..BUCKETS {
            let (low, high) = bounds(i);
            assert_eq!(low, next, "bucket {i}");
            assert_eq!(index(low), i);
            assert_eq!(index(high), i);
            next = high + 1;
        }
        assert_eq!(next, MAX_VALUE + 1);
        assert_eq!(index(u64::MAX), BUCKETS - 1);
    }

    proptest! {
        #[test]
        fn a_value_is_within_1_6_percent_of_its_bucket(value in 0..=MAX_VALUE) {
            let (low, high) = bounds(index(value));
            prop_assert!(low <= value && value <= high);
            prop_assert!((high - low) as f64 <= low as f64 / 64.0);
        }

        #[test]
        fn agrees_with_the_hdrhistogram_crate(value in 1..=MAX_VALUE) {
            // Two significant digits give that crate 128 buckets per power of two, twice as many as ours: a pair of
            // its buckets is one of ours.
            let hdr = hdrhistogram::Histogram::<u64>::new_with_bounds(1, MAX_VALUE, 2);
            let hdr = hdr.map_err(|e| TestCaseError::fail(e.to_string()))?;
            let (low, high) = bounds(index(value));
            prop_assert!(low <= hdr.lowest_equivalent(value));
            prop_assert!(high >= hdr.highest_equivalent(value));
        }
    }
}
