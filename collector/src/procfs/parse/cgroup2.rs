//! Files of a control group of version 2 (`Documentation/admin-guide/cgroup-v2.rst`).

use super::{line, unsigned};
use crate::units::Pid;

/// `usage_usec` of `cpu.stat`: CPU time that was charged to the cgroup and those below it, µs rounded down.
/// There with the cpu controller and without it.
pub fn usage_usec(text: &[u8]) -> Option<u64> {
    unsigned(line(text, b"usage_usec ")?)
}

/// `nr_descendants` of `cgroup.stat`: living cgroups below it.
pub fn nr_descendants(text: &[u8]) -> Option<u64> {
    unsigned(line(text, b"nr_descendants ")?)
}

/// Adds the pids of `cgroup.procs`, one a line. 0 stands for a process outside our pid namespace. False for
/// anything else than pids.
pub fn pids(text: &[u8], out: &mut Vec<Pid>) -> bool {
    let lines = text.split(|b| *b == b'\n').filter(|line| !line.is_empty());
    for line in lines {
        let Some(pid) = unsigned(line).and_then(|pid| Pid::try_from(pid).ok()) else { return false };
        out.push(pid);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn malformed_beside_well_formed() {
        let text = b"usage_usec 232189007\nuser_usec 200080102\nsystem_usec 32108905\n";
        assert_eq!(usage_usec(text), Some(232_189_007));
        for wrong in ["", "usage_usec", "usage_usec \n", "usage_usec -1\n", "usage_usec_x 3\n"] {
            assert_eq!(usage_usec(wrong.as_bytes()), None, "{wrong:?}");
        }
        assert_eq!(nr_descendants(b"nr_descendants 2\nnr_dying_descendants 7\n"), Some(2));
        assert_eq!(nr_descendants(b"nr_dying_descendants 7\n"), None);

        let read = |text: &str| {
            let mut out = Vec::new();
            pids(text.as_bytes(), &mut out).then_some(out)
        };
        assert_eq!(read("1\n0\n4194304\n"), Some(vec![1, 0, 4_194_304]));
        assert_eq!(read(""), Some(vec![]));
        for wrong in ["-1\n", "1 2\n", "x\n", "4294967296\n"] {
            assert_eq!(read(wrong), None, "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            let _ = (usage_usec(&bytes), nr_descendants(&bytes), pids(&bytes, &mut Vec::new()));
        }
    }
}
