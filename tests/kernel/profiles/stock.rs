//! What Debian ships, as it ships it, under load: whether stacks lead to where programs begin, and frames have their names.
//!
//! Programs of Debian are stripped: of their own functions they have the names that they export, and no others. So a frame
//! without a name is nobody's fault where no symbol covers its address, and unknown where one does. Which it is, is not taken
//! from the profile: `readelf` tells the symbols of a file, and of its debug information if that is installed. Nor is it taken
//! on trust that a stack is whole: its outermost frames have to be where `objdump` shows that the program calls the C library,
//! and in the function there that calls `main`.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::Value;

use super::raw::{Location, Mapping, Raw, Sample};
use super::{Pprof, cpu_seconds};
use crate::requests::{connect, get};
use crate::servers::postgresql::Cluster;
use crate::servers::{Server, command_in, directory_with, free_port};
use crate::support::{Collector, eventually};

/// Stacks that have to be whole, %.
const COMPLETE: f64 = 95.0;
/// Frames that may be unknown, of those that have symbols, %.
const UNKNOWN: f64 = 2.0;
/// Samples that there have to be, so that a percent is some.
const SAMPLES: u64 = 500;

/// What stands for the frames that are missing from a stack.
const TRUNCATED: &str = "[truncated]";

/// A function of a file, with its name.
type Symbol = (Range<u64>, String);

/// What a file says of itself.
struct Binary {
    build_id: String,
    /// Of its tables, and of its file of debug information if that is installed.
    symbols: Vec<Symbol>,
    has_debug: bool,
}

/// What a program of binutils prints.
fn printed(program: &str, arguments: &[&str], file: &Path) -> String {
    let output = Command::new(program).args(arguments).arg(file).output();
    let output = output.unwrap_or_else(|e| panic!("{program}: {e}; is the package binutils installed?"));
    assert!(output.status.success(), "{}: {}", file.display(), String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Functions of both tables of symbols that are in the file, and have a size: only these say which addresses they cover.
fn symbols(file: &Path) -> Vec<Symbol> {
    let text = printed("readelf", &["--symbols", "--wide"], file);
    let symbol = |line: &str| {
        // Num: Value Size Type Bind Vis Ndx Name
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, value, size, "FUNC" | "IFUNC", _, _, section, name, ..] = words[..] else { return None };
        let value = u64::from_str_radix(value, 16).ok()?;
        let size = match size.strip_prefix("0x") {
            Some(size) => u64::from_str_radix(size, 16).ok()?,
            None => size.parse().ok()?,
        };
        let name = name.split('@').next()?.to_owned();
        (section != "UND" && size > 0).then_some((value..value + size, name))
    };
    text.lines().filter_map(symbol).collect()
}

impl Binary {
    fn read(file: &Path) -> Self {
        let notes = printed("readelf", &["--notes", "--wide"], file);
        let build_id = notes.split("Build ID: ").nth(1).and_then(|rest| rest.split_whitespace().next());
        let build_id = build_id.expect("Debian gives one to each file").to_owned();
        let (first, rest) = build_id.split_at(2);
        let debug = Path::new("/usr/lib/debug/.build-id").join(first).join(format!("{rest}.debug"));
        let has_debug = debug.exists();
        let mut all = symbols(file);
        if has_debug {
            all.extend(symbols(&debug));
        }
        Self { build_id, symbols: all, has_debug }
    }

    /// Names that an address has: a function may have several.
    fn names(&self, address: u64) -> Vec<&str> {
        let covering = self.symbols.iter().filter(|(range, _)| range.contains(&address));
        covering.map(|(_, name)| name.as_str()).collect()
    }
}

/// Where a program calls the C library, which then calls `main`: in what it begins with, before the instruction that it never
/// gets to, as that call does not return. The address is that of the call's last byte.
fn start_of(program: &Path) -> u64 {
    let header = printed("readelf", &["--file-header"], program);
    let entry = header.split("Entry point address:").nth(1).unwrap().split_whitespace().next().unwrap();
    let entry = u64::from_str_radix(entry.strip_prefix("0x").unwrap(), 16).unwrap();
    let range = [format!("--start-address={entry}"), format!("--stop-address={}", entry + 64)];
    let code = printed("objdump", &["--disassemble", &range[0], &range[1]], program);
    let halt = code.lines().find(|line| line.trim_end().ends_with("\thlt")).expect("it never returns");
    u64::from_str_radix(halt.trim_start().split(':').next().unwrap(), 16).unwrap() - 1
}

/// What was found of a server, in samples and in frames of samples.
#[derive(Default)]
struct Found {
    samples: u64,
    lost: u64,
    complete: u64,
    truncated: u64,
    frames: u64,
    /// By what they are of.
    names: BTreeMap<&'static str, Names>,
    /// What is not as it should be, and how often that is found.
    wrong: BTreeMap<String, u64>,
}

impl Found {
    /// The most frequent of what is wrong.
    fn worst(&self) -> Vec<(&String, &u64)> {
        let mut wrong: Vec<_> = self.wrong.iter().collect();
        wrong.sort_by_key(|(_, times)| std::cmp::Reverse(**times));
        wrong.truncate(20);
        wrong
    }
}

/// Frames with a symbol.
#[derive(Debug, Default)]
struct Names {
    frames: u64,
    /// Without a name, or with one that is none of the symbol's.
    unknown: u64,
}

/// A profile with all that the test knows of its files.
struct Judge {
    raw: Raw,
    binaries: BTreeMap<String, Binary>,
    program: String,
    start: u64,
}

impl Judge {
    fn new(raw: Raw, program: &Path) -> Self {
        let paths = raw.mappings.values().map(|mapping| mapping.path.clone());
        let files = paths.filter(|path| path.starts_with('/'));
        let binaries = files.map(|path| (path.clone(), Binary::read(Path::new(&path)))).collect();
        Self { raw, binaries, start: start_of(program), program: program.to_str().unwrap().to_owned() }
    }

    fn mapping(&self, location: &Location) -> Option<&Mapping> {
        location.mapping.map(|id| &self.raw.mappings[&id])
    }

    /// Its outermost frames are of the function of the C library that calls `main`, and of what the program begins with.
    fn leads_to_start(&self, sample: &Sample) -> bool {
        let [.., caller, outermost] = sample.stack[..] else { return false };
        let (caller, outermost) = (&self.raw.locations[&caller], &self.raw.locations[&outermost]);
        let path = |location| self.mapping(location).map_or("", |mapping| mapping.path.as_str());
        path(outermost) == self.program
            && outermost.address == self.start
            && path(caller).ends_with("/libc.so.6")
            && self.binaries[path(caller)].names(caller.address).contains(&"__libc_start_main")
    }

    /// Counts a frame that was found so often.
    fn count(&self, location: &Location, times: u64, found: &mut Found) {
        found.frames += times;
        let mapping = self.mapping(location);
        let path = mapping.map_or("", |mapping| mapping.path.as_str());
        // The function's own name is the last, after those that were inlined into it.
        let name = location.names.last().map(String::as_str);
        let (of, wrong) = match (mapping, self.binaries.get(path)) {
            // Python tells all of its functions. Of one that is not known there is a word in brackets.
            (None, _) => ("python", name.is_none_or(|name| name == "[python]").then(|| "unknown".to_owned())),
            // All code of the kernel is in its table, and so is what it gives to processes.
            (Some(_), None) => ("kernel", name.is_none().then(|| "unknown".to_owned())),
            (Some(mapping), Some(binary)) => {
                let symbols = binary.names(location.address);
                let is_of =
                    |symbol: &&str| name.and_then(|n| n.split('.').next()) == symbol.split('.').next();
                match name {
                    None if symbols.is_empty() => {
                        // Whoever has the symbols can find them.
                        assert_eq!(mapping.build_id, binary.build_id, "{path}");
                        let range = mapping.start..mapping.limit;
                        assert!(range.contains(&location.address), "{location:x?} of {path}");
                        return;
                    }
                    // Lines are also of what has no symbol.
                    Some(_) if symbols.is_empty() && binary.has_debug => return,
                    None => ("files", Some(format!("unknown, not {symbols:?}"))),
                    // A part of a function has its name with a suffix as a symbol, and without one among the lines.
                    Some(_) if symbols.iter().any(is_of) => ("files", None),
                    Some(_) => ("files", Some(format!("not {symbols:?}"))),
                }
            }
        };
        let names = found.names.entry(of).or_default();
        names.frames += times;
        if let Some(wrong) = wrong {
            names.unknown += times;
            *found.wrong.entry(format!("{wrong}: {location:x?} of {path:?}")).or_default() += times;
        }
    }

    fn judge(&self) -> Found {
        let mut found = Found::default();
        for sample in &self.raw.samples {
            found.samples += sample.count;
            let is_mark = |id: &u32| self.raw.locations[id].names == [TRUNCATED];
            let marks = sample.stack.iter().filter(|id| is_mark(id)).count();
            found.truncated += sample.count * marks as u64;
            let complete = self.leads_to_start(sample);
            assert!(!complete || marks == 0, "it is whole, and said not to be");
            if complete {
                found.complete += sample.count;
            } else {
                let frames: Vec<String> = sample.stack.iter().map(|id| self.frame(*id)).collect();
                *found.wrong.entry(format!("incomplete: {}", frames.join(" < "))).or_default() +=
                    sample.count;
            }
            for id in sample.stack.iter().filter(|id| !is_mark(id)) {
                self.count(&self.raw.locations[id], sample.count, &mut found);
            }
        }
        found.lost = self.stated("samples lost: ");
        found
    }

    /// A number that the profile tells of itself, in a comment that begins like this; 0 without.
    fn stated(&self, begin: &str) -> u64 {
        let rest = self.raw.comments.iter().find_map(|comment| comment.strip_prefix(begin));
        rest.map_or(0, |rest| rest.split(' ').next().unwrap().parse().unwrap())
    }

    fn frame(&self, id: u32) -> String {
        let location = &self.raw.locations[&id];
        let path = self.mapping(location).map_or("", |mapping| mapping.path.as_str());
        match location.names.last() {
            Some(name) => name.clone(),
            None => format!("{path}+{:#x}", location.address),
        }
    }
}

/// Waits until workers have used some CPU time, which shows that they have work.
fn work(workers: &[Pid]) {
    let used = || workers.iter().map(|pid| cpu_seconds(*pid)).sum::<f64>();
    let before = used();
    eventually("they work", || (used() > before + 0.2).then_some(()));
}

/// Profiles the workers of a server, who have work before and after, and looks at each sample and frame. Returns the profile.
fn check(name: &str, collector: &Collector, server: &Server, workers: usize) -> Raw {
    let pool = collector.pool_of(server.pid(), workers);
    let pid = |worker: &Value| Pid::from_raw(worker["pid"].as_i64().unwrap() as i32);
    let pids: Vec<Pid> = pool["workers"].as_array().unwrap().iter().map(pid).collect();
    work(&pids);
    // Its name has a number if another server of the kind runs on this host.
    let pool = pool["name"].as_str().unwrap();
    let profile = Pprof::take(collector, &format!("profile?pool={pool}&seconds=5&hz=999"));
    work(&pids);
    let program = std::fs::read_link(format!("/proc/{}/exe", pids[0])).unwrap();
    let judge = Judge::new(Raw::parse(&profile.raw()), &program);
    let found = judge.judge();
    let percent = |part: u64, of: u64| part as f64 / of as f64 * 100.0;
    let complete = percent(found.complete, found.samples + found.lost);
    let all: u64 = found.names.values().map(|names| names.frames).sum();
    let unknown: u64 = found.names.values().map(|names| names.unknown).sum();
    println!(
        "| {name} | {} samples | {complete:.2} % complete | {} frames, {all} with symbols | {:.2} % unknown |",
        found.samples,
        found.frames,
        percent(unknown, all),
    );
    println!("{:?}", found.names);
    assert!(found.samples >= SAMPLES, "{} samples", found.samples);
    assert_eq!(judge.stated("samples truncated: "), found.truncated, "{:?}", judge.raw.comments);
    assert!(complete >= COMPLETE, "{complete} % complete: {:#?}", found.worst());
    // Of each of them: the kernel's frames are so many that they would hide what is wrong with others.
    for (of, names) in &found.names {
        let unknown = percent(names.unknown, names.frames);
        assert!(unknown <= UNKNOWN, "{unknown} % of {of} unknown: {:#?}", found.worst());
    }
    judge.raw
}

/// Clients of a web server; they leave by themselves if nobody ends them.
fn wrk(address: &str, arguments: &[&str]) -> Server {
    let mut command = Command::new("wrk");
    command.args(["-t1", "-c16", "-d30"]).args(arguments).arg(format!("http://{address}/"));
    Server::start_ended_by(Signal::SIGINT, &mut command)
}

#[test]
fn nginx_under_wrk() {
    let directory = directory_with(&[("index.html", &"Hello, hello. ".repeat(200))]);
    let (at, port) = (directory.path().display(), free_port());
    let text = format!(
        "worker_processes 2;\npid {at}/pid;\nerror_log {at}/error.log;\nevents {{}}\n\
         http {{ access_log {at}/access.log; gzip on; gzip_comp_level 1; gzip_types *;\n\
         server {{ listen 127.0.0.1:{port}; root {at}; }} }}\n"
    );
    std::fs::write(directory.path().join("nginx.conf"), text).unwrap();
    let mut command = command_in(directory.path(), "/usr/sbin/nginx", &["-g", "daemon off;", "-c"]);
    let nginx = Server::start(command.arg(directory.path().join("nginx.conf")));
    let address = format!("127.0.0.1:{port}");
    get(&mut connect(&address), "/");
    let collector = Collector::start(&["--source=ebpf"]);
    let _clients = wrk(&address, &["-H", "Accept-Encoding: gzip"]);
    check("nginx", &collector, &nginx, 2);
}

#[test]
fn postgresql_under_pgbench() {
    const CLIENTS: usize = 4;
    let cluster = Cluster::new();
    let server = cluster.start(&["synchronous_commit=off"]);
    cluster.wait_ready();
    let made = cluster.command("pgbench").args(["-i", "-q", "-s", "2", "postgres"]).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let collector = Collector::start(&["--source=ebpf"]);
    let clients = CLIENTS.to_string();
    let mut command = cluster.command("pgbench");
    let _clients =
        Server::start_ended_by(Signal::SIGINT, command.args(["-n", "-c", &clients, "-T", "30", "postgres"]));
    check("postgresql", &collector, &server, CLIENTS);
}

/// Takes its time in functions of these names. `weigh` is called by the interpreter's C code.
const APP: &str = "\
def weigh(n):
    weight = 0
    for i in range(10):
        weight += n * i % 7
    return weight

def rank():
    return sorted(range(1000), key=weigh)

def price():
    total = 0
    for i in range(20000):
        total += i * i % 7
    return total

def app(environ, start_response):
    body = b'%d %d' % (price(), rank()[0])
    start_response('200 OK', [('Content-Length', str(len(body)))])
    return [body]
";

#[test]
fn gunicorn_under_wrk() {
    let directory = directory_with(&[("app.py", APP)]);
    let bind = format!("127.0.0.1:{}", free_port());
    let mut command = command_in(directory.path(), "/usr/bin/gunicorn", &["-w", "2", "-b", &bind, "app:app"]);
    let gunicorn = Server::start(&mut command);
    get(&mut connect(&bind), "/");
    let collector = Collector::start(&["--source=ebpf"]);
    let _clients = wrk(&bind, &[]);
    let raw = check("gunicorn", &collector, &gunicorn, 2);
    let name = |id: &u32| raw.locations[id].names.last().map_or("", String::as_str);
    // Callers stand behind whom they call, by way of C code or without.
    let (mut all, mut inside) = (0, 0);
    for sample in &raw.samples {
        let frames: Vec<&str> = sample.stack.iter().map(name).collect();
        all += sample.count;
        for (function, callers) in
            [("weigh", &["rank", "app", "<module>"][..]), ("rank", &["app", "<module>"]), ("price", &["app"])]
        {
            let Some(at) = frames.iter().position(|frame| *frame == function) else { continue };
            let mut outside = frames[at..].iter();
            for caller in callers {
                assert!(outside.any(|frame| frame == caller), "{caller} of {function}: {frames:#?}");
            }
        }
        if frames.contains(&"app") {
            inside += sample.count;
        }
    }
    println!("{inside} of {all} samples in the application");
    assert!(inside * 2 > all, "{inside} of {all} samples in the application");
}
