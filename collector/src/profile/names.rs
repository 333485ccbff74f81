//! Names of functions for humans, never longer than they may be: the names are another's, and a short one can say a long
//! one, as it repeats parts of itself.

use std::fmt::{self, Write};

use cpp_demangle::DemangleOptions;

/// Longer ones are not demangled.
const MAX_MANGLED: usize = 4096;

/// The name as it was written, in Rust (without its hash) and C++; any other as it is.
pub(super) fn demangle(name: &str, limit: usize) -> String {
    if name.len() <= MAX_MANGLED {
        if let Ok(rust) = rustc_demangle::try_demangle(name) {
            return Bounded::write(limit, |out| write!(out, "{rust:#}"));
        }
        if name.starts_with("_Z")
            && let Ok(cpp) = cpp_demangle::Symbol::new(name)
        {
            let demangled =
                Bounded::write(limit, |out| cpp.structured_demangle(out, &DemangleOptions::default()));
            if !demangled.is_empty() {
                return demangled;
            }
        }
    }
    cut(name, limit)
}

/// At most so many bytes of it.
pub(super) fn cut(text: &str, limit: usize) -> String {
    Bounded::write(limit, |out| out.write_str(text))
}

/// Text up to a limit of bytes. What is more is refused, which ends the writing, and marked.
struct Bounded {
    text: String,
    limit: usize,
}

impl Bounded {
    fn write(limit: usize, write: impl FnOnce(&mut Self) -> fmt::Result) -> String {
        let mut out = Self { text: String::new(), limit };
        // An error is the limit, or a name that cannot be printed: then there is as much as there is.
        let _ = write(&mut out);
        out.text
    }
}

impl Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if text.len() <= self.limit - self.text.len().min(self.limit) {
            self.text.push_str(text);
            return Ok(());
        }
        let mark = '…';
        let room = self.limit.saturating_sub(mark.len_utf8());
        self.text.truncate(self.text.floor_char_boundary(room));
        let room = room - self.text.len();
        self.text.push_str(&text[..text.floor_char_boundary(room)]);
        self.text.push(mark);
        Err(fmt::Error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_as_they_were_written() {
        let check = |name: &str, expected: &str| assert_eq!(demangle(name, 40), expected);
        check("main", "main");
        check("_ZN4core3fmt5write17h0123456789abcdefE", "core::fmt::write");
        check("_RNvC6_123foo3bar", "123foo::bar");
        check("_ZN3foo3barEv", "foo::bar()");
        check("_Z", "_Z");
        check("_ZN3foo", "_ZN3foo");
        check("", "");
        // 37 bytes and the mark, which has three.
        check(&"a".repeat(41), &format!("{}…", "a".repeat(37)));
        check(&"a".repeat(40), &"a".repeat(40));
        check(&"ä".repeat(21), &format!("{}…", "ä".repeat(18)));
        check("_ZN4abcd40aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaEv", &format!("abcd::{}…", "a".repeat(31)));
    }

    #[test]
    fn a_name_that_repeats_itself_is_cut() {
        // Each part is a pair of the one before: 2^40 letters.
        let mut name = String::from("_Z1fIi");
        name.push('E');
        let mut pairs = String::from("_Z1fN1aE");
        for part in 0..40 {
            let last = if part == 0 { "S_".to_owned() } else { format!("S{}_", base36(part - 1)) };
            pairs.push_str(&format!("St4pairI{last}{last}E"));
        }
        assert!(demangle(&pairs, 100).len() <= 100);
        assert!(demangle(&name, 100).len() <= 100);
    }

    fn base36(number: u32) -> String {
        let digit = |n: u32| char::from_digit(n, 36).unwrap().to_ascii_uppercase();
        if number < 36 {
            digit(number).to_string()
        } else {
            format!("{}{}", digit(number / 36), digit(number % 36))
        }
    }

    proptest! {
        #[test]
        fn no_name_panics_or_is_too_long(name in "(_Z|_R|)[NIESTLKP0-9_a-zäA-Z]{0,60}", limit in 3..80usize) {
            prop_assert!(demangle(&name, limit).len() <= limit);
            prop_assert!(cut(&name, limit).len() <= limit);
        }
    }
}
