//! Names of addresses in the kernel, as the kernel prints them.

/// Addresses that are named in one run.
pub const NAMES: usize = 128;

/// Room for what is printed; the longest name of the kernel's own is some 60 bytes.
pub const NAME_BYTES: usize = 120;

/// An address, and what the kernel prints for it. 128 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Named {
    /// Set by user space; 0 ends the list.
    pub address: u64,
    /// As `function+0x1b/0x120`, with ` [module]` behind it if it is in one, ended by a zero byte
    /// (`Documentation/core-api/printk-formats.rst`, `%pS`). A number where nothing is known.
    pub text: [u8; NAME_BYTES],
}

const _: () = assert!(size_of::<Named>() == 128);
