//! `/proc/PID/maps`, proc_pid_maps(5): where a process has code.

use std::borrow::Cow;

use super::unsigned;

/// A part of the address space that can be executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region<'a> {
    /// Its first address.
    pub start: u64,
    /// The first address behind it.
    pub end: u64,
    /// Where in the file it begins, bytes.
    pub offset: u64,
    /// What is there.
    pub code: Code<'a>,
}

/// What a region holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code<'a> {
    /// A part of a file.
    File {
        /// Major and minor number of its device. Not always those that stat(2) tells: overlayfs and btrfs have others.
        device: (u32, u32),
        /// Its inode.
        inode: u64,
        /// Path as the process sees it, without the mark of a deleted file. Newlines are still escaped: [`path`].
        name: &'a [u8],
        /// Nothing has that name any more (or it ends as if it had been marked: nobody can tell).
        deleted: bool,
    },
    /// Memory: just-in-time compilers write their code there.
    Anonymous,
    /// What the kernel gives every process.
    Vdso,
}

/// One line. `None` if it is no code that is to be named: not executable, the legacy `[vsyscall]` page, which nobody
/// runs any more, and the trampolines of uprobes.
pub fn region(line: &[u8]) -> Option<Region<'_>> {
    let (range, rest) = word(line)?;
    let (permissions, rest) = word(rest)?;
    if permissions.get(2) != Some(&b'x') {
        return None;
    }
    let (offset, rest) = word(rest)?;
    let (device, rest) = word(rest)?;
    let (inode, name) = word(rest)?;
    let (start, end) = split(range, b'-')?;
    let (start, end) = (hexadecimal(start)?, hexadecimal(end)?);
    let inode = unsigned(inode)?;
    // Padded to a column; a path begins with a slash, so none loses a space.
    let name = name.trim_ascii_start();
    let name = name.strip_suffix(b"\n").unwrap_or(name);
    let code = match name {
        b"[vdso]" => Code::Vdso,
        b"[vsyscall]" | b"[uprobes]" => return None,
        _ if inode == 0 => Code::Anonymous,
        _ => {
            let (major, minor) = split(device, b':')?;
            let device = (u32::try_from(hexadecimal(major)?).ok()?, u32::try_from(hexadecimal(minor)?).ok()?);
            let (name, deleted) = match name.strip_suffix(b" (deleted)") {
                Some(name) => (name, true),
                None => (name, false),
            };
            Code::File { device, inode, name, deleted }
        }
    };
    (start < end).then_some(Region { start, end, offset: hexadecimal(offset)?, code })
}

/// A name with its newlines: the kernel prints them as `\012`. (A name that has these four characters looks the same.)
pub fn path(name: &[u8]) -> Cow<'_, [u8]> {
    const ESCAPED: &[u8] = b"\\012";
    if !name.windows(ESCAPED.len()).any(|window| window == ESCAPED) {
        return Cow::Borrowed(name);
    }
    let mut path = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((first, tail)) = rest.split_first() {
        if let Some(tail) = rest.strip_prefix(ESCAPED) {
            path.push(b'\n');
            rest = tail;
        } else {
            path.push(*first);
            rest = tail;
        }
    }
    Cow::Owned(path)
}

/// The text before a space and that behind it.
fn word(text: &[u8]) -> Option<(&[u8], &[u8])> {
    split(text, b' ').or_else(|| (!text.is_empty()).then_some((text.trim_ascii_end(), &[])))
}

fn split(text: &[u8], separator: u8) -> Option<(&[u8], &[u8])> {
    let at = text.iter().position(|byte| *byte == separator)?;
    Some((&text[..at], &text[at + 1..]))
}

/// Hexadecimal digits only. `None` for anything else and beyond 64 bits.
fn hexadecimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || text.len() > 16 {
        return None;
    }
    text.iter().try_fold(0u64, |value, byte| {
        let digit = char::from(*byte).to_digit(16)?;
        Some(value << 4 | u64::from(digit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(name: &[u8], deleted: bool) -> Option<Region<'_>> {
        let code = Code::File { device: (0xfd, 0x10), inode: 4711, name, deleted };
        Some(Region { start: 0x5555_5000, end: 0x5555_8000, offset: 0x2000, code })
    }

    #[test]
    fn malformed_beside_well_formed() {
        let check = |line: &str, expected: Option<Region<'_>>| {
            assert_eq!(region(line.as_bytes()), expected, "{line:?}");
        };
        check("55555000-55558000 r-xp 00002000 fd:10 4711    /bin/a b\n", file(b"/bin/a b", false));
        check("55555000-55558000 r-xp 00002000 fd:10 4711    /bin/a (deleted)\n", file(b"/bin/a", true));
        check("55555000-55558000 rwxs 00002000 fd:10 4711    /bin/a\\012b", file(b"/bin/a\\012b", false));
        check("55555000-55558000 r--p 00002000 fd:10 4711    /bin/a\n", None);
        check("55558000-55555000 r-xp 00002000 fd:10 4711    /bin/a\n", None);
        let memory = |code| Some(Region { start: 0x1000, end: 0x2000, offset: 0, code });
        check("00001000-00002000 rwxp 00000000 00:00 0 \n", memory(Code::Anonymous));
        check("00001000-00002000 rwxp 00000000 00:00 0", memory(Code::Anonymous));
        check("00001000-00002000 rwxp 00000000 00:00 0   [anon:v8]\n", memory(Code::Anonymous));
        check("00001000-00002000 r-xp 00000000 00:00 0   [vdso]\n", memory(Code::Vdso));
        check("ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0   [vsyscall]\n", None);
        check("00001000-00002000 rwxp 00000000\n", None);
        check("00001000-0000200000000000000 rwxp 00000000 00:00 0\n", None);
        check("", None);
        check("\n", None);
    }

    #[test]
    fn newlines_are_put_back() {
        let check = |name: &str, expected: &str| assert_eq!(path(name.as_bytes()), expected.as_bytes());
        check("/a b", "/a b");
        check("/a\\012b\\012", "/a\nb\n");
        check("/a\\01", "/a\\01");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            let _ = (region(&bytes), path(&bytes));
        }

        #[test]
        fn nearly_right_lines_never_panic(line in "[0-9a-f]{0,17}-?[0-9a-f]{0,17} [rwxps-]{0,5} ?[0-9a-f]{0,9} ?[0-9a-f:]{0,9} [0-9]{0,20} {0,9}[ -~\n]{0,20}") {
            if let Some(region) = region(line.as_bytes()) {
                prop_assert!(region.start < region.end);
            }
        }

        #[test]
        fn what_is_printed_parses_back(start in 0..u64::MAX, length: u32, offset: u64, device: (u32, u32), inode in 1..u64::MAX, name in "/[ -~]{0,20}[a-z]") {
            let end = start.saturating_add(u64::from(length) + 1);
            let line = format!("{start:08x}-{end:08x} r-xp {offset:08x} {:02x}:{:02x} {inode} \t   {name}\n", device.0, device.1);
            let code = Code::File { device, inode, name: name.as_bytes(), deleted: false };
            prop_assert_eq!(region(line.as_bytes()), Some(Region { start, end, offset, code }));
        }
    }
}
