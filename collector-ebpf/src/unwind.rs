//! How the caller of a function is found without frame pointers: one rule for each range of a module's code, made by user
//! space of its `.eh_frame` and looked up by the sampling programs.
//!
//! x86_64 only. The stack pointer after a return is the canonical frame address (CFA) of DWARF, and the return address is
//! in the 8 bytes below it (System V ABI for x86-64, 3.6). What else a caller needs to be unwound is its frame pointer
//! `rbp`, which is where it was or saved at a distance below the CFA.

/// From which code address on a rule holds, until the next row's. Rows of a module are ascending.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// Bytes from the module's lowest virtual address of its file.
    pub address: u32,
    /// [`Rule::encode`]
    pub rule: u32,
}

/// How to get from a frame to its caller's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// One of the constants of this module. Others count as [`UNKNOWN`].
    pub kind: u32,
    /// In units of 8 bytes, below [`MAX_OFFSET`]; what it means, the kind says.
    pub offset: u32,
    /// Where the caller's `rbp` is: 0 is in `rbp`, [`SAVED_AT_RBP`] is where `rbp` points to, another number is saved so
    /// many units of 8 bytes below the CFA.
    pub saved: u32,
}

/// Nothing is known of code here: the stack is cut off.
pub const UNKNOWN: u32 = 0;
/// Nobody called this code: the stack is complete. `_start`, and where new threads begin.
pub const OUTERMOST: u32 = 1;
/// The CFA is `rsp` plus the offset.
pub const RSP: u32 = 2;
/// The CFA is `rbp` plus the offset. With an offset of 2 and `rbp` saved 2 units below the CFA, a frame with a frame
/// pointer.
pub const RBP: u32 = 3;
/// An entry of a procedure linkage table: the CFA is `rsp` plus 8, and plus 8 more from the instruction on whose address
/// modulo 16 is the offset (in bytes, here).
pub const PLT: u32 = 4;
/// The CFA is in memory, the offset below `rbp`: a function that aligns its stack.
pub const AT_RBP: u32 = 5;
/// The CFA is in memory, the offset above `rsp`, plus 8: assembly that aligns its stack.
pub const AT_RSP: u32 = 6;
/// A signal was delivered: `rsp`, `rip` and `rbp` are at [`SIGNAL_RSP`], [`SIGNAL_RIP`] and [`SIGNAL_RBP`] above `rsp`
/// (`struct rt_sigframe` of the kernel's `arch/x86/include/asm/sigframe.h`).
pub const SIGNAL: u32 = 7;

/// Bytes above `rsp` on entry to the trampoline that returns from a signal: `uc.uc_mcontext.sp`.
pub const SIGNAL_RSP: u64 = 160;
/// The same for `uc.uc_mcontext.ip`.
pub const SIGNAL_RIP: u64 = 168;
/// The same for `uc.uc_mcontext.bp`.
pub const SIGNAL_RBP: u64 = 120;

/// Offsets are below it: 2 MiB.
pub const MAX_OFFSET: u32 = 1 << 18;
/// Distances of a saved `rbp` are below it.
pub const MAX_SAVED: u32 = SAVED_AT_RBP;
/// See [`Rule::saved`].
pub const SAVED_AT_RBP: u32 = (1 << 10) - 1;

impl Rule {
    /// Nothing is known.
    pub const UNKNOWN: Self = Self { kind: UNKNOWN, offset: 0, saved: 0 };
    /// A frame with a frame pointer, as code has that tells nothing of itself: what just-in-time compilers make, and Go.
    pub const FRAME_POINTER: Self = Self { kind: RBP, offset: 2, saved: 2 };

    /// In 32 bits: kind, offset, saved, from the highest on. A rule with a number that is too large is unknown.
    pub const fn encode(self) -> u32 {
        if self.offset >= MAX_OFFSET || self.saved > SAVED_AT_RBP || self.kind > SIGNAL {
            return 0;
        }
        self.kind << 28 | self.offset << 10 | self.saved
    }

    /// What is in 32 bits.
    #[inline(always)]
    pub const fn decode(rule: u32) -> Self {
        Self { kind: rule >> 28, offset: rule >> 10 & (MAX_OFFSET - 1), saved: rule & SAVED_AT_RBP }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(kind in 0..=SIGNAL, offset in 0..MAX_OFFSET, saved in 0..=SAVED_AT_RBP) {
            let rule = Rule { kind, offset, saved };
            prop_assert_eq!(Rule::decode(rule.encode()), rule);
        }

        #[test]
        fn what_does_not_fit_is_unknown(kind in 0..=SIGNAL, offset in MAX_OFFSET.., saved in MAX_SAVED + 1..) {
            prop_assert_eq!(Rule::decode(Rule { kind, offset, saved: 0 }.encode()), Rule::UNKNOWN);
            prop_assert_eq!(Rule::decode(Rule { kind, offset: 0, saved }.encode()), Rule::UNKNOWN);
        }
    }
}
