//! What code processes have mapped: files and the vdso, each opened once.
//!
//! A file that is mapped is opened while a process has it and stays open, so that it can be read when the process has
//! ended and when the file was deleted or replaced, as deployments do. For this it is taken from `/proc/PID/map_files`,
//! which leads to the very file, whatever its path leads to now and in whichever mount namespace it is. That needs
//! CAP_CHECKPOINT_RESTORE (before Linux 5.9 CAP_SYS_ADMIN); without, the path is tried in the root of the process, and
//! what is there must have the inode that is mapped. Only the inode: overlayfs and btrfs tell another device in `maps`
//! than in stat(2).
//!
//! An open file keeps its file system mounted, also one that a container wants to unmount: a registry is to live as long
//! as profiles are taken, and [`Modules::forget_unused`] to be called between them.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::elf::{Elf, Segment};
use crate::files;
use crate::procfs::parse::maps::{self, Code};
use crate::procfs::root::{AddressSpace, Buffer, ProcessDirectory, ReadError, Root};
use crate::units::{ByProcess, Pid, ProcessKey};

/// Executable mappings kept of a process. A Java machine with all its code has some thousand.
const MAX_MAPPED: usize = 10_000;
/// Bytes read of `maps`: as many lines as there can be mappings by default (`vm.max_map_count`), most of them short.
const MAX_MAPS: u64 = 32 << 20;
/// Bytes of a path that are kept.
const MAX_PATH: usize = 1024;
/// Segments of one machine's files are mapped in pages of its own size; none is larger.
const PAGE: u64 = 64 << 10;
/// Bytes of a vdso.
const MAX_VDSO: u64 = 64 << 10;

/// How much is kept.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Modules, each with an open file. Those that were not used for longest go.
    pub modules: usize,
    /// Processes whose mappings are known.
    pub processes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { modules: 512, processes: 4096 }
    }
}

/// A module, for as long as the registry lives: none gets the number of one that went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModuleId(u64);

/// A file with code that processes have mapped, or the vdso.
#[derive(Debug)]
pub struct Module {
    /// Its identity.
    pub id: ModuleId,
    /// Path as a process saw it that had it mapped, `[vdso]` for that. What is no UTF-8 is replaced, and a very long one
    /// cut.
    pub path: Arc<str>,
    /// Nothing had this path any more when it was first met.
    pub deleted: bool,
    /// Hexadecimal; empty if there is none or it could not be read.
    pub build_id: String,
    /// Empty if it could not be read.
    pub segments: Vec<Segment>,
    file: Option<File>,
    /// It was met in the mount namespace that we are in, or the host's first process: not in a container, whose files are
    /// whoever's who made its image, also those of root.
    pub(super) is_of_host: bool,
    /// Of a process that has it mapped, the last one that was looked at; 0 for none. A hint where its debug information
    /// may be: what is found is checked by its build id.
    seen_in: AtomicU32,
}

impl Module {
    /// The file, open to be read; `None` if it could not be opened.
    pub fn file(&self) -> Option<&File> {
        self.file.as_ref()
    }

    /// The virtual address in the ELF file of what stands at an offset of it.
    pub fn address(&self, file_offset: u64) -> Option<u64> {
        self.segments.iter().find_map(|segment| {
            let within = file_offset.checked_sub(segment.file_offset)?;
            (within < segment.size).then(|| segment.address.checked_add(within)).flatten()
        })
    }

    /// What it has at that virtual address, if it has something there.
    pub fn segment_of(&self, address: u64) -> Option<&Segment> {
        let within =
            |segment: &&Segment| address.checked_sub(segment.address).is_some_and(|at| at < segment.size);
        self.segments.iter().find(within)
    }

    /// Where a virtual address of the file is in memory that has this offset of it mapped at this address. `None` if no code is
    /// there.
    pub fn mapped_at(&self, virtual_address: u64, start: u64, file_offset: u64) -> Option<u64> {
        let of_page = |segment: &&Segment| {
            let before = segment.file_offset.saturating_sub(file_offset);
            // Whole pages are mapped.
            before < PAGE && file_offset < segment.file_offset.saturating_add(segment.size)
        };
        let segment = self.segments.iter().filter(|segment| segment.executable).find(of_page)?;
        let at_start = segment.address.wrapping_sub(segment.file_offset).wrapping_add(file_offset);
        Some(start.wrapping_sub(at_start).wrapping_add(virtual_address))
    }

    /// A process that has it mapped, perhaps.
    pub(super) fn seen_in(&self) -> Option<Pid> {
        Some(self.seen_in.load(Ordering::Relaxed)).filter(|pid| *pid != 0)
    }
}

/// Code that a process has mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mapped {
    /// Its first address.
    pub start: u64,
    /// The first address behind it.
    pub end: u64,
    /// Where in the file it begins, bytes.
    pub file_offset: u64,
    /// What it is of; `None` for what a just-in-time compiler wrote: memory, and files that are no ELF.
    pub module: Option<ModuleId>,
}

/// All code that a process has mapped.
#[derive(Debug, Default)]
pub struct ProcessMaps {
    mapped: Vec<Mapped>,
    /// Mappings that there was no room for.
    pub beyond: u64,
}

impl ProcessMaps {
    /// In ascending order.
    pub fn mapped(&self) -> &[Mapped] {
        &self.mapped
    }

    /// Where an address is.
    pub fn find(&self, address: u64) -> Option<&Mapped> {
        let after = self.mapped.partition_point(|mapped| mapped.start <= address);
        self.mapped[..after].last().filter(|mapped| address < mapped.end)
    }
}

/// What a file is known by. As long as it is open its inode is nobody else's; size and time tell whether it was written
/// anew in place.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Identity {
    File {
        device: u64,
        inode: u64,
        size: u64,
        modified: (i64, i64),
    },
    Vdso,
    /// It cannot be opened.
    Unread(Mapping),
}

/// What `maps` says of a file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Mapping {
    device: (u32, u32),
    inode: u64,
    name: Vec<u8>,
}

#[derive(Debug)]
struct Entry {
    module: Arc<Module>,
    identity: Identity,
    used: u64,
}

#[derive(Debug)]
struct Process {
    maps: Arc<ProcessMaps>,
    used: u64,
}

/// The registry of modules.
#[derive(Debug)]
pub struct Modules {
    root: Root,
    limits: Limits,
    modules: HashMap<ModuleId, Entry>,
    by_identity: HashMap<Identity, ModuleId>,
    /// As `maps` says, for files that are open and cannot be opened again, as they were deleted and `map_files` is not for
    /// us.
    by_mapping: HashMap<Mapping, ModuleId>,
    processes: ByProcess<ProcessKey, Process>,
    /// One more with every process looked at, so what has the lowest was not used for longest.
    clock: u64,
    next: u64,
    /// `map_files` is not for us.
    map_files_refused: bool,
    buffer: Buffer,
    /// Modules that could not be opened.
    unread: u64,
}

impl Modules {
    /// An empty one.
    pub fn new(root: Root, limits: Limits) -> Self {
        Self {
            root,
            limits,
            modules: HashMap::new(),
            by_identity: HashMap::new(),
            by_mapping: HashMap::new(),
            processes: ByProcess::default(),
            clock: 0,
            next: 0,
            map_files_refused: false,
            buffer: Buffer::default(),
            unread: 0,
        }
    }

    /// Reads what a process has mapped now. Its files are opened, those that are new.
    pub fn refresh(&mut self, key: ProcessKey) -> Result<Arc<ProcessMaps>, ReadError> {
        let AddressSpace { starttime, thread, directory, .. } =
            self.root.address_space(key.pid, &mut self.buffer)?;
        if starttime != key.start_ticks() {
            return Err(ReadError::Gone);
        }
        self.clock += 1;
        let mut lines = BufReader::with_capacity(64 << 10, directory.file("maps")?.take(MAX_MAPS));
        let mut line = Vec::new();
        let mut maps = ProcessMaps::default();
        // Most files of a process with several mappings have them side by side.
        let mut found: HashMap<(u64, Vec<u8>), Option<ModuleId>> = HashMap::new();
        while lines.read_until(b'\n', &mut line)? > 0 {
            if let Some(region) = maps::region(&line) {
                if maps.mapped.len() == MAX_MAPPED {
                    maps.beyond += 1;
                } else {
                    let module = match region.code {
                        Code::Anonymous => None,
                        Code::Vdso => self.vdso(thread),
                        Code::File { inode, name, .. } => match found.get(&(inode, name.to_vec())) {
                            Some(known) => *known,
                            None => {
                                let module = self.file(thread, &directory, &region);
                                found.insert((inode, name.to_vec()), module);
                                module
                            }
                        },
                    };
                    let maps::Region { start, end, offset, .. } = region;
                    maps.mapped.push(Mapped { start, end, file_offset: offset, module });
                }
            }
            line.clear();
        }
        // The kernel prints them so, but while it prints a process can move them.
        maps.mapped.sort_unstable_by_key(|mapped| mapped.start);
        let maps = Arc::new(maps);
        if self.processes.len() >= self.limits.processes && !self.processes.contains_key(&key) {
            let oldest = self.processes.iter().min_by_key(|(_, process)| process.used).map(|(key, _)| *key);
            oldest.and_then(|key| self.processes.remove(&key));
        }
        self.processes.insert(key, Process { maps: maps.clone(), used: self.clock });
        Ok(maps)
    }

    /// What a process had mapped when it was last looked at.
    pub fn known(&self, key: ProcessKey) -> Option<&Arc<ProcessMaps>> {
        self.processes.get(&key).map(|process| &process.maps)
    }

    /// A module, unless there was no room for it any more.
    pub fn get(&self, id: ModuleId) -> Option<&Arc<Module>> {
        self.modules.get(&id).map(|entry| &entry.module)
    }

    /// How many were met since the beginning, also those that are there no more.
    pub fn met(&self) -> u64 {
        self.next
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.modules.len()
    }

    /// There are none.
    pub fn is_empty(&self) -> bool {
        self.modules.is_empty()
    }

    /// Files that could not be opened, since the beginning.
    pub fn unread(&self) -> u64 {
        self.unread
    }

    /// Forgets a process. Its modules stay.
    pub fn forget(&mut self, key: ProcessKey) {
        self.processes.remove(&key);
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.processes.clear();
        self.modules.clear();
        self.by_identity.clear();
        self.by_mapping.clear();
    }

    /// Forgets the processes of which this is false.
    pub fn retain_processes(&mut self, mut is_kept: impl FnMut(ProcessKey) -> bool) {
        self.processes.retain(|key, _| is_kept(*key));
    }

    /// Closes what no known process has mapped.
    pub fn forget_unused(&mut self) {
        let mapped = self.processes.values().flat_map(|process| process.maps.mapped());
        let used: HashSet<ModuleId> = mapped.filter_map(|mapped| mapped.module).collect();
        self.modules.retain(|id, _| used.contains(id));
        self.by_identity.retain(|_, id| used.contains(id));
        self.by_mapping.retain(|_, id| used.contains(id));
    }

    /// The module of a mapping of a file; `None` if that is no ELF file.
    fn file(
        &mut self,
        pid: Pid,
        directory: &ProcessDirectory,
        region: &maps::Region<'_>,
    ) -> Option<ModuleId> {
        let Code::File { device, inode, name, deleted } = region.code else { return None };
        let mapping = Mapping { device, inode, name: name[..name.len().min(MAX_PATH)].to_vec() };
        let opened = self.open(directory, region.start..region.end, inode, name, deleted);
        let opened = opened.and_then(|file| file.metadata().ok().map(|metadata| (file, metadata)));
        let identity = match &opened {
            Some((_, metadata)) => Identity::File {
                device: metadata.dev(),
                inode: metadata.ino(),
                size: metadata.len(),
                modified: (metadata.mtime(), metadata.mtime_nsec()),
            },
            None => match self.by_mapping.get(&mapping).and_then(|id| self.modules.get(id)) {
                Some(entry) => entry.identity.clone(),
                None => Identity::Unread(mapping.clone()),
            },
        };
        if let Some(known) = self.touch(pid, &identity) {
            return Some(known);
        }
        let elf = match &opened {
            Some((file, _)) => Some(Elf::read(file)?),
            None => None,
        };
        self.unread += u64::from(opened.is_none());
        let path = maps::path(name);
        let path = String::from_utf8_lossy(&path[..path.len().min(MAX_PATH)]);
        let id = self.add(pid, identity, &path, deleted, opened.map(|(file, _)| file), elf);
        self.by_mapping.insert(mapping, id);
        Some(id)
    }

    fn open(
        &mut self,
        directory: &ProcessDirectory,
        range: Range<u64>,
        inode: u64,
        name: &[u8],
        deleted: bool,
    ) -> Option<File> {
        if !self.map_files_refused {
            match directory.handle(&format!("map_files/{:x}-{:x}", range.start, range.end)) {
                Ok(handle) => return files::open_handle(handle).ok(),
                // Of this process or of all; the latter is the rule.
                Err(ReadError::Refused(nix::errno::Errno::EPERM)) => self.map_files_refused = true,
                // It was unmapped meanwhile; or no right to this process.
                Err(_) => {}
            }
        }
        if deleted {
            return None;
        }
        let root = directory.directory("root").ok()?;
        let path = maps::path(name);
        let file = files::open_below(root.as_fd(), Path::new(std::ffi::OsStr::from_bytes(&path))).ok()?;
        (file.metadata().ok()?.ino() == inode).then_some(file)
    }

    /// The vdso, which is the same in all processes (of 64 bits): ours is read. Not with the vector of auxiliary values
    /// and a pointer, which would be as short but for the argument why it is sound.
    fn vdso(&mut self, pid: Pid) -> Option<ModuleId> {
        if let Some(known) = self.touch(pid, &Identity::Vdso) {
            return Some(known);
        }
        let file = own_vdso()?;
        let elf = Elf::read(&file);
        Some(self.add(pid, Identity::Vdso, "[vdso]", false, Some(file), elf))
    }

    fn touch(&mut self, pid: Pid, identity: &Identity) -> Option<ModuleId> {
        let id = self.by_identity.get(identity)?;
        let entry = self.modules.get_mut(id)?;
        entry.used = self.clock;
        entry.module.seen_in.store(pid, Ordering::Relaxed);
        Some(*id)
    }

    fn is_of_host(&self, pid: Pid) -> bool {
        let namespace = |pid: Pid| self.root.process(pid).ok()?.link("ns/mnt").ok();
        let of = namespace(pid);
        of.is_some() && (of == namespace(std::process::id()) || of == namespace(1))
    }

    fn add(
        &mut self,
        pid: Pid,
        identity: Identity,
        path: &str,
        deleted: bool,
        file: Option<File>,
        elf: Option<Elf>,
    ) -> ModuleId {
        if self.modules.len() >= self.limits.modules.max(1) {
            let oldest = self.modules.iter().min_by_key(|(id, entry)| (entry.used, **id)).map(|(id, _)| *id);
            if let Some(entry) = oldest.and_then(|id| self.modules.remove(&id)) {
                self.by_identity.remove(&entry.identity);
                self.by_mapping.retain(|_, id| *id != entry.module.id);
            }
        }
        let id = ModuleId(self.next);
        self.next += 1;
        let (segments, build_id) = elf.map(|elf| (elf.segments, elf.build_id)).unwrap_or_default();
        let module = Arc::new(Module {
            id,
            path: path.into(),
            deleted,
            build_id: hexadecimal(&build_id),
            segments,
            is_of_host: self.is_of_host(pid),
            file,
            seen_in: AtomicU32::new(pid),
        });
        self.by_identity.insert(identity.clone(), id);
        self.modules.insert(id, Entry { module, identity, used: self.clock });
        id
    }
}

pub(super) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Our own vdso, in a file that only we have.
fn own_vdso() -> Option<File> {
    let text = std::fs::read("/proc/self/maps").ok()?;
    let mut regions = text.split(|byte| *byte == b'\n').filter_map(maps::region);
    let region = regions.find(|region| region.code == Code::Vdso)?;
    let length = region.end.checked_sub(region.start).filter(|length| *length <= MAX_VDSO)?;
    let mut image = vec![0; usize::try_from(length).ok()?];
    File::open("/proc/self/mem").ok()?.read_exact_at(&mut image, region.start).ok()?;
    let mut file = File::from(memfd_create("collector-vdso", MFdFlags::MFD_CLOEXEC).ok()?);
    file.write_all(&image).ok()?;
    Some(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command, Stdio};

    fn modules(limits: Limits) -> Modules {
        Modules::new(Root::open(Path::new("/proc")).expect("/proc is mounted"), limits)
    }

    fn key_of(pid: Pid) -> ProcessKey {
        let stat = Root::open(Path::new("/proc")).unwrap().stat(pid, &mut Buffer::default()).unwrap();
        ProcessKey::from_ticks(pid, stat.starttime)
    }

    /// A process that sleeps, once it is past its exec.
    fn sleeper(program: &Path) -> (Child, ProcessKey) {
        let child = Command::new(program).arg("60").stdout(Stdio::null()).spawn().unwrap();
        let key = key_of(child.id());
        (child, key)
    }

    fn end(mut child: Child) {
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn this_process_has_its_program_libraries_and_the_vdso() {
        let mut modules = modules(Limits::default());
        let key = key_of(std::process::id());
        let maps = modules.refresh(key).unwrap();
        assert!(maps.mapped().is_sorted_by_key(|mapped| mapped.start));
        let here = this_process_has_its_program_libraries_and_the_vdso as fn() as usize as u64;
        let mapped = *maps.find(here).unwrap();
        let module = modules.get(mapped.module.unwrap()).unwrap().clone();
        assert_eq!(&*module.path, std::env::current_exe().unwrap().to_str().unwrap());
        assert!(!module.deleted);
        let address = module.address(here - mapped.start + mapped.file_offset).unwrap();
        assert!(
            module
                .segments
                .iter()
                .any(|s| s.executable && (s.address..s.address + s.size).contains(&address))
        );
        let paths: Vec<_> = modules.modules.values().map(|entry| entry.module.path.clone()).collect();
        assert!(paths.iter().any(|path| path.contains("libc.so")), "{paths:?}");
        assert!(paths.iter().any(|path| &**path == "[vdso]"), "{paths:?}");
        let count = modules.len();
        modules.refresh(key).unwrap();
        assert_eq!(modules.len(), count, "each file is one module");
        assert_eq!(modules.unread(), 0);
        assert!(maps.find(0).is_none() && maps.find(u64::MAX).is_none());
        modules.forget(key);
        modules.forget_unused();
        assert!(modules.is_empty());
    }

    #[test]
    fn another_process_with_that_pid_is_none() {
        let mut key = key_of(std::process::id());
        key.start_ns += 1_000_000_000;
        assert!(matches!(modules(Limits::default()).refresh(key), Err(ReadError::Gone)));
    }

    #[test]
    fn a_file_that_is_replaced_is_another_module_and_stays_readable() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("sleeper");
        let mut modules = modules(Limits::default());
        let of = |modules: &mut Modules, key| {
            // The exec may still be to come.
            for _ in 0..1000 {
                let maps = modules.refresh(key).unwrap();
                let all: Vec<_> =
                    maps.mapped().iter().filter_map(|m| modules.get(m.module?).cloned()).collect();
                if let Some(module) = all.into_iter().find(|module| module.path.ends_with("/sleeper")) {
                    return module;
                }
            }
            panic!("it never runs");
        };
        std::fs::copy("/bin/sleep", &program).unwrap();
        let (first, first_key) = sleeper(&program);
        let old = of(&mut modules, first_key);
        std::fs::remove_file(&program).unwrap();
        std::fs::copy("/bin/cat", &program).unwrap();
        std::fs::remove_file(&program).unwrap();
        std::fs::copy("/bin/sleep", &program).unwrap();
        let (second, second_key) = sleeper(&program);
        let new = of(&mut modules, second_key);
        assert_ne!(old.id, new.id);
        assert_eq!(old.path, new.path);
        assert_eq!(of(&mut modules, first_key).id, old.id, "the deleted file is still the same");
        end(first);
        end(second);
        drop(directory);
        assert!(Elf::read(old.file().unwrap()).is_some());
        assert!(modules.known(first_key).is_some());
    }

    #[test]
    fn the_least_recently_used_goes() {
        let mut modules = modules(Limits { modules: 2, processes: 1 });
        let key = key_of(std::process::id());
        modules.refresh(key).unwrap();
        assert_eq!(modules.len(), 2);
        assert_eq!(modules.by_identity.len(), 2);
        let (child, other) = sleeper(Path::new("/bin/sleep"));
        modules.refresh(other).unwrap();
        assert!(modules.known(key).is_none() && modules.known(other).is_some());
        end(child);
    }

    #[test]
    fn without_map_files_the_path_is_taken_if_it_is_the_same_file() {
        let mut modules = modules(Limits::default());
        modules.map_files_refused = true;
        modules.refresh(key_of(std::process::id())).unwrap();
        assert_eq!(modules.unread(), 0);
        let module = |modules: &Modules| {
            modules.modules.values().find(|e| e.module.path.contains("libc.so")).map(|e| e.module.clone())
        };
        assert!(!module(&modules).unwrap().build_id.is_empty());
        let directory = Root::open(Path::new("/proc")).unwrap().process(std::process::id()).unwrap();
        assert!(modules.open(&directory, 0..1, 1, b"/bin/sleep", false).is_none(), "another inode");
    }

    #[test]
    fn the_vdso_is_a_file() {
        let elf = Elf::read(&own_vdso().unwrap()).unwrap();
        assert!(!elf.segments.is_empty());
    }
}
