//! What the netlink protocols that we speak have in common (`include/uapi/linux/netlink.h`).

use nix::errno::Errno;

/// Size of `struct nlmsghdr`.
pub(super) const HEADER: usize = 16;
/// Ends a listing; also what the process connector marks its messages with.
pub(super) const NLMSG_DONE: u16 = 3;

/// Integers at offsets; native byte order, because the kernel is this machine.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl Fields<'_> {
    /// As it stands there, e.g. an address.
    pub(super) fn array<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.0.get(at..at.checked_add(N)?)?.try_into().ok()
    }

    pub(super) fn u16(&self, at: usize) -> Option<u16> {
        Some(u16::from_ne_bytes(self.array(at)?))
    }

    /// In network byte order, as ports are.
    pub(super) fn be16(&self, at: usize) -> Option<u16> {
        Some(u16::from_be_bytes(self.array(at)?))
    }

    pub(super) fn u32(&self, at: usize) -> Option<u32> {
        Some(u32::from_ne_bytes(self.array(at)?))
    }

    pub(super) fn u64(&self, at: usize) -> Option<u64> {
        Some(u64::from_ne_bytes(self.array(at)?))
    }
}

/// What the system said.
pub(super) fn errno(error: &std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}
