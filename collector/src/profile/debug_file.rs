//! Finds the file that has the debug information of another, as debuggers do: by build id in the directory for it, or by
//! the name that the file says, beside it, in `.debug` beside it and in that directory.
//!
//! In the root of a process that has the file mapped, and in ours. All names come from others: nothing leads out of a
//! root, nothing but a regular file is opened, and what is found must have the build id, or the checksum where there is
//! none.

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use super::elf::Elf;
use super::image::{debug_link_of, supplement_of};
use super::modules::hexadecimal;
use crate::files;

/// Of a file whose checksum is looked at. Those without build id are small and old.
const MAX_CHECKED: u64 = 256 << 20;

/// A file of debug information.
pub(super) struct Found<'a> {
    pub(super) file: File,
    path: PathBuf,
    root: &'a OwnedFd,
}

/// Looks for it in each root.
pub(super) fn find<'a>(
    file: &File,
    build_id: &str,
    path: &Path,
    directory: &Path,
    roots: &'a [OwnedFd],
) -> Option<Found<'a>> {
    let link = debug_link_of(file);
    let candidates = candidates(build_id, link.as_ref().map(|(name, _)| &**name), path, directory);
    let all = candidates.iter().flat_map(|path| roots.iter().map(move |root| (path, root)));
    all.filter_map(|(path, root)| {
        let file = files::open_below(root, path).ok()?;
        let found = Elf::read(&file)?;
        let same = if build_id.is_empty() {
            link.as_ref().is_some_and(|(_, wanted)| checksum(&file).is_ok_and(|sum| sum == *wanted))
        } else {
            hexadecimal(&found.build_id) == build_id
        };
        let found = Found { file, path: path.clone(), root };
        (same && trusted(&found.file)).then_some(found)
    })
    .next()
}

impl Found<'_> {
    /// The file that has what several files of debug information have in common, with its build id.
    pub(super) fn supplement(&self, directory: &Path) -> Option<(File, Vec<u8>)> {
        let (name, build_id) = supplement_of(&self.file)?;
        let beside = self.path.parent()?.join(std::ffi::OsStr::from_bytes(&name));
        let by_id = by_build_id(&hexadecimal(&build_id), directory);
        let file = [Some(beside), by_id].into_iter().flatten().find_map(|path| {
            let file = files::open_below(self.root, &path).ok()?;
            (Elf::read(&file)?.build_id == build_id && trusted(&file)).then_some(file)
        })?;
        Some((file, build_id))
    }
}

/// Nobody but root, or we, could have written it. What reads debug information trusts it more than it should: a nesting
/// without end exhausts the stack, a table of lines the memory.
pub(super) fn trusted(file: &File) -> bool {
    let own = nix::unistd::geteuid().as_raw();
    let by_group_or_others = 0o022;
    let trusted = |m: &Metadata| (m.uid() == 0 || m.uid() == own) && m.mode() & by_group_or_others == 0;
    file.metadata().is_ok_and(|metadata| trusted(&metadata))
}

fn by_build_id(build_id: &str, directory: &Path) -> Option<PathBuf> {
    let (first, rest) = build_id.split_at_checked(2).filter(|(_, rest)| !rest.is_empty())?;
    Some(directory.join(".build-id").join(first).join(format!("{rest}.debug")))
}

fn candidates(build_id: &str, link: Option<&[u8]>, path: &Path, directory: &Path) -> Vec<PathBuf> {
    let mut candidates: Vec<PathBuf> = by_build_id(build_id, directory).into_iter().collect();
    let name = link.filter(|name| !name.is_empty() && !name.contains(&b'/') && *name != b"..");
    if let (Some(name), Some(beside)) = (name, path.parent()) {
        let name = std::ffi::OsStr::from_bytes(name);
        candidates.push(beside.join(name));
        candidates.push(beside.join(".debug").join(name));
        candidates.push(directory.join(beside.strip_prefix("/").unwrap_or(beside)).join(name));
        // The file itself is none, though it says its own name.
        candidates.retain(|candidate| candidate != path);
    }
    candidates
}

fn checksum(file: &File) -> io::Result<u32> {
    let mut sum = flate2::Crc::new();
    let mut buffer = vec![0; 64 << 10];
    let mut at = 0;
    loop {
        let read = file.read_at(&mut buffer, at)?;
        if read == 0 {
            return Ok(sum.sum());
        }
        sum.update(&buffer[..read]);
        at += read as u64;
        if at > MAX_CHECKED {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_it_may_be() {
        let check = |build_id: &str, link: Option<&str>, expected: &[&str]| {
            let found = candidates(
                build_id,
                link.map(str::as_bytes),
                Path::new("/usr/bin/a"),
                Path::new("/usr/lib/debug"),
            );
            assert_eq!(found, expected.iter().map(PathBuf::from).collect::<Vec<_>>(), "{build_id} {link:?}");
        };
        check("abcdef", None, &["/usr/lib/debug/.build-id/ab/cdef.debug"]);
        let beside = ["/usr/bin/a.debug", "/usr/bin/.debug/a.debug", "/usr/lib/debug/usr/bin/a.debug"];
        check("", Some("a.debug"), &beside);
        check("", Some("a"), &["/usr/bin/.debug/a", "/usr/lib/debug/usr/bin/a"]);
        check("ab", Some("/dev/watchdog"), &[]);
        check("", Some("../x"), &[]);
        check("", Some(".."), &[]);
        check("", Some(""), &[]);
    }
}
