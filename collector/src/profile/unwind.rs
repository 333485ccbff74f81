//! The stack of a thread that does not run, followed from outside: by the rules of [`super::rules`], in a copy of its memory.
//!
//! What the sampling programs do in the kernel, where the thread cannot go on meanwhile. Here it can, so what is read may not
//! fit the registers that it begins with: a frame that is in no code ends the stack, and is not told.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use collector_ebpf::sample::MAX_FRAMES;
use collector_ebpf::unwind::{Caller, Frame, Rule};

/// Bytes of a stack that are copied at a time, from where it is looked at on.
const WINDOW: usize = 64 << 10;

/// How often that is done for one stack.
const MAX_WINDOWS: u32 = 8;

/// What was found of a stack.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unwound {
    /// Addresses of code, the innermost frame first.
    pub frames: Vec<u64>,
    /// The outermost frame is one of them.
    pub complete: bool,
}

/// Follows a stack. `rule_at` tells the rule for an address, `None` for what is no code; `read` gives 8 bytes of the memory, and
/// 0 where there is none.
pub fn unwind(
    first: Frame,
    mut rule_at: impl FnMut(u64) -> Option<Rule>,
    mut read: impl FnMut(u64) -> u64,
) -> Unwound {
    let mut unwound = Unwound::default();
    let mut frame = first;
    while unwound.frames.len() < MAX_FRAMES {
        let pc = frame.pc();
        let Some(rule) = rule_at(pc) else { break };
        unwound.frames.push(pc);
        match rule.caller(frame, &mut read) {
            Caller::Frame(caller) => frame = caller,
            Caller::Nobody => {
                unwound.complete = true;
                break;
            }
            Caller::Unknown => break,
        }
    }
    unwound
}

/// The memory around a stack: copied in few pieces, as each is a system call, and bounded.
#[derive(Debug)]
pub struct Window<'a> {
    memory: &'a File,
    start: u64,
    bytes: Vec<u8>,
    left: u32,
}

impl<'a> Window<'a> {
    /// Of `/proc/PID/mem`.
    pub fn new(memory: &'a File) -> Self {
        Self { memory, start: 0, bytes: Vec::new(), left: MAX_WINDOWS }
    }

    /// 8 bytes; 0 where there are none.
    pub fn read(&mut self, address: u64) -> u64 {
        self.copied(address).or_else(|| self.copy(address)).unwrap_or(0)
    }

    fn copied(&self, address: u64) -> Option<u64> {
        let at = usize::try_from(address.checked_sub(self.start)?).ok()?;
        let bytes = self.bytes.get(at..at.checked_add(size_of::<u64>())?)?;
        Some(u64::from_ne_bytes(bytes.try_into().ok()?))
    }

    fn copy(&mut self, address: u64) -> Option<u64> {
        self.left = self.left.checked_sub(1)?;
        self.start = address;
        self.bytes.resize(WINDOW, 0);
        let read = self.memory.read_at(&mut self.bytes, address).unwrap_or(0);
        self.bytes.truncate(read);
        self.copied(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    /// Code from 0x100 to 0x200, with frame pointers.
    fn rule_at(pc: u64) -> Option<Rule> {
        (0x100..0x200).contains(&pc).then_some(Rule::FRAME_POINTER)
    }

    fn first(bp: u64) -> Frame {
        Frame { ip: 0x110, sp: 0x1000, bp, has_called: false }
    }

    #[test]
    fn a_chain_of_frame_pointers_is_followed_to_its_end() {
        let stack = [0x1010, 0x121, 0, 0x131];
        let read = |address: u64| stack.get((address as usize - 0x1000) / 8).copied().unwrap_or(0);
        let unwound = unwind(first(0x1000), rule_at, read);
        // Its last frame has a caller by what is saved, but none that is code.
        assert_eq!(unwound, Unwound { frames: vec![0x110, 0x120, 0x130], complete: true });
    }

    #[test]
    fn what_is_no_code_is_not_told() {
        let unwound = unwind(first(0x1000), rule_at, |_| 0x1_0000);
        assert_eq!(unwound, Unwound { frames: vec![0x110], complete: false });
        assert_eq!(unwind(Frame { ip: 7, ..first(0) }, rule_at, |_| 0), Unwound::default());
    }

    #[test]
    fn no_stack_is_longer_than_may_be() {
        // Each frame is called by the next, 16 bytes above.
        let read = |address: u64| if address.is_multiple_of(16) { address + 16 } else { 0x150 };
        let unwound = unwind(first(0x1000), rule_at, read);
        assert_eq!((unwound.frames.len(), unwound.complete), (MAX_FRAMES, false));
    }

    #[test]
    fn memory_is_copied_piece_by_piece_and_not_without_end() {
        let mut file = tempfile::tempfile().unwrap();
        let words: Vec<u8> = (0..20_000u64).flat_map(u64::to_ne_bytes).collect();
        file.write_all(&words).unwrap();
        let mut window = Window::new(&file);
        assert_eq!([80, 88, 65_536 + 72].map(|address| window.read(address)), [10, 11, 8201]);
        assert_eq!(window.left, MAX_WINDOWS - 1);
        assert_eq!(window.read(65_536 + 80), 8202);
        assert_eq!(window.read(160_000), 0, "behind the end");
        for _ in 0..MAX_WINDOWS {
            window.read(0);
            window.read(100_000);
        }
        assert_eq!((window.left, window.read(8), window.read(100_000)), (0, 1, 0));
    }
}
