//! Drains the ring buffer of rare facts.

use std::os::fd::{AsFd, BorrowedFd};

use aya::maps::{MapData, RingBuf};
use collector_ebpf::event::{
    DEATH_OOM, DEATH_OOM_KNOWN, DEATH_SENT_BY_KERNEL, DEATH_SENT_BY_PROCESS, Death, EXEC, EXIT, Exec, Exit,
    FORK, Fork, Header, KINDS, NONE, REAP, RENAME, Reap, Rename,
};

use crate::input::{self, Comm, ExitStatus, Input, Sender};
use crate::units::{CpuTime, HostFacts, ProcessKey};

pub(super) struct EventReader {
    ring: RingBuf<MapData>,
    host: HostFacts,
    /// By `kind - 1`.
    pub(super) delivered: [u64; KINDS],
    /// Records of unknown kind or wrong length: an object that does not match this program.
    pub(super) malformed: u64,
}

impl EventReader {
    pub(super) fn new(ring: RingBuf<MapData>, host: HostFacts) -> Self {
        Self { ring, host, delivered: [0; KINDS], malformed: 0 }
    }

    /// Readable while something is in the buffer. The programs say when to look ([`super::slots`]).
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }

    /// Hands over what is in the buffer.
    pub(super) fn drain(&mut self, out: &mut dyn FnMut(Input)) {
        while let Some(record) = self.ring.next() {
            match decode(&record, self.host) {
                Some((kind, input)) => {
                    self.delivered[kind as usize - 1] += 1;
                    out(input);
                }
                None => self.malformed += 1,
            }
        }
    }
}

/// Copies a record out of bytes; `None` unless the length is exact.
fn read<T: Copy>(bytes: &[u8]) -> Option<T> {
    if bytes.len() != size_of::<T>() {
        return None;
    }
    // SAFETY: called only with the record types of `collector_ebpf::event` and their parts: plain integers and byte
    // arrays without padding, for which every bit pattern is valid. The length was checked, alignment is not needed.
    Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

fn decode(bytes: &[u8], host: HostFacts) -> Option<(u32, Input)> {
    let header: Header = read(bytes.get(..size_of::<Header>())?)?;
    let process = key(&header);
    let at_ns = header.at_ns;
    let input = match header.kind {
        FORK => {
            let fork: Fork = read(bytes)?;
            Input::Fork(input::Fork {
                child: process,
                parent: fork.parent,
                comm: Comm(fork.comm),
                pool: some(fork.pool),
                record: some(fork.slot),
                at_ns,
            })
        }
        EXEC => {
            let exec: Exec = read(bytes)?;
            Input::Exec(input::Exec { process, comm: Comm(exec.comm), by_thread: exec.by_thread != 0, at_ns })
        }
        RENAME => {
            let rename: Rename = read(bytes)?;
            Input::Rename(input::Rename { process, comm: Comm(rename.comm) })
        }
        EXIT => {
            let exit: Exit = read(bytes)?;
            Input::Exit(death(process, &exit.death, exit.cpu, host, at_ns))
        }
        REAP => {
            let reap: Reap = read(bytes)?;
            Input::Reap(input::Reap { process, cpu: Some(cpu(reap.cpu)), at_ns })
        }
        _ => return None,
    };
    Some((header.kind, input))
}

pub(super) fn some(number: u32) -> Option<u32> {
    (number != NONE).then_some(number)
}

pub(super) fn cpu(cpu: collector_ebpf::event::Cpu) -> CpuTime {
    CpuTime::from_total(cpu.runtime_ns, cpu.user_ns, cpu.system_ns)
}

fn key(header: &Header) -> ProcessKey {
    ProcessKey { pid: header.pid, start_ns: header.start_ns }
}

pub(super) fn death(
    process: ProcessKey,
    death: &Death,
    used: collector_ebpf::event::Cpu,
    host: HostFacts,
    at_ns: u64,
) -> input::Exit {
    let sender = if death.flags & DEATH_SENT_BY_PROCESS != 0 {
        Some(Sender::Process { pid: death.sender_pid, comm: Comm(death.sender_comm) })
    } else if death.flags & DEATH_SENT_BY_KERNEL != 0 {
        Some(Sender::Kernel)
    } else {
        None
    };
    input::Exit {
        process,
        status: ExitStatus::from_wait_status(death.wait_status),
        sender,
        oom_killed: (death.flags & DEATH_OOM_KNOWN != 0).then_some(death.flags & DEATH_OOM != 0),
        cpu: Some(cpu(used)),
        peak_rss_bytes: Some(death.peak_rss_pages.saturating_mul(host.page_size)),
        at_ns,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HOST: HostFacts = HostFacts { page_size: 4096, cpus: 2 };

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256), kind in 0u32..8) {
            let _ = decode(&bytes, HOST);
            let mut bytes = bytes;
            if bytes.len() >= 4 {
                bytes[..4].copy_from_slice(&kind.to_ne_bytes());
            }
            let _ = decode(&bytes, HOST);
        }
    }

    #[test]
    fn a_record_of_the_wrong_length_is_refused() {
        let mut bytes = vec![0u8; size_of::<Exit>()];
        bytes[..4].copy_from_slice(&EXIT.to_ne_bytes());
        assert!(decode(&bytes, HOST).is_some());
        bytes.pop();
        assert!(decode(&bytes, HOST).is_none());
    }
}
