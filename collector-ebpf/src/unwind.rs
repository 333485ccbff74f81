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

/// A frame, by the registers that a thread has while it is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// `rip`
    pub ip: u64,
    /// `rsp`
    pub sp: u64,
    /// `rbp`
    pub bp: u64,
    /// It has called another: `ip` is behind the call.
    pub has_called: bool,
}

impl Frame {
    /// An address of the instruction that it is at.
    pub const fn pc(self) -> u64 {
        self.ip.wrapping_sub(self.has_called as u64)
    }
}

/// What there is behind a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// The one who called it, or whom a signal interrupted.
    Frame(Frame),
    /// Nobody: the stack is complete.
    Nobody,
    /// That cannot be told.
    Unknown,
}

impl Rule {
    /// The caller of a frame whose code has this rule, as the sampling programs find it. `read` gives 8 bytes of the memory of
    /// the thread, and 0 where there is none.
    pub fn caller(self, frame: Frame, mut read: impl FnMut(u64) -> u64) -> Caller {
        let Frame { sp, bp, .. } = frame;
        let distance = u64::from(self.offset) * 8;
        let cfa = match self.kind {
            RSP => sp.wrapping_add(distance),
            RBP => bp.wrapping_add(distance),
            PLT => sp.wrapping_add(if frame.pc() & 15 >= u64::from(self.offset) { 16 } else { 8 }),
            AT_RBP => read(bp.wrapping_sub(distance)),
            AT_RSP => read(sp.wrapping_add(distance)).wrapping_add(8),
            SIGNAL => {
                let mut at = |distance: u64| read(sp.wrapping_add(distance));
                let (ip, sp, bp) = (at(SIGNAL_RIP), at(SIGNAL_RSP), at(SIGNAL_RBP));
                return match ip {
                    0 => Caller::Unknown,
                    _ => Caller::Frame(Frame { ip, sp, bp, has_called: false }),
                };
            }
            OUTERMOST => return Caller::Nobody,
            _ => return Caller::Unknown,
        };
        // Stacks grow downwards: whoever calls has more of it.
        if cfa <= sp {
            return self.without_caller(bp);
        }
        let bp = match self.saved {
            0 => bp,
            SAVED_AT_RBP => read(bp),
            distance => read(cfa.wrapping_sub(u64::from(distance) * 8)),
        };
        match read(cfa.wrapping_sub(8)) {
            0 => self.without_caller(bp),
            ip => Caller::Frame(Frame { ip, sp: cfa, bp, has_called: true }),
        }
    }

    /// Where there are frame pointers, the outermost frame has none that is saved (System V ABI for x86-64, 3.4.1).
    fn without_caller(self, bp: u64) -> Caller {
        if self == Self::FRAME_POINTER && bp == 0 { Caller::Nobody } else { Caller::Unknown }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The words of a stack from 0x1000 on.
    fn check(rule: Rule, frame: Frame, stack: &[u64], expected: Caller) {
        let read = |address: u64| {
            let index = address.checked_sub(0x1000).map(|at| at as usize / 8);
            index.and_then(|index| stack.get(index).copied()).unwrap_or(0)
        };
        assert_eq!(rule.caller(frame, read), expected, "{rule:?}");
    }

    #[test]
    fn each_kind_of_rule_finds_its_caller() {
        let frame = Frame { ip: 0x40_0000, sp: 0x1000, bp: 0x1010, has_called: false };
        let caller = |ip, sp, bp| Caller::Frame(Frame { ip, sp, bp, has_called: true });
        let rule = |kind, offset, saved| Rule { kind, offset, saved };
        let stack = [0xa, 0xb, 0xc, 0xd, 0xe];
        check(rule(RSP, 1, 0), frame, &stack, caller(0xa, 0x1008, 0x1010));
        check(rule(RSP, 3, 2), frame, &stack, caller(0xc, 0x1018, 0xb));
        check(Rule::FRAME_POINTER, frame, &stack, caller(0xd, 0x1020, 0xc));
        check(rule(RBP, 3, SAVED_AT_RBP), frame, &stack, caller(0xe, 0x1028, 0xc));
        check(rule(PLT, 11, 0), frame, &stack, caller(0xa, 0x1008, 0x1010));
        let pushed = Frame { ip: 0x40_000b, ..frame };
        check(rule(PLT, 11, 0), pushed, &stack, caller(0xb, 0x1010, 0x1010));
        check(rule(AT_RBP, 2, 0), frame, &[0x1020, 0, 0, 0xd], caller(0xd, 0x1020, 0x1010));
        check(rule(AT_RSP, 1, 0), frame, &[0, 0x1018, 0, 0xd], caller(0xd, 0x1020, 0x1010));
        check(rule(OUTERMOST, 0, 0), frame, &stack, Caller::Nobody);
        check(Rule::UNKNOWN, frame, &stack, Caller::Unknown);
        let mut signal = [0; 22];
        signal[SIGNAL_RSP as usize / 8] = 0x9000;
        signal[SIGNAL_RIP as usize / 8] = 0x40_1234;
        signal[SIGNAL_RBP as usize / 8] = 0x9100;
        let interrupted = Frame { ip: 0x40_1234, sp: 0x9000, bp: 0x9100, has_called: false };
        check(rule(SIGNAL, 0, 0), frame, &signal, Caller::Frame(interrupted));
        assert_eq!(
            (interrupted.pc(), Frame { has_called: true, ..interrupted }.pc()),
            (0x40_1234, 0x40_1233)
        );
    }

    #[test]
    fn a_stack_ends_where_it_does_not_grow_or_has_nothing() {
        let frame = Frame { ip: 0x40_0000, sp: 0x1000, bp: 0, has_called: true };
        let rule = |kind, offset| Rule { kind, offset, saved: 0 };
        check(rule(RSP, 0), frame, &[1, 2, 3], Caller::Unknown);
        check(rule(AT_RBP, 1), frame, &[1, 2, 3], Caller::Unknown);
        check(rule(RSP, 1), frame, &[0, 2, 3], Caller::Unknown);
        check(rule(SIGNAL, 0), frame, &[1, 2, 3], Caller::Unknown);
        check(Rule::FRAME_POINTER, frame, &[1, 2, 3], Caller::Nobody);
        let outermost = Frame { bp: 0x1000, ..frame };
        check(Rule::FRAME_POINTER, outermost, &[0, 0, 3], Caller::Nobody);
        check(Rule::FRAME_POINTER, outermost, &[7, 0, 3], Caller::Unknown);
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(kind in 0..=SIGNAL, offset in 0..MAX_OFFSET, saved in 0..=SAVED_AT_RBP) {
            let rule = Rule { kind, offset, saved };
            prop_assert_eq!(Rule::decode(rule.encode()), rule);
        }

        #[test]
        fn no_rule_goes_down_a_stack_but_that_of_a_signal(rule: u32, ip: u64, sp: u64, bp: u64, word: u64) {
            let rule = Rule::decode(rule);
            let frame = Frame { ip, sp, bp, has_called: true };
            if let Caller::Frame(caller) = rule.caller(frame, |at| word.wrapping_mul(at | 1)) {
                prop_assert!(rule.kind == SIGNAL || caller.sp > sp);
            }
        }

        #[test]
        fn what_does_not_fit_is_unknown(kind in 0..=SIGNAL, offset in MAX_OFFSET.., saved in MAX_SAVED + 1..) {
            prop_assert_eq!(Rule::decode(Rule { kind, offset, saved: 0 }.encode()), Rule::UNKNOWN);
            prop_assert_eq!(Rule::decode(Rule { kind, offset: 0, saved }.encode()), Rule::UNKNOWN);
        }
    }
}
