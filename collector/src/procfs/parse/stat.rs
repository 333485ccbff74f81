//! `/proc/PID/stat`, proc_pid_stat(5); printed by `do_task_stat` in `fs/proc/array.c`.

use super::{ParseError, Words};
use crate::input::{Comm, TaskState};

const FILE: &str = "stat";

/// `PF_KTHREAD` of `include/linux/sched.h`: a kernel thread.
const PF_KTHREAD: u64 = 0x0020_0000;

/// The fields we use, under their names in the man page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// (1) Process id.
    pub pid: u32,
    /// (2) Name. Kernel threads show up to 64 bytes, of which 15 are kept.
    pub comm: Comm,
    /// (3) State letter of the main thread.
    pub state: u8,
    /// (4) Parent's pid; 0 for a process without one in this pid namespace.
    pub ppid: u32,
    /// (9) `PF_…` bits.
    pub flags: u64,
    /// (10) Faults served without IO.
    pub minflt: u64,
    /// (12) Faults that needed IO.
    pub majflt: u64,
    /// (14) CPU in user mode, clock ticks, all threads, living and dead.
    pub utime: u64,
    /// (15) CPU in kernel mode, clock ticks, likewise. Since 2.6.32 `utime` + `stime` is the exact run time, rounded down.
    pub stime: u64,
    /// (20) Living threads; 0 when the kernel has let go of them.
    pub num_threads: u32,
    /// (22) Start, clock ticks since boot.
    pub starttime: u64,
    /// (23) Virtual memory, bytes; 0 without an address space.
    pub vsize: u64,
    /// (24) Resident memory, pages, inexact since 6.2 (see `statm`).
    pub rss: u64,
    /// (26) Start of the program text; 1 when we may not trace the process, 0 without an address space.
    pub startcode: u64,
    /// (47) Where the heap begins, since 3.3; 0 when we may not trace the process, and without an address space. `None`
    /// where the line ends before it.
    pub start_brk: Option<u64>,
    /// (52) Wait status, since 3.5; 0 when we may not trace the process. `None` where the line ends before it.
    pub exit_code: Option<u32>,
}

impl Stat {
    /// Parses the line. The name may hold any byte, so it ends at the last `)`: nothing after it can print one.
    pub fn parse(text: &[u8]) -> Result<Self, ParseError> {
        let missing = |field| ParseError::Missing { file: FILE, field };
        let open = text.iter().position(|b| *b == b'(').ok_or(missing("comm"))?;
        let close = text.iter().rposition(|b| *b == b')').filter(|at| *at > open).ok_or(missing("comm"))?;
        let mut head = Words::new(FILE, &text[..open]);
        let pid = head.u32("pid")?;
        let comm = Comm::from_bytes(&text[open + 1..close]);
        let rest = text[close + 1..].strip_prefix(b" ").ok_or(missing("state"))?;
        let mut words = Words::new(FILE, rest);
        let state = match words.word("state")? {
            [letter] => *letter,
            _ => return Err(ParseError::NotANumber { file: FILE, field: "state" }),
        };
        // Signed in the man page; a pid is never negative.
        let ppid = words.u32("ppid")?;
        words.skip(4, "flags")?;
        let flags = words.unsigned("flags")?;
        let minflt = words.unsigned("minflt")?;
        words.skip(1, "majflt")?;
        let majflt = words.unsigned("majflt")?;
        words.skip(1, "utime")?;
        let utime = words.unsigned("utime")?;
        let stime = words.unsigned("stime")?;
        words.skip(4, "num_threads")?;
        let num_threads = words.u32("num_threads")?;
        words.skip(1, "starttime")?;
        let starttime = words.unsigned("starttime")?;
        let vsize = words.unsigned("vsize")?;
        let rss = u64::try_from(words.signed("rss")?).unwrap_or(0);
        words.skip(1, "startcode")?;
        let startcode = words.unsigned("startcode")?;
        let start_brk = match words.skip(20, "start_brk") {
            Ok(()) => Some(words.unsigned("start_brk")?),
            Err(_) => None,
        };
        let exit_code = match words.skip(4, "exit_code") {
            // Printed as a signed number; a wait status has 16 bits.
            Ok(()) => Some(words.signed("exit_code")?.cast_unsigned() as u32),
            Err(_) => None,
        };
        Ok(Self {
            pid,
            comm,
            state,
            ppid,
            flags,
            minflt,
            majflt,
            utime,
            stime,
            num_threads,
            starttime,
            vsize,
            rss,
            startcode,
            start_brk,
            exit_code,
        })
    }

    /// The state as the rest of the program speaks of it.
    pub fn task_state(&self) -> TaskState {
        match self.state {
            b'R' => TaskState::Running,
            b'S' => TaskState::Sleeping,
            b'D' => TaskState::DiskSleep,
            b'T' | b't' => TaskState::Stopped,
            b'Z' | b'X' | b'x' => TaskState::Zombie,
            b'I' => TaskState::Idle,
            _ => TaskState::Other,
        }
    }

    /// The whole process ended. A main thread that ended before the others shows `Z` too, with more than one thread.
    pub fn is_over(&self) -> bool {
        self.task_state() == TaskState::Zombie && self.num_threads <= 1
    }

    /// It has no program and no address space of its own.
    pub fn is_kernel_thread(&self) -> bool {
        self.flags & PF_KTHREAD != 0
    }

    /// We may see what only a tracer may (`PTRACE_MODE_READ`); `None` for a process without an address space, which
    /// does not tell.
    pub fn may_trace(&self) -> Option<bool> {
        (self.vsize > 0).then_some(self.startcode != 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn print(stat: &Stat, comm: &[u8]) -> Vec<u8> {
        let mut text = format!("{} (", stat.pid).into_bytes();
        text.extend_from_slice(comm);
        let Stat {
            ppid,
            flags,
            minflt,
            majflt,
            utime,
            stime,
            num_threads,
            starttime,
            vsize,
            rss,
            startcode,
            ..
        } = stat;
        text.extend_from_slice(
            format!(
                ") {} {ppid} 7 7 0 -1 {flags} {minflt} 3 {majflt} 4 {utime} {stime} -5 6 20 0 {num_threads} 0 \
                 {starttime} {vsize} {rss} 18446744073709551615 {startcode}",
                char::from(stat.state)
            )
            .as_bytes(),
        );
        if let Some(brk) = stat.start_brk {
            text.extend_from_slice(" 0".repeat(20).as_bytes());
            text.extend_from_slice(format!(" {brk}").as_bytes());
        }
        if let Some(code) = stat.exit_code {
            text.extend_from_slice(format!(" 0 0 0 0 {code}").as_bytes());
        }
        text.push(b'\n');
        text
    }

    const LINE: &[u8] =
        b"1234 (a) b (c\n) S 1 1234 1234 0 -1 4194560 111 222 5 6 70 80 9 10 20 0 3 0 4242 8192000 \
        500 18446744073709551615 4096 1 1 0 0 0 0 0 0 0 0 17 1 0 0 0 0 0 0 0 0 0 0 0 0 0 9\n";

    #[test]
    fn the_name_ends_at_the_last_parenthesis() {
        let stat = Stat::parse(LINE).expect("well formed");
        assert_eq!(stat.comm.as_bytes(), b"a) b (c\n");
        assert_eq!((stat.pid, stat.ppid, stat.state), (1234, 1, b'S'));
        assert_eq!((stat.minflt, stat.majflt), (111, 5));
        assert_eq!((stat.utime, stat.stime), (70, 80));
        assert_eq!((stat.num_threads, stat.starttime), (3, 4242));
        assert_eq!((stat.vsize, stat.rss, stat.startcode), (8_192_000, 500, 4096));
        assert_eq!(stat.exit_code, Some(9));
        assert_eq!(stat.may_trace(), Some(true));
        assert!(!stat.is_kernel_thread());
    }

    #[test]
    fn a_cut_or_strange_line_names_the_field() {
        let check = |text: &[u8], expected: &str| {
            let error = Stat::parse(text).expect_err("malformed");
            assert!(error.to_string().contains(expected), "{error}");
        };
        check(b"", "comm");
        check(b"1 (a", "comm");
        check(b"1 )a(", "comm");
        check(b"1 (a)", "state");
        check(b"x (a) S 1", "pid");
        check(b"4294967296 (a) S 1", "pid");
        check(b"1 (a) SS 1", "state");
        check(b"1 (a) S", "ppid");
        check(b"1 (a) S -1 ", "ppid");
        check(b"1 (a) S 1 1 1 0 -1 0 1 1 1 1 5", "stime");
        check(b"1 (a) S 1 1 1 0 -1 0 1 1 1 1 99999999999999999999 1", "utime");
    }

    #[test]
    fn a_main_thread_that_ended_first_is_not_the_end() {
        let mut stat = Stat { state: b'Z', ..Stat::parse(LINE).expect("well formed") };
        assert!(!stat.is_over());
        stat.num_threads = 1;
        assert!(stat.is_over());
    }

    prop_compose! {
        fn any_stat()(
            (pid, ppid, flags, num_threads) in any::<(u32, u32, u32, u32)>(),
            state in prop::sample::select(b"RSDTtZXIx".to_vec()),
            (minflt, majflt, utime, stime, starttime, vsize, startcode) in any::<(u64, u64, u64, u64, u64, u64, u64)>(),
            rss in 0..=i64::MAX.cast_unsigned(),
            end in prop::option::of((any::<u64>(), prop::option::of(any::<u16>().prop_map(u32::from)))),
        ) -> Stat {
            let (start_brk, exit_code) = end.map_or((None, None), |(brk, code)| (Some(brk), code));
            let (flags, comm) = (u64::from(flags), Comm::default());
            Stat { pid, comm, state, ppid, flags, minflt, majflt, utime, stime, num_threads, starttime, vsize, rss,
                startcode, start_brk, exit_code }
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_parses_back(stat in any_stat(), comm in prop::collection::vec(1u8.., 0..64)) {
            let expected = Stat { comm: Comm::from_bytes(&comm), ..stat };
            prop_assert_eq!(Stat::parse(&print(&stat, &comm)), Ok(expected));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
            let _ = Stat::parse(&bytes);
        }

        #[test]
        fn damaged_lines_never_panic(at in 0..LINE.len(), byte in any::<u8>(), end in 0..LINE.len()) {
            let mut text = LINE.to_vec();
            text[at] = byte;
            let _ = Stat::parse(&text);
            let _ = Stat::parse(&text[..end]);
        }
    }
}
