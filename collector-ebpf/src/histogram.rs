//! The one bucket layout of every histogram, in the kernel and outside: log-linear, as HdrHistogram.
//!
//! Values below 64 have a bucket each; above, every power of two is cut into 64 equal buckets, so a bucket is at
//! most 1/64 (1.6 %) as wide as its lower bound. A value needs one logarithm, one shift and one addition to find its
//! bucket: nothing that BPF cannot do.

/// Buckets per power of two.
pub const SUB_BUCKETS: u64 = 64;
const SUB_BUCKET_BITS: u32 = 6;

/// Values have at most this many bits (2^42 ns is 73 minutes; 2^42 bytes is 4 TiB); larger ones are clamped.
pub const VALUE_BITS: u32 = 42;

/// The largest value that has a bucket of its own right.
pub const MAX_VALUE: u64 = (1 << VALUE_BITS) - 1;

/// Number of buckets.
pub const BUCKETS: usize = ((VALUE_BITS - SUB_BUCKET_BITS + 1) as usize) * SUB_BUCKETS as usize;

/// Rounded-down logarithms to base 2; 0 for 0.
static LOGARITHMS: [u8; 256] = {
    let mut table = [0; 256];
    let mut i = 1;
    while i < 256 {
        table[i] = i.ilog2() as u8;
        i += 1;
    }
    table
};

/// Bucket of a value; values above [`MAX_VALUE`] go to the last one.
#[inline(always)]
pub const fn index(value: u64) -> usize {
    index_by(value, 0)
}

/// The same where `zero` is a zero that the compiler does not know.
///
/// BPF cannot count leading zeros: the compiler makes a chain of forty instructions of it, each of which waits for the
/// one before. So a table of a byte's logarithms is asked. Which byte that is, is calculated and not decided: the verifier
/// goes through all that follows once for each way to decide it. With a zero that it knows the compiler would decide.
#[inline(always)]
pub const fn index_by(value: u64, zero: u64) -> usize {
    // What is too large has all bits set, and what has too many loses them.
    let too_large = zero.wrapping_sub(is_not_zero(value >> VALUE_BITS, zero));
    let value = (value | too_large) & MAX_VALUE;
    // The bits that the table is asked about begin here, and none is above them.
    let low = is_not_zero(value >> 14, zero)
        + is_not_zero(value >> 22, zero)
        + is_not_zero(value >> 30, zero)
        + is_not_zero(value >> 38, zero);
    let low = low as u32 * 8;
    let shift = low + LOGARITHMS[(value >> (SUB_BUCKET_BITS + low)) as u8 as usize] as u32;
    // `value >> shift` is in 64..128, or the value itself where that is smaller.
    (((shift as u64) << SUB_BUCKET_BITS) + (value >> shift)) as usize
}

/// 1 or 0, of a value without its highest bit.
#[inline(always)]
const fn is_not_zero(value: u64, zero: u64) -> u64 {
    zero.wrapping_sub(value) >> 63
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
