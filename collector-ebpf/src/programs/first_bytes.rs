//! What the first bytes of a message tell. They are read from where the current system call has them; none is kept.

use aya_ebpf::helpers::bpf_probe_read_user;
use collector_ebpf::request::{ANSWERED, BYTES, MESSAGE, NO_BYTES, OK_2XX, STATUS_LINE};
use collector_ebpf::schedule::SYSCALLS;

use crate::kernel::{Registers, Task, offset};

/// Where `struct msghdr` has `msg_iov`, on machines of 64 bits.
const MESSAGE_VECTORS: usize = 16;

/// How system calls by number name the bytes that they send, set by the loader.
#[unsafe(no_mangle)]
static SYSCALL_BYTES: [u8; SYSCALLS] = [NO_BYTES; SYSCALLS];

/// An HTTP/1 answer that is not the last to its request.
pub(crate) const INTERIM: u32 = 0xff;

/// The outcome that the bytes tell that the current system call sends.
#[inline(always)]
pub(crate) fn told_outcome(task: Task) -> u32 {
    // What sendfile(2) sends is not looked at, and mostly follows what was.
    named_bytes(task).map_or(ANSWERED, |(named, at)| outcome_at(named, at))
}

/// The bytes can be looked at that the current system call sends.
#[inline(always)]
pub(crate) fn tells_outcome(task: Task) -> bool {
    named_bytes(task).is_some()
}

/// Global to the verifier, see [`crate::requests`]. With little on its stack: newer kernels give whoever has more a stack
/// elsewhere, and then look at what is copied there for longer than the copy takes (`CONFIG_HARDENED_USERCOPY`).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn outcome_at(named: u32, at: u64) -> u32 {
    let Some(line) = first_bytes(named, at).and_then(user_value::<[u32; STATUS_LINE / 4]>) else {
        return ANSWERED;
    };
    // By words: the compiler would compare byte by byte.
    let [http, version, status] = line.map(u32::from_le);
    if http != u32::from_le_bytes(*b"HTTP")
        || version & 0xff_ffff != u32::from_le_bytes(*b"/1.\0")
        || status & 0xff != u32::from(b' ')
        || status == u32::from_le_bytes(*b" 101")
    {
        return ANSWERED;
    }
    match (status >> 8) as u8 {
        b'1' => INTERIM,
        class @ b'2'..=b'5' => OK_2XX + u32::from(class - b'2'),
        _ => ANSWERED,
    }
}

/// What a message asks for that was received.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asks {
    /// An answer, as far as can be seen.
    Something,
    /// Perhaps nothing.
    Perhaps,
    /// Nothing.
    Nothing,
}

/// What a message of this length asks for that the current task has received.
#[inline(always)]
pub(crate) fn asks(length: i32) -> Asks {
    let length = length as u32;
    if length as usize >= MESSAGES
        || (if length < 64 { FEW_WORDS[0] } else { FEW_WORDS[1] }) >> (length % 64) & 1 == 0
    {
        return Asks::Something;
    }
    match few_words(length) {
        NOTHING => Asks::Nothing,
        PERHAPS => Asks::Perhaps,
        _ => Asks::Something,
    }
}

/// Messages from this length on ask for something.
const MESSAGES: usize = 128;

/// Lengths of messages that may ask for nothing, as bits by length.
const FEW_WORDS: [u64; MESSAGES / 64] = {
    let mut lengths = bits(&CLEAR) | bits(&HANDSHAKES);
    // One frame, or two, or several window updates, also after the answer to settings.
    let frames = bits(&FRAMES);
    lengths |= frames | sums(frames, frames) | bits(&MORE_FRAMES);
    // One record, or two.
    let records = sums(CONTROL_RECORDS as u128, 1 << RECORD);
    lengths |= records | sums(records, records);
    [lengths as u64, (lengths >> 64) as u64]
};

/// Lengths of what is in a TLS record that may ask for nothing, as bits by length.
const CONTROL_RECORDS: u64 = sums(bits(&CONTROL), bits(&COVERS)) as u64;

/// Numbers as bits.
const fn bits(numbers: &[u32]) -> u128 {
    let (mut bits, mut index) = (0, 0);
    while index < numbers.len() {
        bits |= 1 << numbers[index];
        index += 1;
    }
    bits
}

/// The sums of one number each, as bits, as far as they are below the length of [`MESSAGES`].
const fn sums(one: u128, other: u128) -> u128 {
    let (mut sums, mut number) = (0, 0);
    while number < MESSAGES {
        if one >> number & 1 != 0 {
            sums |= other << number;
        }
        number += 1;
    }
    sums
}

/// Of messages in clear text: the end of a PostgreSQL session, WebSocket pongs that are empty or say what common libraries
/// ask for, a TLS alert, and the end of a FastCGI request.
const CLEAR: [u32; 7] = [5, PONG, PONG + 4, PONG + 8, PONG + 16, 7, END_OF_INPUT];
/// Of frames of HTTP/2 that ask for nothing.
const FRAMES: [u32; 4] = [9, 13, 14, 17];
const MORE_FRAMES: [u32; 2] = [9 + 13 + 13, 13 + 13 + 13];
/// Of what ends a TLS 1.2 handshake that resumes a session, with AES-GCM, ChaCha20, and AES-CBC with SHA-1 or SHA-256: a record of
/// one byte, and one of a message of 16. And of what ends one of TLS 1.3, with SHA-256 and SHA-384: the first record is for show
/// (RFC 8446 D.4).
const HANDSHAKES: [u32; 6] = [51, 43, 75, 91, 64, 80];
/// Of what is under a TLS record: an alert, a WebSocket pong, and frames of HTTP/2: the answer to settings, a window update or
/// a reset, the answer to a ping or a leave, an answer to settings with a window update, and two window updates.
const CONTROL: [u32; 8] = [ALERT, PONG, PONG + 4, 9, 13, 17, 22, 26];
const ALERT: u32 = 2;
/// Length of a WebSocket pong without content: two bytes and a mask (RFC 6455 section 5.2).
const PONG: u32 = 6;
/// What a cipher adds: of TLS 1.3, and of 1.2 with AES-GCM and with ChaCha20 (RFC 8446 section 5.2, RFC 5288, RFC 7905).
const COVERS: [u32; 3] = [17, 24, 16];
/// Length of the header of a TLS record (RFC 8446 section 5.1).
const RECORD: u32 = 5;
const RECORD_CHANGE_CIPHER: u8 = 20;
const RECORD_ALERT: u8 = 21;
const RECORD_DATA: u8 = 23;
/// Length of a FastCGI record without content, which is its header. php-fpm reads the one that ends its input when it has
/// answered.
const END_OF_INPUT: u32 = 8;
/// Length of the header of a frame of HTTP/2 (RFC 9113 section 4.1).
const FRAME: usize = 9;
/// Frames that are looked at of one message.
const FRAMES_AT_ONCE: usize = 3;

// In the order of which one counts for several.
const NOTHING: u32 = 0;
const PERHAPS: u32 = 1;
const SOMETHING: u32 = 2;

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn few_words(length: u32) -> u32 {
    let Some(at) = message(Task::current()) else { return SOMETHING };
    let Some(bytes) = user_value::<[u8; FRAME]>(at) else { return SOMETHING };
    let [kind, version, _, high, low, ..] = bytes;
    if kind == RECORD_CHANGE_CIPHER && version == 3 && high == 0 && low == 1 {
        // What follows it is the client's last word of a handshake, to which the server may have nothing more to say.
        return PERHAPS;
    }
    if let (true, first) = record([kind, version, high, low])
        && first <= length
    {
        let asks = record_asks(kind, first);
        if first == length {
            return asks;
        }
        let Some([kind, version, _, high, low]) = user_value::<[u8; 5]>(at + u64::from(first)) else {
            return SOMETHING;
        };
        let (true, second) = record([kind, version, high, low]) else { return SOMETHING };
        if first + second != length {
            return SOMETHING;
        }
        let other = record_asks(kind, second);
        return if asks > other { asks } else { other };
    }
    let nothing = match length {
        5 => bytes[0] == b'X' && bytes[1] | bytes[2] | bytes[3] == 0 && bytes[4] == 4,
        // An empty `FCGI_STDIN`.
        END_OF_INPUT => bytes[0] == 1 && bytes[1] == 5 && bytes[4] | bytes[5] == 0,
        _ => is_pong(&bytes, length) || are_frames(at, bytes, length),
    };
    if nothing { NOTHING } else { SOMETHING }
}

/// A WebSocket pong, in one frame with a mask.
#[inline(always)]
fn is_pong(bytes: &[u8; FRAME], length: u32) -> bool {
    bytes[0] == 0x8a && bytes[1] & 0x80 != 0 && u32::from(bytes[1] & 0x7f) + PONG == length
}

/// Frames of HTTP/2 that ask for nothing, and nothing else.
#[inline(always)]
fn are_frames(at: u64, first: [u8; FRAME], length: u32) -> bool {
    let (mut header, mut before) = (first, 0);
    for _ in 0..FRAMES_AT_ONCE {
        let frame = control_frame(&header);
        before += frame;
        if frame == 0 || before >= length {
            return frame != 0 && before == length;
        }
        let Some(next) = user_value(at + u64::from(before)) else { return false };
        header = next;
    }
    false
}

/// Whether this is the begin of a TLS record of an alert or of data, by its kind, the first byte of its version, and its
/// length; and how long it is with its header.
#[inline(always)]
fn record([kind, version, high, low]: [u8; 4]) -> (bool, u32) {
    let length = u32::from(high) << 8 | u32::from(low);
    (version == 3 && (kind == RECORD_ALERT || kind == RECORD_DATA), length + RECORD)
}

/// What is in a record of this kind and length, its header included, asks for. Data that is as long as an alert of TLS 1.3, which
/// is under a record of data, is taken for one: many servers answer a leave with their own.
#[inline(always)]
fn record_asks(kind: u8, length: u32) -> u32 {
    let inside = length - RECORD;
    if kind == RECORD_ALERT || inside == ALERT + COVERS[0] {
        NOTHING
    } else if inside < 64 && CONTROL_RECORDS >> inside & 1 != 0 {
        PERHAPS
    } else {
        SOMETHING
    }
}

/// The length of a frame of HTTP/2 that asks for nothing, by its header; 0 of another one.
#[inline(always)]
fn control_frame(header: &[u8; FRAME]) -> u32 {
    const ACK: u8 = 1;
    let acknowledges = header[4] & ACK != 0;
    let expected = match header[3] {
        // PRIORITY, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE
        2 => 5,
        3 | 8 => 4,
        4 if acknowledges => 0,
        6 if acknowledges => 8,
        7 => 8,
        _ => return 0,
    };
    let length = u32::from(header[0]) << 16 | u32::from(header[1]) << 8 | u32::from(header[2]);
    if length == expected { length + FRAME as u32 } else { 0 }
}

/// Where the first bytes are that the current system call sends or has received. `None` where it does not say them.
#[inline(always)]
fn message(task: Task) -> Option<u64> {
    let (named, at) = named_bytes(task)?;
    first_bytes(named, at)
}

/// How the current system call names the first bytes that it sends or has received, and its second argument. `None` where it
/// does not say them: sendfile(2), io_uring.
#[inline(always)]
fn named_bytes(task: Task) -> Option<(u32, u64)> {
    let registers = Registers::of(task)?;
    let number: i32 = registers.get(offset!(regs_syscall));
    let number = number as usize;
    if number >= SYSCALLS {
        return None;
    }
    let named = (&raw const SYSCALL_BYTES).cast::<u8>();
    // SAFETY: an index below the length; volatile, because the loader replaces the values.
    let named = unsafe { named.add(number).read_volatile() };
    (named != NO_BYTES).then(|| (u32::from(named), registers.get(offset!(regs_second))))
}

/// Where the first bytes are that were named so.
#[inline(always)]
fn first_bytes(named: u32, mut at: u64) -> Option<u64> {
    if named == u32::from(MESSAGE) {
        at = user_value::<u64>(at.wrapping_add(MESSAGE_VECTORS as u64))?;
    }
    if named != u32::from(BYTES) {
        at = user_value::<u64>(at)?;
    }
    Some(at)
}

#[inline(always)]
fn user_value<T>(at: u64) -> Option<T> {
    // SAFETY: the helper checks the address; what is read here are integers and arrays of them.
    unsafe { bpf_probe_read_user(at as *const T) }.ok()
}
