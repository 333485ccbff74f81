//! The parsers and decoders that we write ourselves, each as a function of bytes: for the targets of `tests/fuzz`, and for
//! the test here that runs the same without a fuzzer.
//!
//! A target must come back from any bytes, soon and without much memory, and asserts what must be true of what it got.

use crate::config::file;
use crate::kernel::btf::Btf;
use crate::kernel::offsets;
use crate::worker::matcher::{self, Facts};
use crate::worker::recognize;
use crate::{procfs, profile};

#[cfg(test)]
mod tests;

/// One of them.
#[derive(Debug)]
pub struct Target {
    /// As the binary of `tests/fuzz` is called.
    pub name: &'static str,
    /// Takes bytes as they come.
    pub run: fn(&[u8]),
    /// What is real, of this machine or as it was met, to begin with. None where this machine has none of it.
    pub inputs: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub const TARGETS: [Target; 11] = [
    Target { name: "elf", run: profile::fuzz::elf, inputs: profile::fuzz::programs },
    Target { name: "tables", run: profile::fuzz::tables, inputs: profile::fuzz::programs },
    Target { name: "eh_frame", run: profile::fuzz::eh_frame, inputs: profile::fuzz::frames },
    Target { name: "perf_map", run: profile::fuzz::perf_map, inputs: profile::fuzz::perf_maps },
    Target { name: "python", run: profile::fuzz::python, inputs: profile::fuzz::objects },
    Target { name: "names", run: profile::fuzz::names, inputs: profile::fuzz::mangled },
    Target { name: "procfs", run: procfs::fuzz::files, inputs: procfs::fuzz::own_files },
    Target { name: "netlink", run: procfs::fuzz::netlink, inputs: procfs::fuzz::messages },
    Target { name: "titles", run: titles, inputs: titles_met },
    Target { name: "config", run: config, inputs: configs },
    Target { name: "btf", run: btf, inputs: btfs },
];

/// Command lines and titles, of a master and of its child.
fn titles(bytes: &[u8]) {
    let cut = |bytes: &'_ [u8]| bytes[..bytes.len().min(15)].to_vec();
    let (first, second) = bytes.split_at(bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len()));
    let second = second.strip_prefix(b"\n").unwrap_or(second);
    let (first_comm, second_comm) = (cut(first), cut(second));
    let facts =
        |comm, cmdline| Facts { comm, exe: Some(cmdline), cmdline: Some(cmdline), ..Facts::default() };
    let (master, child) = (facts(&first_comm, first), facts(&second_comm, second));
    let _ = recognize::master(&master);
    let _ = recognize::may_work(&master, &child);
    let _ = (recognize::starts_strangers(&master), recognize::forks_for_its_parent(&master));
    let _ = (recognize::is_named_after_workers(&master), recognize::pool_name(&master));
    let program = recognize::program_of(&master).unwrap_or_default();
    let joined = matcher::joined(Some(first));
    assert!(joined.len() <= first.len() + 1);
    let _ = matcher::label_text(&joined);
    for program in [&*String::from_utf8_lossy(&program), "nginx", "php-fpm", "gunicorn", "postgres", "uwsgi"]
    {
        let _ = recognize::child_role(program, &child);
        let _ = recognize::size_from_config(program, &String::from_utf8_lossy(second));
    }
}

fn titles_met() -> Vec<Vec<u8>> {
    let met: [&[u8]; 6] = [
        b"nginx: master process /usr/sbin/nginx -g daemon on;\nnginx: worker process",
        b"php-fpm: master process (/etc/php/8.2/fpm/php-fpm.conf)\npm.max_children = 5\n[www]\nlisten = 9000",
        b"/usr/bin/python3\0/usr/bin/gunicorn\0--workers\x004\0app:app\0\ngunicorn: worker [app:app]",
        b"postgres: 15/main: checkpointer\npostgres: web app [local] idle",
        b"nginx: master process\nworker_processes 4;\nevents { worker_connections 768; }",
        b"puma 5.6.5 (tcp://0.0.0.0:9292) [app]\npuma: cluster worker 0: 4711 [app]",
    ];
    met.map(<[u8]>::to_vec).to_vec()
}

fn config(bytes: &[u8]) {
    let _ = file::parse(&String::from_utf8_lossy(bytes), "fuzzed");
}

fn configs() -> Vec<Vec<u8>> {
    let all: [&[u8]; 2] = [
        b"interval: 1s\nlimits: {pools: 10, workers_per_pool: 100, exits: 50}\nstuck_after: 30s\n",
        b"zero_config: false\npools:\n- name: web-${site}\n  match: {comm: [nginx], cmdline: 'site=(?<site>[a-z]+)', uid: [www-data, 33]}\n  parent: {exe: /usr/sbin/nginx}\n  size: 4\n  interval: 250ms\n",
    ];
    all.map(<[u8]>::to_vec).to_vec()
}

fn btf(bytes: &[u8]) {
    if let Ok(btf) = Btf::parse(bytes) {
        let _ = offsets::resolve(&btf, None);
    }
}

/// That of one of the kernel's modules, which is small; that of the kernel has some MB.
fn btfs() -> Vec<Vec<u8>> {
    let Ok(all) = std::fs::read_dir("/sys/kernel/btf") else { return Vec::new() };
    let all = all.filter_map(|entry| Some((entry.as_ref().ok()?.metadata().ok()?.len(), entry.ok()?.path())));
    let smallest = all.min().and_then(|(_, path)| std::fs::read(path).ok());
    smallest.into_iter().collect()
}
