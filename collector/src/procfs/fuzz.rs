//! Targets of [`crate::fuzz`]: what files of `/proc` and messages of the kernel are taken for.

use super::parse::io::Io;
use super::parse::schedstat::Schedstat;
use super::parse::stat::Stat;
use super::parse::statm::Statm;
use super::parse::{cgroup, cgroup2, maps, status};
use super::{connector, kallsyms, sockets};

/// Each file, as if the bytes were its own.
pub(crate) fn files(bytes: &[u8]) {
    if let Ok(stat) = Stat::parse(bytes) {
        let _ = (stat.task_state(), stat.is_over(), stat.is_kernel_thread(), stat.may_trace());
    }
    let _ = (Io::parse(bytes), Schedstat::parse(bytes), Statm::parse(bytes));
    let _ = (status::effective_uid(bytes), status::innermost_pid(bytes));
    let _ = (cgroup::path(bytes), cgroup::unified(bytes));
    let _ = (cgroup2::usage_usec(bytes), cgroup2::nr_descendants(bytes));
    let _ = cgroup2::pids(bytes, &mut Vec::new());
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let Some(region) = maps::region(line) else { continue };
        assert!(region.start < region.end);
        if let maps::Code::File { name, .. } = region.code {
            assert!(maps::path(name).len() <= name.len());
        }
    }
    let wanted = [0, 1, 0xffff_ffff_8100_0000, u64::MAX];
    if let Ok(symbols) = kallsyms::look_up(&wanted, bytes) {
        assert_eq!(symbols.len(), wanted.len());
        let before = |(symbol, address): (&Option<kallsyms::KernelSymbol>, &u64)| {
            symbol.as_ref().is_none_or(|symbol| symbol.start <= *address)
        };
        assert!(symbols.iter().zip(&wanted).all(before));
    }
}

/// Of this process.
pub(crate) fn own_files() -> Vec<Vec<u8>> {
    let own = ["stat", "statm", "status", "io", "schedstat", "cgroup", "maps"];
    let mut all: Vec<Vec<u8>> =
        own.iter().filter_map(|name| std::fs::read(format!("/proc/self/{name}")).ok()).collect();
    for file in &mut all {
        file.truncate(4096);
    }
    all.push(b"ffffffff81000000 T _stext\nffffffff81000100 t f\t[module]\n0 A zero\n".to_vec());
    all.push(b"usage_usec 1500\nuser_usec 1000\nsystem_usec 500\n".to_vec());
    all
}

/// Of the process connector, and of the listing of sockets with the number 7.
pub(crate) fn messages() -> Vec<Vec<u8>> {
    let words = |words: &[u32]| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>();
    // proc_cnevent of a fork and of an exit, linux/cn_proc.h; nlmsghdr and cn_msg before it.
    let event = |what: u32, union: &[u32]| {
        let body = words(&[&[what, 0, 5, 0], union].concat());
        let mut bytes = words(&[(36 + body.len()) as u32, 3, 0, 0, 1, 1, 9, 0, body.len() as u32]);
        bytes.extend(body);
        bytes
    };
    // nlmsghdr, unix_diag_msg, and an attribute with a name.
    let mut socket = words(&[40, 20 | 2 << 16, 7, 0, 1 | 1 << 8 | 10 << 16, 99, 0, 0, 8, 0]);
    socket[34] = 0;
    socket.extend(words(&[20, 3 | 2 << 16, 7, 0, 0]));
    vec![event(1, &[1, 1, 2, 2]), event(0x8000_0000, &[2, 2, 0, 17]), event(2, &[2, 2, 0, 0]), socket]
}

/// One message.
pub(crate) fn netlink(bytes: &[u8]) {
    let _ = connector::parse(bytes);
    let _ = sockets::parse(bytes, 7, &mut |socket| {
        // 108 bytes, of which escaping makes four each at most.
        assert!(socket.address.to_string().len() <= 512, "{}", socket.address);
    });
}
