//! What an exposition is put together in. Knows no format.
//!
//! A scrape of a thousand workers is ten thousand samples, each of them the same few pieces and a number. So pieces are
//! put together once, and copied in blocks of a fixed size with whatever stands behind them, which the next piece
//! overwrites: a few stores instead of a call for each piece.

use super::text::Value;

/// What is copied in one go. Most pieces are shorter; longer ones are copied by their length.
pub(super) const BLOCK: usize = 64;

/// No number is longer.
pub(super) const NUMBER: usize = 40;

/// An exposition under way. What stands behind its end are leftovers, to be overwritten.
#[derive(Debug, Default)]
pub struct Buffer {
    pub(super) bytes: Vec<u8>,
    pub(super) end: usize,
}

impl Buffer {
    /// Writes over `leftovers`, which saves the kernel from finding and clearing that memory again.
    pub fn over(leftovers: Vec<u8>) -> Self {
        Self { bytes: leftovers, end: 0 }
    }

    /// What was written.
    pub fn written(&self) -> &[u8] {
        &self.bytes[..self.end]
    }

    /// Takes back what was written.
    pub fn clear(&mut self) {
        self.end = 0;
    }

    /// What was written, and nothing else.
    pub fn into_written(mut self) -> Vec<u8> {
        self.bytes.truncate(self.end);
        self.bytes
    }

    /// Makes room for so many bytes more.
    #[inline]
    pub(super) fn reserve(&mut self, more: usize) {
        if self.bytes.len() - self.end < more {
            self.grow(more);
        }
    }

    /// All of the room is written to, hence counts as resident: large buffers grow in small steps, which the kernel
    /// makes by moving pages.
    #[cold]
    fn grow(&mut self, more: usize) {
        const DOUBLED_UP_TO: usize = 32 << 10;
        let needed = self.end + more;
        if needed > self.bytes.capacity() {
            let slack = (self.end / 8).max(self.end.min(DOUBLED_UP_TO));
            self.bytes.reserve_exact(needed + slack - self.bytes.len());
        }
        self.bytes.resize(self.bytes.capacity(), 0);
    }

    #[inline]
    pub(super) fn put(&mut self, bytes: &[u8]) {
        self.reserve(bytes.len());
        self.bytes[self.end..self.end + bytes.len()].copy_from_slice(bytes);
        self.end += bytes.len();
    }

    #[inline]
    pub(super) fn put_byte(&mut self, byte: u8) {
        self.reserve(1);
        self.bytes[self.end] = byte;
        self.end += 1;
    }

    #[inline]
    pub(super) fn put_number(&mut self, value: impl Value) {
        self.reserve(NUMBER);
        if let Some(place) = self.bytes[self.end..].first_chunk_mut() {
            self.end += value.write(place);
        }
    }

    /// Leaves room for a value and the end of the line.
    #[inline]
    pub(super) fn put_pieces<const N: usize>(&mut self, pieces: [Piece<'_>; N]) {
        let length: usize = pieces.iter().map(|piece| piece.length).sum();
        self.reserve(length + BLOCK + NUMBER + 1);
        for piece in pieces {
            piece.copy_to(&mut self.bytes[self.end..]);
            self.end += piece.length;
        }
    }

    /// A line of these pieces and a value.
    #[inline]
    pub(super) fn put_line<const N: usize>(&mut self, pieces: [Piece<'_>; N], value: impl Value) {
        self.put_pieces(pieces);
        if let Some(place) = self.bytes[self.end..].first_chunk_mut() {
            self.end += value.write(place);
        }
        self.bytes[self.end] = b'\n';
        self.end += 1;
    }
}

/// Bytes to be copied, with the leftovers behind them.
#[derive(Clone, Copy)]
pub(super) struct Piece<'a> {
    pub(super) padded: &'a [u8],
    pub(super) length: usize,
}

impl Piece<'_> {
    /// The labels of a series that has none.
    pub(super) const EMPTY: Piece<'static> = Piece { padded: &[], length: 0 };

    #[inline]
    fn copy_to(self, place: &mut [u8]) {
        if self.length <= BLOCK
            && let Some(from) = self.padded.first_chunk::<BLOCK>()
            && let Some(to) = place.first_chunk_mut::<BLOCK>()
        {
            *to = *from;
        } else {
            self.copy_by_length(place);
        }
    }

    /// Apart, or the compiler would make one copy of unknown length out of both.
    #[cold]
    #[inline(never)]
    fn copy_by_length(self, place: &mut [u8]) {
        place[..self.length].copy_from_slice(&self.padded[..self.length]);
    }
}

/// A piece that owns its bytes.
pub(super) struct OwnPiece(Buffer);

impl OwnPiece {
    pub(super) fn new(parts: &[&str]) -> Self {
        let mut buffer = Buffer::default();
        parts.iter().for_each(|part| buffer.put(part.as_bytes()));
        Self::of(buffer)
    }

    pub(super) fn of(mut buffer: Buffer) -> Self {
        buffer.reserve(BLOCK);
        Self(buffer)
    }

    #[inline]
    pub(super) fn get(&self) -> Piece<'_> {
        Piece { padded: &self.0.bytes, length: self.0.end }
    }
}
