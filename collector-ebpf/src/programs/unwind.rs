//! Callers of the code that a thread of a worker is in, frame by frame, by the rules that user space made of the modules
//! that its process has mapped ([`collector_ebpf::unwind`]).
//!
//! One frame costs looking up its rule, mostly one that is remembered, else two binary searches; and two words of the stack.
//! Of these many are read at once: reading user memory costs as much for 64 words as for two or three.

use core::hint::black_box;

use aya_ebpf::bindings::{BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP};
use aya_ebpf::helpers::generated::bpf_probe_read_user;
use collector_ebpf::sample::{
    CODE_UNKNOWN, COMPLETE, Code, KNOWN, Known, MAX_FRAMES, NO_WINDOW, SPACE_UNKNOWN, Space, WINDOW, Walk,
};
use collector_ebpf::unwind::{
    AT_RBP, AT_RSP, OUTERMOST, PLT, RBP, RSP, Rule, SAVED_AT_RBP, SIGNAL, SIGNAL_RBP, SIGNAL_RIP, SIGNAL_RSP,
};

use crate::kernel::{Task, copy, now, offset, peek};
use crate::sample::mixed;
use crate::{CODE, KNOWN_RULES, MODULE_ROWS, SAMPLING, SPACES, STRANGERS, WALKS};

/// Halvings until one of all ranges of code, or of 16 million rows, is left.
const CODE_STEPS: u32 = 16;
const ROW_STEPS: u32 = 24;

/// Looks up the address space of a process, whose thread runs. A child that has not called execve(2) has its parent's.
#[inline(always)]
pub(crate) fn space_of(task: Task, walk: *mut Walk) -> (u64, bool) {
    let mm: u64 = peek(task.0 as u64, offset!(task_mm));
    let (code, brk): (u64, u64) = (peek(mm, offset!(mm_start_code)), peek(mm, offset!(mm_start_brk)));
    let own = space_under(task.pid(), code, brk, walk);
    let known = if own.is_some() { own } else { space_under(task.parent_pid(), code, brk, walk) };
    let found = known.is_some();
    let (first, count) = known.unwrap_or_default();
    // SAFETY: callers pass a pointer into the array.
    unsafe {
        (*walk).first = first;
        (*walk).count = count;
        // Of one of which nothing could be told no more is known than of one that was not met.
        (*walk).flags = if count != 0 { 0 } else { u32::from(SPACE_UNKNOWN) };
        if !found {
            (*walk).python.interpreters = 0;
        }
    }
    // It is asked for all the same: it may map more.
    (code, own.is_some())
}

#[inline(always)]
fn space_under(pid: u32, code: u64, brk: u64, walk: *mut Walk) -> Option<(u32, u32)> {
    let space: *const Space = SPACES.get_ptr(pid)?;
    // SAFETY: pointers into the maps. What is copied of another space is not looked at.
    unsafe {
        copy(&raw mut (*walk).python, &raw const (*space).python);
        let of = (*space).start_code;
        let is_it = of == 0 || of == code && (*space).start_brk == brk;
        is_it.then_some(((*space).first, (*space).count))
    }
}

/// Asks user space for the address space of a process. Who is not heard asks again with the next sample.
#[inline(always)]
pub(crate) fn ask_for(pid: u32) {
    let Some(sampling) = SAMPLING.get_ptr_mut(0) else { return };
    // Copies and no reservation: before 6.13 the verifier loses sight of one among all that follows.
    let _ = STRANGERS.output(pid, u64::from(BPF_RB_NO_WAKEUP));
    // SAFETY: a pointer into the array.
    let waits = unsafe { &raw mut (*sampling).reader_waits };
    // After that, or it could look for what is there, and go to sleep, in between. More than one may wake it up, which costs but a
    // little.
    // SAFETY: an aligned integer of the array.
    if unsafe { waits.read_volatile() } != 0 && STRANGERS.output(pid, u64::from(BPF_RB_FORCE_WAKEUP)).is_ok()
    {
        // SAFETY: as above.
        unsafe { waits.write_volatile(0) };
    }
}

/// It is time to ask again for an address space that is known.
#[inline(always)]
pub(crate) fn may_ask_again(pid: u32) -> bool {
    // SAFETY: a pointer into the map; user space writes it.
    SPACES
        .get_ptr(pid)
        .is_none_or(|space: *const Space| now() >= unsafe { (&raw const (*space).again_ns).read_volatile() })
}

/// Goes through all frames from the one that the walk is at.
#[inline(always)]
pub(crate) fn unwind(which: u32) {
    for _ in 0..MAX_FRAMES {
        if step(which) == 0 {
            break;
        }
    }
}

/// Keeps one frame, and goes on to its caller. 0 if it has none, or it is not known. Global to the verifier, see
/// [`crate::requests`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn step(which: u32) -> u32 {
    let Some(walk) = WALKS.get_ptr_mut(which) else { return 0 };
    // SAFETY: a pointer into the array, which nobody else uses while this program runs; an index below the length.
    unsafe {
        let pc = (*walk).ip.wrapping_sub(u64::from((*walk).called));
        let frame = (*walk).user_frames as usize;
        // No program has code there (`TASK_SIZE_MAX`).
        if frame >= MAX_FRAMES || pc >> 47 != 0 {
            return 0;
        }
        (*walk).user[frame] = pc;
        (*walk).user_frames = frame as u32 + 1;
        (*walk).hash = mixed((*walk).hash, pc);
        let rule = rule_at(which, pc, (*walk).first, (*walk).count);
        if rule & NOWHERE != 0 {
            (*walk).flags |= u32::from(CODE_UNKNOWN);
        }
        let rule = Rule::decode(rule & !NOWHERE);
        let (sp, bp) = ((*walk).sp, (*walk).bp);
        let distance = u64::from(rule.offset) * 8;
        let mut called = 1;
        let mut caller_at = 0;
        let cfa = match rule.kind {
            RSP => sp.wrapping_add(distance),
            RBP => bp.wrapping_add(distance),
            PLT => sp.wrapping_add(if pc & 15 >= u64::from(rule.offset) { 16 } else { 8 }),
            AT_RBP => word(which, walk, bp.wrapping_sub(distance)),
            AT_RSP => word(which, walk, sp.wrapping_add(distance)).wrapping_add(8),
            SIGNAL => {
                called = 0;
                caller_at = sp.wrapping_add(SIGNAL_RIP);
                word(which, walk, sp.wrapping_add(SIGNAL_RSP))
            }
            OUTERMOST => {
                (*walk).flags |= u32::from(COMPLETE);
                return 0;
            }
            _ => return 0,
        };
        if called != 0 {
            // Stacks grow downwards: whoever calls has more of it.
            if cfa <= sp {
                return ended(walk, rule);
            }
            caller_at = cfa.wrapping_sub(8);
        }
        let caller = word(which, walk, caller_at);
        if rule.kind == SIGNAL {
            (*walk).bp = word(which, walk, sp.wrapping_add(SIGNAL_RBP));
        } else if rule.saved == SAVED_AT_RBP {
            (*walk).bp = word(which, walk, bp);
        } else if rule.saved != 0 {
            (*walk).bp = word(which, walk, cfa.wrapping_sub(u64::from(rule.saved) * 8));
        }
        if caller == 0 {
            return ended(walk, rule);
        }
        (*walk).ip = caller;
        (*walk).sp = cfa;
        (*walk).called = called;
    }
    1
}

/// A frame without caller. Where there are frame pointers, the outermost one has none that is saved (System V ABI for x86-64,
/// 3.4.1).
#[inline(always)]
fn ended(walk: *mut Walk, rule: Rule) -> u32 {
    // SAFETY: callers pass a pointer into the array.
    unsafe {
        if rule == Rule::FRAME_POINTER && (*walk).bp == 0 && (*walk).flags & u32::from(SPACE_UNKNOWN) == 0 {
            (*walk).flags |= u32::from(COMPLETE);
        }
    }
    0
}

/// In what [`look_up`] returns: the address is in no range of code.
const NOWHERE: u32 = 1 << 31;

/// A word of the stack that is looked at, which is above the stack pointer of the frame; 0 if it is not there.
#[inline(always)]
fn word(which: u32, walk: *mut Walk, address: u64) -> u64 {
    // SAFETY: callers pass a pointer into the array; the index is below the length.
    unsafe {
        let distance = address.wrapping_sub((*walk).window_at);
        if distance < (WINDOW * size_of::<u64>()) as u64 && distance.is_multiple_of(8) {
            return windowed(walk, distance);
        }
        move_window(which, address, (*walk).sp)
    }
}

/// The word at this distance from where the window begins.
#[inline(always)]
fn windowed(walk: *mut Walk, distance: u64) -> u64 {
    // A value of its own, of which the compiler does not know that it needs no mask: the verifier does not know it either.
    let index = black_box(distance) / 8 % WINDOW as u64;
    // SAFETY: callers pass a pointer into the array; the index is below the length.
    unsafe { (*walk).window[index as usize] }
}

/// The same of one that is not in the window, which is moved to where it is: from the stack pointer on, or a little below
/// the word, as what is saved is next to it. Global to the verifier.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn move_window(which: u32, address: u64, sp: u64) -> u64 {
    const BYTES: u64 = (WINDOW * size_of::<u64>()) as u64;
    let Some(walk) = WALKS.get_ptr_mut(which) else { return 0 };
    // SAFETY: a pointer into the array, which nobody else uses while this program runs.
    unsafe {
        if (*walk).alone != 0 {
            return read_user(address);
        }
        let above = address.wrapping_sub(sp);
        let from =
            if above < BYTES && above.is_multiple_of(8) { sp } else { address.wrapping_sub(BYTES / 4) };
        if bpf_probe_read_user((&raw mut (*walk).window).cast(), BYTES as u32, from as *const _) != 0 {
            // Near the end of the stack, or of no stack.
            (*walk).window_at = NO_WINDOW;
            (*walk).alone = 1;
            return read_user(address);
        }
        (*walk).window_at = from;
        windowed(walk, address.wrapping_sub(from))
    }
}

/// 8 bytes of the memory of who runs; 0 if they are not there, which the helper sees to: one value to the verifier.
#[inline(always)]
pub(crate) fn read_user(address: u64) -> u64 {
    let mut word = 0u64;
    // SAFETY: the helper checks the address, and writes 8 bytes.
    unsafe { bpf_probe_read_user((&raw mut word).cast(), size_of::<u64>() as u32, address as *const _) };
    word
}

/// The rule for an address of a space.
#[inline(always)]
fn rule_at(which: u32, pc: u64, first: u32, count: u32) -> u32 {
    let key = pc | u64::from(first) << 48;
    let place = mixed(0, key) >> 40 & (KNOWN as u64 - 1);
    let Some(known) = KNOWN_RULES.get_ptr_mut(which * KNOWN as u32 + place as u32) else { return 0 };
    let known: *mut Known = known;
    // SAFETY: a pointer into the array, of this CPU and of this kind of program.
    unsafe {
        if (*known).key == key {
            return (*known).rule;
        }
    }
    let rule = look_up(pc, first, count);
    // SAFETY: as above.
    unsafe {
        (*known).key = key;
        (*known).rule = rule;
    }
    rule
}

/// The same, by looking for it. Global to the verifier.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn look_up(pc: u64, first: u32, count: u32) -> u32 {
    // What nothing is known of has frame pointers, or so it is hoped: what was compiled just in time has.
    let unknown = Rule::FRAME_POINTER.encode();
    let nowhere = unknown | NOWHERE;
    let (mut low, mut length) = (first, count);
    for _ in 0..CODE_STEPS {
        if length <= 1 {
            break;
        }
        let half = length / 2;
        let Some(code) = CODE.get_ptr(low.wrapping_add(half)) else { return 0 };
        // SAFETY: a pointer into the array.
        if unsafe { (*code).start } <= pc {
            low = low.wrapping_add(half);
            length -= half;
        } else {
            length = half;
        }
    }
    if length == 0 {
        return nowhere;
    }
    let Some(code) = CODE.get_ptr(low) else { return 0 };
    // SAFETY: a pointer into the array; user space writes it before it tells of it.
    let Code { start, end, base, first_row, rows } = unsafe { *code };
    if pc < start || pc >= end {
        return nowhere;
    }
    if rows == 0 {
        return unknown;
    }
    let address = pc.wrapping_sub(base);
    let (mut low, mut length) = (first_row, rows);
    for _ in 0..ROW_STEPS {
        if length <= 1 {
            break;
        }
        let half = length / 2;
        let Some(row) = MODULE_ROWS.get_ptr(low.wrapping_add(half)) else { return 0 };
        // SAFETY: as above.
        if u64::from(unsafe { (*row).address }) <= address {
            low = low.wrapping_add(half);
            length -= half;
        } else {
            length = half;
        }
    }
    let Some(row) = MODULE_ROWS.get_ptr(low) else { return 0 };
    // SAFETY: as above.
    unsafe { if u64::from((*row).address) <= address { (*row).rule } else { 0 } }
}
