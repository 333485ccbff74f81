//! Field offsets from BTF bytes, without building a type graph.
//!
//! All we want of the 5 MB in `/sys/kernel/btf/vmlinux` is some forty offsets and a dozen type ids, and a library that
//! builds every type costs more than all the rest of our start. One pass notes where each type starts, then members
//! are looked up in place. The
//! input is treated as hostile: every index is checked, nesting is bounded. Format: Documentation/bpf/btf.rst.

use thiserror::Error;

/// Why bytes are not BTF.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BtfError {
    /// The magic number is wrong (or of the other byte order).
    #[error("not BTF of this machine's byte order: it starts with {0:#06x}, not 0xeb9f")]
    Magic(u16),
    /// It ends early, or a section lies outside.
    #[error("BTF is cut off at byte {0}")]
    Truncated(usize),
    /// A kind newer than this reader, whose length is unknown.
    #[error("BTF type {id} has unknown kind {kind}")]
    Kind {
        /// Type id.
        id: usize,
        /// `BTF_KIND_…`
        kind: u32,
    },
}

/// Where a field lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Bytes from the start of the outermost struct.
    pub offset: u32,
    /// For an array its element size, else the size of the type where that is known, else 0.
    pub size: u32,
    /// Number of elements of an array.
    pub elements: Option<u32>,
    type_id: u32,
}

/// Parsed BTF, borrowing the bytes.
#[derive(Debug)]
pub struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Byte position in `types` by type id − 1.
    starts: Vec<u32>,
}

/// Kinds of types that can be looked up by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// `struct name`
    Struct = KIND_STRUCT,
    /// `typedef … name`; a tracepoint's is `btf_trace_…`.
    Typedef = KIND_TYPEDEF,
    /// A function; that of an iterator is `bpf_iter_…`.
    Function = KIND_FUNC,
}

const KIND_INT: u32 = 1;
const KIND_PTR: u32 = 2;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_TYPEDEF: u32 = 8;
const KIND_RESTRICT: u32 = 11;
const KIND_FUNC: u32 = 12;
const KIND_TYPE_TAG: u32 = 18;
const KIND_ENUM64: u32 = 19;

/// Anonymous structs inside one another; the kernel has three levels.
const MAX_DEPTH: u32 = 8;

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, BtfError> {
    let end = at.checked_add(4).ok_or(BtfError::Truncated(at))?;
    let word = bytes.get(at..end).and_then(|b| b.try_into().ok()).ok_or(BtfError::Truncated(at))?;
    Ok(u32::from_ne_bytes(word))
}

/// A bit for the first four letters of a name; all bits where there are fewer.
fn first_letters(name: &[u8]) -> u64 {
    match u32_at(name, 0) {
        Ok(letters) => 1 << (letters.wrapping_mul(0x9e37_79b9) >> 26),
        Err(_) => u64::MAX,
    }
}

impl<'a> Btf<'a> {
    /// Checks the header and finds where each type starts.
    pub fn parse(data: &'a [u8]) -> Result<Self, BtfError> {
        let magic = (u32_at(data, 0)? & 0xffff) as u16;
        let magic = if cfg!(target_endian = "big") { (u32_at(data, 0)? >> 16) as u16 } else { magic };
        if magic != 0xeb9f {
            return Err(BtfError::Magic(magic));
        }
        let header = u32_at(data, 4)? as usize;
        let section = |offset_at: usize, len_at: usize| {
            let start = header.checked_add(u32_at(data, offset_at)? as usize);
            let start = start.ok_or(BtfError::Truncated(offset_at))?;
            let end = start.checked_add(u32_at(data, len_at)? as usize).ok_or(BtfError::Truncated(len_at))?;
            data.get(start..end).ok_or(BtfError::Truncated(data.len()))
        };
        let types = section(8, 12)?;
        let strings = section(16, 20)?;
        let mut starts = Vec::with_capacity(types.len() / 24);
        let mut at = 0;
        while at < types.len() {
            starts.push(at as u32);
            let info = u32_at(types, at + 4)?;
            let (kind, members) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
            at += 12
                + match kind {
                    KIND_INT | 14 | 17 => 4,
                    KIND_PTR | 7 | KIND_TYPEDEF..=KIND_RESTRICT | KIND_FUNC | 16 | KIND_TYPE_TAG => 0,
                    KIND_ARRAY => 12,
                    KIND_STRUCT | KIND_UNION | 15 | KIND_ENUM64 => members * 12,
                    KIND_ENUM | 13 => members * 8,
                    _ => return Err(BtfError::Kind { id: starts.len(), kind }),
                };
        }
        if at != types.len() {
            return Err(BtfError::Truncated(types.len()));
        }
        Ok(Self { types, strings, starts })
    }

    /// Number of types.
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// There are no types.
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    fn name_is(&self, offset: u32, name: &str) -> bool {
        let rest = self.strings.get(offset as usize..).unwrap_or_default();
        rest.get(..name.len()) == Some(name.as_bytes()) && rest.get(name.len()) == Some(&0)
    }

    /// `(kind, vlen, kind_flag, size or type, position after the common part)`
    fn head(&self, id: u32) -> Option<(u32, usize, bool, u32, usize)> {
        let at = *self.starts.get(id.checked_sub(1)? as usize)? as usize;
        let info = u32_at(self.types, at + 4).ok()?;
        let size_or_type = u32_at(self.types, at + 8).ok()?;
        Some((info >> 24 & 0x1f, (info & 0xffff) as usize, info >> 31 == 1, size_or_type, at + 12))
    }

    /// Ids of the first type of each kind and name, in this order; one pass for all.
    pub fn find<const N: usize>(&self, wanted: [(Kind, &str); N]) -> [Option<u32>; N] {
        let mut found = [None; N];
        // There are some 100,000 types, most of another kind, and most of the others begin with other letters.
        let kinds = wanted.iter().fold(0u32, |kinds, (kind, _)| kinds | 1 << *kind as u32);
        let letters = wanted.iter().fold(0, |letters, (_, name)| letters | first_letters(name.as_bytes()));
        for (index, start) in self.starts.iter().enumerate() {
            let at = *start as usize;
            let (Ok(name), Ok(info)) = (u32_at(self.types, at), u32_at(self.types, at + 4)) else { break };
            let kind = info >> 24 & 0x1f;
            let its_name = self.strings.get(name as usize..).unwrap_or_default();
            if kinds >> kind & 1 == 0 || letters & first_letters(its_name) == 0 {
                continue;
            }
            for (slot, (of_kind, wanted)) in found.iter_mut().zip(wanted) {
                if slot.is_none() && kind == of_kind as u32 && self.name_is(name, wanted) {
                    *slot = Some(index as u32 + 1);
                }
            }
        }
        found
    }

    /// Follows typedefs and qualifiers.
    fn resolve(&self, mut id: u32) -> Option<u32> {
        for _ in 0..32 {
            match self.head(id)? {
                (KIND_TYPEDEF..=KIND_RESTRICT | KIND_TYPE_TAG, _, _, next, _) => id = next,
                _ => return Some(id),
            }
        }
        None
    }

    /// Looks up `a.b.c` from a struct; anonymous structs and unions are looked into.
    pub fn field(&self, struct_id: u32, path: &str) -> Option<Field> {
        let mut field = Field { offset: 0, size: 0, elements: None, type_id: struct_id };
        for name in path.split('.') {
            let inner = self.member(field.type_id, name, 0)?;
            field = Field { offset: field.offset.checked_add(inner.offset)?, ..inner };
        }
        Some(field)
    }

    /// Looks up a field of the elements of an array of structs.
    pub fn element_field(&self, array: Field, path: &str) -> Option<Field> {
        array.elements?;
        self.field(array.type_id, path)
    }

    fn member(&self, id: u32, name: &str, depth: u32) -> Option<Field> {
        if depth > MAX_DEPTH {
            return None;
        }
        let (kind, members, bitfields, _, at) = self.head(self.resolve(id)?)?;
        if kind != KIND_STRUCT && kind != KIND_UNION {
            return None;
        }
        for m in 0..members {
            let at = at + m * 12;
            let member_name = u32_at(self.types, at).ok()?;
            let type_id = u32_at(self.types, at + 4).ok()?;
            let offset = u32_at(self.types, at + 8).ok()?;
            let (bits, width) = if bitfields { (offset & 0xff_ffff, offset >> 24) } else { (offset, 0) };
            if self.name_is(member_name, name) {
                // The lowest bits of a byte are read with the byte.
                if bits % 8 != 0 || width != 0 && self.size_of(self.resolve(type_id)?) != 1 {
                    return None;
                }
                return Some(self.describe(type_id, bits / 8));
            }
            if self.name_is(member_name, "")
                && let Some(inner) = self.member(type_id, name, depth + 1)
            {
                return Some(Field { offset: inner.offset.checked_add(bits / 8)?, ..inner });
            }
        }
        None
    }

    fn describe(&self, type_id: u32, offset: u32) -> Field {
        let id = self.resolve(type_id).unwrap_or(type_id);
        match self.head(id) {
            Some((KIND_ARRAY, _, _, _, at)) => {
                let element = u32_at(self.types, at).ok().and_then(|id| self.resolve(id)).unwrap_or(0);
                let elements = u32_at(self.types, at + 8).ok();
                Field { offset, size: self.size_of(element), elements, type_id: element }
            }
            _ => Field { offset, size: self.size_of(id), elements: None, type_id: id },
        }
    }

    fn size_of(&self, id: u32) -> u32 {
        match self.head(id) {
            Some((KIND_INT | KIND_STRUCT | KIND_UNION | KIND_ENUM | KIND_ENUM64, _, _, size, _)) => size,
            Some((KIND_PTR, ..)) => size_of::<usize>() as u32,
            _ => 0,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// `struct outer { int a; struct { long b; }; int c[4]; }` with `int` and `long` types.
    fn sample() -> Vec<u8> {
        let strings = b"\0int\0long\0outer\0a\0b\0c\0";
        let name = |s: &str| {
            let needle: Vec<u8> = [b"\0", s.as_bytes(), b"\0"].concat();
            strings.windows(needle.len()).position(|w| w == needle).unwrap() as u32 + 1
        };
        let mut types: Vec<u32> = Vec::new();
        types.extend([name("int"), KIND_INT << 24, 4, 32]); // 1
        types.extend([name("long"), KIND_INT << 24, 8, 64]); // 2
        types.extend([0, KIND_STRUCT << 24 | 1, 8, name("b"), 2, 0]); // 3
        types.extend([0, KIND_ARRAY << 24, 0, 1, 1, 4]); // 4
        types.extend([name("outer"), KIND_STRUCT << 24 | 3, 32]);
        types.extend([name("a"), 1, 0, 0, 3, 64, name("c"), 4, 128]); // 5
        let mut bytes = Vec::new();
        for word in [0x0001_eb9f, 24, 0, types.len() as u32 * 4, types.len() as u32 * 4, strings.len() as u32]
        {
            bytes.extend(u32::to_ne_bytes(word));
        }
        for word in types {
            bytes.extend(u32::to_ne_bytes(word));
        }
        bytes.extend(strings);
        bytes
    }

    #[test]
    fn finds_plain_anonymous_and_array_members() {
        let bytes = sample();
        let btf = Btf::parse(&bytes).unwrap();
        let found = btf.find(["outer", "nobody", "oute", "outer ", "out"].map(|name| (Kind::Struct, name)));
        let [Some(outer), None, None, None, None] = found else { panic!("{found:?}") };
        assert_eq!(btf.field(outer, "a").map(|f| (f.offset, f.size)), Some((0, 4)));
        assert_eq!(btf.field(outer, "b").map(|f| (f.offset, f.size)), Some((8, 8)));
        assert_eq!(btf.field(outer, "c").map(|f| (f.offset, f.size, f.elements)), Some((16, 4, Some(4))));
        assert_eq!(btf.field(outer, "a.b"), None);
        assert_eq!(btf.field(outer, "d"), None);
    }

    #[test]
    fn refuses_what_is_cut_off_or_not_btf() {
        let bytes = sample();
        assert_eq!(Btf::parse(b"").unwrap_err(), BtfError::Truncated(0));
        assert_eq!(Btf::parse(b"\x7fELF").unwrap_err(), BtfError::Magic(0x457f));
        for len in 0..bytes.len() {
            assert!(Btf::parse(&bytes[..len]).is_err(), "{len}");
        }
    }

    proptest! {
        #[test]
        fn survives_any_change(at in 0usize..200, value: u8) {
            let mut bytes = sample();
            let at = at % bytes.len();
            bytes[at] = value;
            if let Ok(btf) = Btf::parse(&bytes)
                && let [Some(outer)] = btf.find([(Kind::Struct, "outer")])
            {
                for path in ["a", "b", "c", "a.b.c"] {
                    let _ = btf.field(outer, path);
                }
            }
        }
    }
}
