use super::TARGETS;

/// Bytes that one target is given in all.
const BYTES: usize = 16 << 20;
/// Inputs that one target is given at most.
const RUNS: usize = 2000;

/// xorshift64*: the same numbers every time, so that what fails fails again.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }
}

/// Damages it as files and messages are damaged: bits, bytes and numbers change, parts are lost and repeated.
fn damage(bytes: &mut Vec<u8>, numbers: &mut Numbers) {
    for _ in 0..=numbers.below(6) {
        // What leads to the rest is at the begin, and in ELF files at the end as well.
        let at = match (numbers.below(4), bytes.len()) {
            (0, length) => numbers.below(length),
            (1, length) => length - 1 - numbers.below(length.min(4096)).min(length - 1),
            (_, length) => numbers.below(length.min(512)),
        };
        let values =
            [0, 1, 0x7f, 0xff, u64::MAX, u64::MAX >> 1, 1 << 63, 1 << 32, u64::from(u32::MAX), 0x1000];
        match numbers.below(8) {
            0..=2 => bytes[at] ^= 1 << numbers.below(8),
            3 => bytes[at] = numbers.next() as u8,
            4 | 5 => {
                let at = at & !7;
                let value = values[numbers.below(values.len())].to_le_bytes();
                let size = [1, 2, 4, 8][numbers.below(4)].min(bytes.len() - at);
                bytes[at..at + size].copy_from_slice(&value[..size]);
            }
            6 => {
                let from = numbers.below(bytes.len());
                let size = numbers.below(256).min(bytes.len() - from.max(at));
                bytes.copy_within(from..from + size, at);
            }
            _ if numbers.below(4) == 0 => bytes.truncate(at + 1),
            _ => {}
        }
    }
}

/// What `tests/fuzz` does for hours, for a moment and without a fuzzer: nothing panics, and what must be true is.
#[test]
fn damaged_inputs_are_survived() {
    for target in &TARGETS {
        let inputs = (target.inputs)();
        (target.run)(b"");
        for input in inputs.iter().filter(|input| !input.is_empty()) {
            (target.run)(input);
            let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
            for _ in 0..(BYTES / inputs.len() / input.len()).min(RUNS / inputs.len()) {
                let mut bytes = input.clone();
                damage(&mut bytes, &mut numbers);
                (target.run)(&bytes);
            }
        }
    }
}
