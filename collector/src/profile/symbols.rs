//! Names, files and lines of addresses: of files, of the kernel, and of what just-in-time compilers wrote.
//!
//! Everything that is read here is another's: names are cut, copies and caches have limits, and debug information is
//! only read of files that nobody but root (or we) could have written; of others there are the names of the symbol
//! tables. See [`Config::debug_info`] for why.
//!
//! blazesym reads symbol tables and DWARF; it gets copies (`image`), never a file of others, and is told nothing of their
//! paths: files of debug information are found here (`debug_file`).
//!
//! What it costs on a core, 500 addresses of each, the first time, with others of the same file, and again: node without
//! debug information 22, 4 and 0.03 ms; libc with the packed debug information of Debian 51, 8 and 0.03 ms; libpython with
//! its own 58, 8 and 0.04 ms; postgres without any 1.1, 0.2 and 0.02 ms; the kernel 52 ms, then nothing. Memory: 17, 22, 29
//! and 1.5 MB, of which 13, 9, 13 and 0.5 MB are the copies.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use blazesym::symbolize::source::{Elf as ElfSource, Source as BlazesymSource};
use blazesym::symbolize::{CodeInfo, Input, Sym, Symbolized as Resolved, Symbolizer};

use super::debug_file::{self, trusted};
use super::image::{Image, Supplement, has_debug};
use super::modules::{Module, ModuleId, Modules};
use super::names::{cut, demangle};
use super::perf_map::{self, PerfMap, Version};
use crate::procfs::kallsyms::{Kallsyms, KernelSymbol};
use crate::procfs::root::{Buffer, ProcessDirectory, Root};
use crate::units::ProcessKey;

/// Functions at one address. Compilers inline some ten levels.
const MAX_LINES: usize = 64;
/// Bytes of the path of a source file.
const MAX_PATH: usize = 1024;
/// Modules whose copies are kept: each takes up to six descriptors, two for each copy.
const MAX_IMAGES: usize = 256;
/// Bytes of what just-in-time compilers wrote that is kept, of all processes.
const MAX_PERF_MAPS: usize = 128 << 20;

/// Whose debug information is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DebugInfo {
    /// Of files that only root or this program's user can have written, and not in a container.
    Trusted,
    /// Of all: whoever can run a program can then end this one.
    All,
    /// Of none: there are names, but no lines and no inlined functions.
    None,
}

/// How much is kept and read.
#[derive(Clone, Debug)]
pub struct Config {
    /// Addresses whose names are kept; all are given up when there are more.
    pub addresses: usize,
    /// Bytes that the copy of one file may have. If it has more with debug information it is without.
    pub image_bytes: u64,
    /// Bytes of all copies. Those that were not used for longest go.
    pub images_bytes: u64,
    /// Bytes of a name. Longer ones are cut.
    pub name_bytes: usize,
    /// Whose debug information is read. What reads it trusts it: blazesym 0.2.7 calls itself for each level of inlined
    /// functions, keeps a row for each byte of a table of lines, and panics where a row is of a file that is not there. So
    /// a file that was made for it exhausts the stack or the memory, or ends this program. Symbol tables are flat.
    pub debug_info: DebugInfo,
    /// Where files of debug information are, by build id and path.
    pub debug_directory: PathBuf,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            addresses: 65_536,
            image_bytes: 192 << 20,
            images_bytes: 384 << 20,
            name_bytes: 512,
            debug_info: DebugInfo::Trusted,
            debug_directory: "/usr/lib/debug".into(),
        }
    }
}

/// What is at an address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Symbolized {
    /// Functions that it is in, the innermost of those that were inlined first. Empty if they are not known.
    pub lines: Arc<[SymbolLine]>,
}

/// A line of a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SymbolLine {
    /// Name of the function for humans: demangled.
    pub name: Arc<str>,
    /// As in the symbol table.
    pub system_name: Arc<str>,
    /// Source file; empty if it is not known.
    pub file: Arc<str>,
    /// Line in it; 0 if it is not known.
    pub line: u32,
    /// Line of the function's first instruction, which is where it begins or a little behind; 0 if it is not known, as of
    /// those that were inlined.
    pub start_line: u32,
}

/// Looks up names. Stays in the thread that made it (what it uses is not to be sent), which may wait for disks.
#[derive(Debug)]
pub struct Symbols {
    config: Config,
    procfs: Root,
    kallsyms: Kallsyms,
    images: HashMap<ModuleId, Loaded>,
    known: HashMap<(ModuleId, u64), Symbolized>,
    texts: Texts,
    perf_maps: HashMap<ProcessKey, (Version, PerfMap)>,
    /// One more with every question, so what has the lowest was not used for longest.
    clock: u64,
}

/// What a module is looked up in.
#[derive(Debug)]
struct Loaded {
    /// That of debug information before that of the file.
    sources: Vec<Source>,
    bytes: u64,
    used: u64,
}

#[derive(Debug)]
struct Source {
    /// Of this one only: what it keeps goes with it.
    symbolizer: Symbolizer,
    image: Image,
    supplement: Option<Image>,
}

impl Symbols {
    /// With `/proc`, and the names of the kernel that were opened before rights were dropped.
    pub fn new(config: Config, procfs: Root, kallsyms: Kallsyms) -> Self {
        Self {
            config,
            procfs,
            kallsyms,
            images: HashMap::new(),
            known: HashMap::new(),
            texts: Texts::default(),
            perf_maps: HashMap::new(),
            clock: 0,
        }
    }

    /// What is at virtual addresses of a module. As many answers as addresses, in their order.
    pub fn user(&mut self, module: &Module, addresses: &[u64]) -> Vec<Symbolized> {
        if self.known.len() > self.config.addresses {
            // Once in a long time and all at once: what is asked for again is found again.
            self.known = HashMap::new();
            self.texts = Texts::default();
        }
        let mut unknown: Vec<u64> = addresses.to_vec();
        unknown.retain(|address| {
            module.segment_of(*address).is_some() && !self.known.contains_key(&(module.id, *address))
        });
        unknown.sort_unstable();
        unknown.dedup();
        if !unknown.is_empty() {
            self.load(module);
            if let Some(loaded) = self.images.get(&module.id) {
                for (address, found) in look_up(loaded, &unknown, &mut self.texts, self.config.name_bytes) {
                    self.known.insert((module.id, address), found);
                }
            }
        }
        let known = |address: &u64| self.known.get(&(module.id, *address)).cloned().unwrap_or_default();
        addresses.iter().map(known).collect()
    }

    /// Those of these addresses of the kernel that are not known, ascending, each once. Whoever knows them may
    /// [tell](Self::tell_kernel); else all that the kernel has is gone through.
    pub fn unknown_of_kernel(&mut self, addresses: &[u64]) -> Vec<u64> {
        self.kallsyms.shrink();
        self.kallsyms.unknown(addresses)
    }

    /// What is at addresses of the kernel.
    pub fn tell_kernel(&mut self, found: impl Iterator<Item = (u64, KernelSymbol)>) {
        found.for_each(|(address, symbol)| self.kallsyms.tell(address, Some(symbol)));
    }

    /// What is at addresses of the kernel. As many answers as addresses, in their order.
    pub fn kernel(&mut self, addresses: &[u64]) -> Vec<Symbolized> {
        self.kallsyms.shrink();
        if let Err(error) = self.kallsyms.learn(addresses.iter().copied()) {
            tracing::warn!(%error, "reading the names of kernel addresses failed");
        }
        let none = self.texts.get("");
        let symbolized = |address: &u64| {
            let symbol = self.kallsyms.symbol(*address)?;
            Some(one(symbol.name.clone(), none.clone()))
        };
        addresses.iter().map(|address| symbolized(address).unwrap_or_default()).collect()
    }

    /// What a just-in-time compiler wrote at addresses of a process, if the process lives and says so. As many answers as
    /// addresses, in their order.
    pub fn compiled(&mut self, key: ProcessKey, addresses: &[u64]) -> Vec<Symbolized> {
        self.read_perf_map(key);
        let map = self.perf_maps.get(&key).map(|(_, map)| map);
        let none = self.texts.get("");
        let mut found = Vec::with_capacity(addresses.len());
        for address in addresses {
            let name = map.and_then(|map| map.name(*address));
            let name = name.map(|name| cut(&String::from_utf8_lossy(name), self.config.name_bytes));
            found.push(name.map(|name| one(self.texts.get(&name), none.clone())).unwrap_or_default());
        }
        found
    }

    /// Lets go of names in modules and of processes that are not among those any more.
    pub fn retain(&mut self, modules: &Modules) {
        self.images.retain(|id, _| modules.get(*id).is_some());
        self.known.retain(|(id, _), _| modules.get(*id).is_some());
        self.perf_maps.retain(|key, _| modules.known(*key).is_some());
    }

    /// Gives up everything that is kept.
    pub fn clear(&mut self) {
        self.images = HashMap::new();
        self.known = HashMap::new();
        self.texts = Texts::default();
        self.perf_maps = HashMap::new();
    }

    /// What a process that has ended wrote stays known.
    fn read_perf_map(&mut self, key: ProcessKey) {
        let Some(directory) = process(&self.procfs, key) else { return };
        let Some((file, version)) = perf_map::open(&directory) else { return };
        if self.perf_maps.get(&key).is_some_and(|(read, _)| *read == version) {
            return;
        }
        self.perf_maps.remove(&key);
        let Some(map) = PerfMap::read(&file) else { return };
        let kept: usize = self.perf_maps.values().map(|(_, map)| map.bytes()).sum();
        if kept + map.bytes() > MAX_PERF_MAPS {
            self.perf_maps = HashMap::new();
        }
        self.perf_maps.insert(key, (version, map));
    }

    /// Makes the images of a module, also if there are none of use.
    fn load(&mut self, module: &Module) {
        self.clock += 1;
        if let Some(loaded) = self.images.get_mut(&module.id) {
            loaded.used = self.clock;
            return;
        }
        let sources = module.file().map(|file| self.sources(module, file)).unwrap_or_default();
        let image_bytes =
            |source: &Source| source.image.bytes + source.supplement.as_ref().map_or(0, |i| i.bytes);
        let bytes = sources.iter().map(image_bytes).sum();
        let mut all: u64 = self.images.values().map(|loaded| loaded.bytes).sum::<u64>().saturating_add(bytes);
        while all > self.config.images_bytes || self.images.len() >= MAX_IMAGES {
            let oldest = self.images.iter().min_by_key(|(_, loaded)| loaded.used).map(|(id, _)| *id);
            let Some(gone) = oldest.and_then(|id| self.images.remove(&id)) else { break };
            all -= gone.bytes;
        }
        self.images.insert(module.id, Loaded { sources, bytes, used: self.clock });
    }

    fn sources(&self, module: &Module, file: &File) -> Vec<Source> {
        let limit = self.config.image_bytes;
        let mut sources = Vec::new();
        let wanted = match self.config.debug_info {
            DebugInfo::None => false,
            DebugInfo::All => true,
            DebugInfo::Trusted => module.is_of_host && trusted(file) || &*module.path == "[vdso]",
        };
        let own = has_debug(file);
        if wanted && !own {
            let roots = self.roots(module);
            let directory = &*self.config.debug_directory;
            let found = debug_file::find(file, &module.build_id, Path::new(&*module.path), directory, &roots);
            if let Some(found) = found {
                let supplement = found.supplement(directory);
                let supplement = supplement
                    .and_then(|(file, build_id)| Some((Image::copy(&file, true, limit, None)?, build_id)));
                let with = supplement.as_ref().map(|(image, build_id)| Supplement { image, build_id });
                if let Some(image) = Image::copy(&found.file, true, limit, with.as_ref()) {
                    sources.push(Source::new(image, supplement.map(|(image, _)| image)));
                }
            }
        }
        // Its symbol table counts also where there is a file of debug information: that can be without.
        sources.extend(Image::copy(file, wanted && own, limit, None).map(|image| Source::new(image, None)));
        sources
    }

    /// Where files of debug information are looked for: in the root of a process that has the module, then in ours.
    fn roots(&self, module: &Module) -> Vec<OwnedFd> {
        let process = module.seen_in().and_then(|pid| self.procfs.process(pid).ok()?.directory("root").ok());
        let own = File::open("/").ok().map(OwnedFd::from);
        process.into_iter().chain(own).collect()
    }
}

/// The directory of a process, if it is still that one.
fn process(procfs: &Root, key: ProcessKey) -> Option<ProcessDirectory> {
    let directory = procfs.process(key.pid).ok()?;
    let stat = directory.stat(&mut Buffer::default()).ok()?;
    (stat.starttime == key.start_ticks()).then_some(directory)
}

impl Source {
    fn new(image: Image, supplement: Option<Image>) -> Self {
        // Names are demangled here, within a limit. The images have no paths that could lead to directories of debug
        // information, and do not change.
        let builder = Symbolizer::builder().enable_demangling(false).enable_auto_reload(false);
        let symbolizer = builder.set_debug_dirs(Some(std::iter::empty::<PathBuf>())).build();
        Self { symbolizer, image, supplement }
    }

    /// What is at each address; `None` where nothing is known. Without debug information if it says nothing, or is not as
    /// it should be.
    fn resolve(&self, addresses: &[u64]) -> Vec<Option<Sym<'_>>> {
        let mut found = self.ask(addresses, self.image.debug);
        if self.image.debug {
            let missing: Vec<usize> = (0..addresses.len()).filter(|at| found[*at].is_none()).collect();
            let asked: Vec<u64> = missing.iter().map(|at| addresses[*at]).collect();
            for (at, symbol) in missing.into_iter().zip(self.ask(&asked, false)) {
                found[at] = symbol;
            }
            self.name_in_full(addresses, &mut found);
        }
        found
    }

    /// Debug information that has lines only (`line-tables-only` of rustc) names a function of Rust without the modules that it is
    /// in, which its symbol has: a program has many a `poll<…>` and `{closure#0}`. Of those that were inlined there is no symbol.
    fn name_in_full<'a>(&'a self, addresses: &[u64], found: &mut [Option<Sym<'a>>]) {
        let is_short = |symbol: &Sym<'_>| {
            let code = symbol.code_info.as_ref();
            let of_rust = code.is_some_and(|code| code.file.as_encoded_bytes().ends_with(b".rs"));
            of_rust && !is_mangled(&symbol.name)
        };
        let short = |at: &usize| found[*at].as_ref().is_some_and(is_short);
        let short: Vec<usize> = (0..addresses.len()).filter(short).collect();
        if short.is_empty() {
            return;
        }
        let asked: Vec<u64> = short.iter().map(|at| addresses[*at]).collect();
        for (at, symbol) in short.into_iter().zip(self.ask(&asked, false)) {
            if let (Some(found), Some(symbol)) = (&mut found[at], symbol.filter(|s| is_mangled(&s.name))) {
                found.name = symbol.name;
            }
        }
    }

    fn ask(&self, addresses: &[u64], debug: bool) -> Vec<Option<Sym<'_>>> {
        let mut source = ElfSource::new(self.image.path());
        source.debug_syms = debug;
        let answers = self.symbolizer.symbolize(&BlazesymSource::Elf(source), Input::VirtOffset(addresses));
        let answers = answers.unwrap_or_default().into_iter().map(|answer| match answer {
            Resolved::Sym(symbol) if !symbol.name.is_empty() => Some(symbol),
            _ => None,
        });
        answers.chain(std::iter::repeat(None)).take(addresses.len()).collect()
    }
}

/// As symbols are that tell the modules, or namespaces, of a function.
fn is_mangled(name: &str) -> bool {
    name.starts_with("_R") || name.starts_with("_Z")
}

/// All of the addresses, which are each there once.
fn look_up(loaded: &Loaded, addresses: &[u64], texts: &mut Texts, limit: usize) -> Vec<(u64, Symbolized)> {
    let mut found = Vec::with_capacity(addresses.len());
    let mut left = addresses.to_vec();
    for source in &loaded.sources {
        let symbols = source.resolve(&left);
        // Where the functions begin is a question of its own.
        let mut begins: Vec<u64> = symbols
            .iter()
            .flatten()
            .filter(|symbol| symbol.code_info.is_some())
            .map(|symbol| symbol.addr)
            .collect();
        begins.sort_unstable();
        begins.dedup();
        let first_lines = source.resolve(&begins).into_iter().map(|symbol| symbol?.code_info?.line);
        let first_lines: HashMap<u64, u32> =
            begins.iter().zip(first_lines).filter_map(|(begin, line)| Some((*begin, line?))).collect();
        let asked = std::mem::take(&mut left);
        for (address, symbol) in asked.into_iter().zip(&symbols) {
            match symbol {
                Some(symbol) => {
                    let first_line = first_lines.get(&symbol.addr).copied().unwrap_or(0);
                    found.push((address, texts.symbolized(symbol, first_line, limit)));
                }
                None => left.push(address),
            }
        }
    }
    found.extend(left.into_iter().map(|address| (address, Symbolized::default())));
    found
}

fn one(name: Arc<str>, none: Arc<str>) -> Symbolized {
    let line = SymbolLine { system_name: name.clone(), name, file: none, line: 0, start_line: 0 };
    Symbolized { lines: Arc::new([line]) }
}

/// Each text once.
#[derive(Debug, Default)]
struct Texts(HashSet<Arc<str>>);

impl Texts {
    fn get(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.0.get(text) {
            return known.clone();
        }
        let text: Arc<str> = text.into();
        self.0.insert(text.clone());
        text
    }

    fn symbolized(&mut self, symbol: &Sym<'_>, start_line: u32, limit: usize) -> Symbolized {
        let mut lines = Vec::with_capacity(symbol.inlined.len() + 1);
        for inlined in symbol.inlined.iter().rev().take(MAX_LINES - 1) {
            lines.push(self.line(&inlined.name, inlined.code_info.as_ref(), 0, limit));
        }
        lines.push(self.line(&symbol.name, symbol.code_info.as_deref(), start_line, limit));
        Symbolized { lines: lines.into() }
    }

    fn line(&mut self, name: &str, code: Option<&CodeInfo<'_>>, start_line: u32, limit: usize) -> SymbolLine {
        let file = code.map(|code| cut(&code.to_path().to_string_lossy(), MAX_PATH)).unwrap_or_default();
        SymbolLine {
            name: self.get(&demangle(name, limit)),
            system_name: self.get(&cut(name, limit)),
            file: self.get(&file),
            line: code.and_then(|code| code.line).unwrap_or(0),
            start_line,
        }
    }
}

#[cfg(test)]
mod tests;
