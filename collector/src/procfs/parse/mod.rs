//! One pure parser per `/proc` file, and one for those of control groups: bytes in, struct out. No allocation
//! and no IO; any bytes are allowed.

use thiserror::Error;

pub mod cgroup;
pub mod cgroup2;
pub mod io;
pub mod maps;
pub mod schedstat;
pub mod stat;
pub mod statm;
pub mod status;

/// The text is not what the kernel prints. Says which file and which field, named as in the man page.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ParseError {
    /// The text ends, or the line does not occur, before the field.
    #[error("{file}: {field} is missing")]
    Missing {
        /// Name of the file in `/proc/PID`.
        file: &'static str,
        /// Name of the field.
        field: &'static str,
    },
    /// The field is there and is not a number of its range.
    #[error("{file}: {field} is not a number of its range")]
    NotANumber {
        /// Name of the file in `/proc/PID`.
        file: &'static str,
        /// Name of the field.
        field: &'static str,
    },
}

/// Decimal digits only, nothing around them. `None` for anything else and beyond 64 bits.
fn unsigned(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |value, byte| {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        value.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

/// The same with an optional minus.
fn signed(text: &[u8]) -> Option<i64> {
    match text.strip_prefix(b"-") {
        Some(digits) => 0i64.checked_sub_unsigned(unsigned(digits)?),
        None => i64::try_from(unsigned(text)?).ok(),
    }
}

/// Words of one line, separated by single spaces as the kernel prints them; the line ends at its newline.
struct Words<'a> {
    file: &'static str,
    rest: &'a [u8],
}

impl<'a> Words<'a> {
    fn new(file: &'static str, text: &'a [u8]) -> Self {
        let end = text.iter().position(|b| *b == b'\n').unwrap_or(text.len());
        Self { file, rest: &text[..end] }
    }

    fn word(&mut self, field: &'static str) -> Result<&'a [u8], ParseError> {
        if self.rest.is_empty() {
            return Err(ParseError::Missing { file: self.file, field });
        }
        match self.rest.iter().position(|b| *b == b' ') {
            Some(end) => {
                let word = &self.rest[..end];
                self.rest = &self.rest[end + 1..];
                Ok(word)
            }
            None => Ok(std::mem::take(&mut self.rest)),
        }
    }

    fn skip(&mut self, count: usize, field: &'static str) -> Result<(), ParseError> {
        for _ in 0..count {
            self.word(field)?;
        }
        Ok(())
    }

    fn unsigned(&mut self, field: &'static str) -> Result<u64, ParseError> {
        let word = self.word(field)?;
        unsigned(word).ok_or(ParseError::NotANumber { file: self.file, field })
    }

    fn u32(&mut self, field: &'static str) -> Result<u32, ParseError> {
        let value = self.unsigned(field)?;
        u32::try_from(value).map_err(|_| ParseError::NotANumber { file: self.file, field })
    }

    fn signed(&mut self, field: &'static str) -> Result<i64, ParseError> {
        let word = self.word(field)?;
        signed(word).ok_or(ParseError::NotANumber { file: self.file, field })
    }
}

/// What follows `name` in the first line that begins with it, without blanks around.
fn line<'a>(text: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    text.split(|b| *b == b'\n').find_map(|line| line.strip_prefix(name)).map(<[u8]>::trim_ascii)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_digits_and_nothing_else() {
        assert_eq!(unsigned(b"0"), Some(0));
        assert_eq!(unsigned(b"18446744073709551615"), Some(u64::MAX));
        for wrong in ["", " 1", "1 ", "+1", "-1", "1a", "18446744073709551616"] {
            assert_eq!(unsigned(wrong.as_bytes()), None, "{wrong:?}");
        }
        assert_eq!(signed(b"-9223372036854775808"), Some(i64::MIN));
        assert_eq!(signed(b"9223372036854775808"), None);
        assert_eq!(signed(b"--1"), None);
    }
}
