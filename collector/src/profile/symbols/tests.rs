use std::io::{Seek as _, SeekFrom, Write as _};
use std::process::{Child, Command, Stdio};

use proptest::prelude::*;

use super::*;
use crate::profile::modules::{Limits, Modules, ProcessMaps};
use crate::units::Pid;

fn root() -> Root {
    Root::open(Path::new("/proc")).expect("/proc is mounted")
}

fn symbols(config: Config) -> Symbols {
    Symbols::new(config, root(), Kallsyms::open(Path::new("/proc")))
}

fn key_of(pid: Pid) -> ProcessKey {
    ProcessKey::from_ticks(pid, root().stat(pid, &mut Buffer::default()).unwrap().starttime)
}

/// What is at an address of this process.
fn here(symbols: &mut Symbols, address: u64) -> Symbolized {
    let mut modules = Modules::new(root(), Limits::default());
    let maps = modules.refresh(key_of(std::process::id())).unwrap();
    let mapped = maps.find(address).expect("it is mapped");
    let module = modules.get(mapped.module.expect("it is of a file")).unwrap();
    let address = module.address(address - mapped.start + mapped.file_offset).expect("it is of a segment");
    symbols.user(module, &[address]).remove(0)
}

/// A process that stops once its program is loaded, and the module of the program.
struct Running {
    child: Child,
    modules: Modules,
    maps: Arc<ProcessMaps>,
}

impl Running {
    fn start(program: &Path) -> Self {
        let child = Command::new(program).arg("60").stdout(Stdio::null()).spawn().unwrap();
        let modules = Modules::new(root(), Limits::default());
        let mut running = Self { child, modules, maps: Arc::default() };
        let key = key_of(running.child.id());
        for _ in 0..10_000 {
            running.maps = running.modules.refresh(key).unwrap();
            if module_of(&running.modules, &running.maps, program).is_some() {
                return running;
            }
        }
        panic!("{} never runs", program.display());
    }

    fn module(&self, program: &Path) -> &Module {
        module_of(&self.modules, &self.maps, program).unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn module_of<'a>(modules: &'a Modules, maps: &ProcessMaps, program: &Path) -> Option<&'a Module> {
    let all = maps.mapped().iter().filter_map(|mapped| modules.get(mapped.module?));
    all.map(|module| &**module).find(|module| Path::new(&*module.path) == program)
}

/// Where a symbol is in a file, as nm(1) says.
fn address_of(file: &Path, name: &str) -> u64 {
    let output = Command::new("nm").arg(file).output().unwrap();
    let output = String::from_utf8(output.stdout).unwrap();
    let line =
        output.lines().find(|line| line.ends_with(&format!(" {name}"))).unwrap_or_else(|| panic!("{output}"));
    u64::from_str_radix(line.split(' ').next().unwrap(), 16).unwrap()
}

fn run(directory: &Path, program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).current_dir(directory).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

const SOURCE: &str = "#include <unistd.h>\n\
    volatile int sum;\n\
    static inline __attribute__((always_inline)) void inner(int n) {\n\
    \x20 sum += n;\n\
    }\n\
    __attribute__((noinline)) void outer(int n) {\n\
    \x20 inner(n);\n\
    }\n\
    int main(void) { outer(1); pause(); return 0; }\n";

/// A program of C with debug information, built in a directory.
fn build(directory: &Path, arguments: &[&str]) -> PathBuf {
    std::fs::write(directory.join("program.c"), SOURCE).unwrap();
    run(directory, "gcc", &[&["-g", "-O1", "-o", "program", "program.c"], arguments].concat());
    // What mktemp(1) makes is ours only, but a umask can be anything.
    run(directory, "chmod", &["755", "program"]);
    directory.join("program")
}

/// `outer`, with what is inlined there: `file:line` of each.
fn outer(symbols: &mut Symbols, module: &Module, outer: u64) -> Vec<String> {
    // The first instructions are of the inlined function already.
    let found = symbols.user(module, &[outer, outer + 1]);
    let lines = found.iter().find(|found| found.lines.len() > 1).unwrap_or(&found[0]).lines.clone();
    let file = |line: &SymbolLine| line.file.rsplit('/').next().unwrap_or("").to_owned();
    lines.iter().map(|line| format!("{} {}:{}", line.name, file(line), line.line)).collect()
}

const OUTER: [&str; 2] = ["inner program.c:4", "outer program.c:7"];

#[inline(never)]
fn looked_for(number: u64) -> u64 {
    std::hint::black_box(number) + 1
}

#[test]
fn a_function_of_this_program_has_its_name_and_line() {
    let address = looked_for as fn(u64) -> u64 as usize as u64;
    // This program is larger than those that are read otherwise.
    let config = Config { image_bytes: 1 << 30, images_bytes: 1 << 30, ..Config::default() };
    let found = here(&mut symbols(config), address);
    let line = found.lines.last().unwrap();
    assert!(line.name.ends_with("symbols::tests::looked_for"), "{found:?}");
    assert_ne!(line.name, line.system_name);
    assert!(line.file.ends_with("src/profile/symbols/tests.rs"), "{found:?}");
    let source = include_str!("tests.rs");
    let written = source.lines().position(|line| line.starts_with("fn looked_for(")).unwrap() as u32 + 1;
    assert!((written..written + 3).contains(&line.start_line), "{found:?}, written in {written}");
    assert!((written..written + 3).contains(&line.line), "{found:?}, written in {written}");
}

#[test]
fn a_function_of_rust_has_the_modules_that_it_is_in_where_debug_information_has_lines_only() {
    let directory = tempfile::tempdir().unwrap();
    let source = "pub mod within {\n\
        \x20   #[inline(never)]\n\
        \x20   pub fn looked_for<T: Copy>(number: T) -> T { std::hint::black_box(number) }\n\
        }\n\
        fn main() { within::looked_for(1); std::thread::park(); }\n";
    std::fs::write(directory.path().join("program.rs"), source).unwrap();
    run(directory.path(), "rustc", &["-O", "-Cdebuginfo=line-tables-only", "program.rs"]);
    run(directory.path(), "chmod", &["755", "program"]);
    let program = directory.path().join("program");
    let listed = Command::new("nm").arg(&program).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let line = listed.lines().find(|line| line.contains("looked_for")).unwrap();
    let address = u64::from_str_radix(line.split(' ').next().unwrap(), 16).unwrap();
    let running = Running::start(&program);
    let found = symbols(Config::default()).user(running.module(&program), &[address]).remove(0);
    let line = found.lines.last().unwrap();
    assert!(line.name.starts_with("program::within::looked_for"), "{found:?}");
    assert!(line.file.ends_with("program.rs") && line.line == 3, "{found:?}");
}

#[test]
fn inlined_functions_are_inside_of_others() {
    let directory = tempfile::tempdir().unwrap();
    let program = build(directory.path(), &[]);
    let running = Running::start(&program);
    let address = address_of(&program, "outer");
    assert_eq!(outer(&mut symbols(Config::default()), running.module(&program), address), OUTER);
    // Without debug information there is the name.
    let mut without = symbols(Config { debug_info: DebugInfo::None, ..Config::default() });
    assert_eq!(outer(&mut without, running.module(&program), address), ["outer :0"]);
    // And so where it does not fit.
    let names = Image::copy(&File::open(&program).unwrap(), false, u64::MAX, None).unwrap();
    assert!(!names.debug);
    let mut small = symbols(Config { image_bytes: names.bytes, ..Config::default() });
    assert_eq!(outer(&mut small, running.module(&program), address), ["outer :0"]);
}

#[test]
fn compressed_debug_information_is_unpacked() {
    let directory = tempfile::tempdir().unwrap();
    let program = build(directory.path(), &["-gz=zlib"]);
    let running = Running::start(&program);
    let address = address_of(&program, "outer");
    assert_eq!(outer(&mut symbols(Config::default()), running.module(&program), address), OUTER);
}

#[test]
fn what_others_can_write_to_has_names_only() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().unwrap();
    let program = build(directory.path(), &[]);
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o777)).unwrap();
    let running = Running::start(&program);
    let address = address_of(&program, "outer");
    assert_eq!(outer(&mut symbols(Config::default()), running.module(&program), address), ["outer :0"]);
    let mut all = symbols(Config { debug_info: DebugInfo::All, ..Config::default() });
    assert_eq!(outer(&mut all, running.module(&program), address), OUTER);
}

/// Takes the debug information out of a program, into another file.
fn split(directory: &Path, link: bool) -> u64 {
    let address = address_of(&directory.join("program"), "outer");
    run(directory, "objcopy", &["--only-keep-debug", "program", "program.debug"]);
    run(directory, "chmod", &["644", "program.debug"]);
    run(directory, "strip", &["program"]);
    if link {
        run(directory, "objcopy", &["--add-gnu-debuglink=program.debug", "program"]);
    }
    address
}

#[test]
fn a_file_of_debug_information_beside_the_program_is_found() {
    for arguments in [&["-Wl,--build-id"][..], &["-Wl,--build-id=none"]] {
        let directory = tempfile::tempdir().unwrap();
        let program = build(directory.path(), arguments);
        let address = split(directory.path(), true);
        let running = Running::start(&program);
        assert_eq!(
            outer(&mut symbols(Config::default()), running.module(&program), address),
            OUTER,
            "{arguments:?}"
        );
        // That of another program, of the same name.
        std::fs::write(directory.path().join("program.debug"), std::fs::read("/bin/sleep").unwrap()).unwrap();
        let none: [&str; 0] = [];
        assert_eq!(
            outer(&mut symbols(Config::default()), running.module(&program), address),
            none,
            "{arguments:?}"
        );
    }
}

#[test]
fn a_file_of_debug_information_is_found_by_its_build_id() {
    let directory = tempfile::tempdir().unwrap();
    let program = build(directory.path(), &["-Wl,--build-id"]);
    let address = split(directory.path(), false);
    let running = Running::start(&program);
    let module = running.module(&program);
    let (first, rest) = module.build_id.split_at(2);
    let by_id = directory.path().join("debug/.build-id").join(first);
    std::fs::create_dir_all(&by_id).unwrap();
    std::fs::rename(directory.path().join("program.debug"), by_id.join(format!("{rest}.debug"))).unwrap();
    let config = Config { debug_directory: directory.path().join("debug"), ..Config::default() };
    assert_eq!(outer(&mut symbols(config), module, address), OUTER);
}

#[test]
fn a_deleted_file_has_its_names() {
    let directory = tempfile::tempdir().unwrap();
    let program = build(directory.path(), &[]);
    let address = address_of(&program, "outer");
    let running = Running::start(&program);
    std::fs::remove_file(&program).unwrap();
    std::fs::write(&program, "replaced").unwrap();
    assert_eq!(outer(&mut symbols(Config::default()), running.module(&program), address), OUTER);
}

#[test]
fn the_vdso_has_names() {
    let mut modules = Modules::new(root(), Limits::default());
    let maps = modules.refresh(key_of(std::process::id())).unwrap();
    let vdso = module_of(&modules, &maps, Path::new("[vdso]")).unwrap();
    let executable = vdso.segments.iter().find(|segment| segment.executable).unwrap();
    let addresses: Vec<u64> = (executable.address..executable.address + executable.size).step_by(8).collect();
    let found = symbols(Config::default()).user(vdso, &addresses);
    let named =
        |name: &str| found.iter().any(|found| found.lines.iter().any(|line| line.name.contains(name)));
    assert!(named("clock_gettime"), "{found:?}");
}

#[test]
fn what_was_compiled_at_run_time_has_the_name_that_its_program_wrote() {
    let running = Running::start(&std::fs::canonicalize("/bin/sleep").unwrap());
    let key = key_of(running.child.id());
    let path = format!("/tmp/perf-{}.map", key.pid);
    let mut symbols = symbols(Config { name_bytes: 8, ..Config::default() });
    let mut names = |key| -> Vec<String> {
        let found = symbols.compiled(key, &[0x1000, 0x1020]);
        found
            .iter()
            .map(|found| found.lines.first().map_or(String::new(), |line| line.name.to_string()))
            .collect()
    };
    assert_eq!(names(key), ["", ""]);
    std::fs::write(&path, "1000 10 f\n").unwrap();
    assert_eq!(names(key), ["f", ""]);
    std::fs::write(&path, "1000 10 f\n1020 8 LazyCompile:g\n").unwrap();
    assert_eq!(names(key), ["f", "LazyC…"]);
    std::fs::remove_file(&path).unwrap();
    drop(running);
    assert_eq!(names(key), ["f", "LazyC…"], "it stays known");
    assert_eq!(names(ProcessKey { start_ns: 1, ..key }), ["", ""]);
}

#[test]
fn what_is_kept_has_limits() {
    let directory = tempfile::tempdir().unwrap();
    let program = build(directory.path(), &[]);
    let running = Running::start(&program);
    let module = running.module(&program);
    let mut symbols = symbols(Config { addresses: 10, images_bytes: 1, name_bytes: 6, ..Config::default() });
    let address = address_of(&program, "outer");
    for _ in 0..3 {
        let found = symbols.user(module, &(address..address + 12).collect::<Vec<_>>());
        assert_eq!(found.len(), 12);
        assert!(found.iter().flat_map(|found| found.lines.iter()).all(|line| line.name.len() <= 6));
        assert!(symbols.known.len() <= 12 && symbols.images.len() == 1);
    }
    let all = module_of(&running.modules, &running.maps, Path::new("[vdso]")).unwrap();
    symbols.user(all, &[0]);
    assert_eq!(symbols.images.len(), 1, "the other one went");
    symbols.clear();
    assert!(symbols.known.is_empty() && symbols.images.is_empty());
}

#[test]
fn what_is_nowhere_has_no_lines() {
    let directory = tempfile::tempdir().unwrap();
    let program = build(directory.path(), &[]);
    let running = Running::start(&program);
    let found = symbols(Config::default()).user(running.module(&program), &[0, u64::MAX, 1 << 63, 1 << 40]);
    assert_eq!(found, vec![Symbolized::default(); 4]);
}

/// The names in a file of which some bytes are others, as of files that are not trusted: without debug information.
fn names_in(file: &mut File, changes: &[(u64, u8)], cut_at: Option<u64>, addresses: &[u64]) {
    for (at, byte) in changes {
        file.seek(SeekFrom::Start(*at)).unwrap();
        file.write_all(&[*byte]).unwrap();
    }
    if let Some(length) = cut_at {
        file.set_len(length).unwrap();
    }
    let sources: Vec<Source> =
        Image::copy(file, false, 16 << 20, None).into_iter().map(|image| Source::new(image, None)).collect();
    let loaded = Loaded { sources, bytes: 0, used: 0 };
    let found = look_up(&loaded, addresses, &mut Texts::default(), 100);
    assert_eq!(found.len(), addresses.len());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// In a program that is small, so that most changes hit what is read.
    #[test]
    fn no_file_makes_it_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..200),
        cut_at in prop::option::weighted(0.1, any::<prop::sample::Index>()),
    ) {
        static PROGRAM: std::sync::OnceLock<(Vec<u8>, u64)> = std::sync::OnceLock::new();
        let (program, address) = PROGRAM.get_or_init(|| {
            let directory = tempfile::tempdir().unwrap();
            let program = build(directory.path(), &[]);
            (std::fs::read(&program).unwrap(), address_of(&program, "outer"))
        });
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(program).unwrap();
        // The header stays: without it there is nothing to read.
        let changes: Vec<(u64, u8)> =
            changes.iter().map(|(at, byte)| (64 + at.index(program.len() - 64) as u64, *byte)).collect();
        let cut_at = cut_at.map(|at| at.index(program.len()) as u64);
        names_in(&mut file, &changes, cut_at, &[0, *address, address + 4, 1 << 62]);
    }
}
