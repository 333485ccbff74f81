use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::process::Command;
use std::sync::LazyLock;

use collector_ebpf::unwind::{
    AT_RBP, AT_RSP, MAX_OFFSET, OUTERMOST, PLT, RBP, RSP, Rule, SAVED_AT_RBP, SIGNAL,
};
use proptest::prelude::*;

use super::*;

/// Where the sections that the tests write are loaded; code is from the page on.
const FRAMES_AT: u64 = 0x10_0000;
const CODE: u64 = 0x1000;

/// What a C compiler has in common for all its functions: the CFA is `rsp` + 8, the return address 8 below it.
const ON_ENTRY: &[u8] = &[DEF_CFA, 7, 8, OFFSET | 16, 1];

const ADVANCE: u8 = 0x40;
const OFFSET: u8 = 0x80;
const RESTORE: u8 = 0xc0;
const UNDEFINED: u8 = 0x07;
const SAME_VALUE: u8 = 0x08;
const REGISTER: u8 = 0x09;
const REMEMBER_STATE: u8 = 0x0a;
const RESTORE_STATE: u8 = 0x0b;
const DEF_CFA: u8 = 0x0c;
const DEF_CFA_REGISTER: u8 = 0x0d;
const DEF_CFA_OFFSET: u8 = 0x0e;
const DEF_CFA_EXPRESSION: u8 = 0x0f;
const EXPRESSION: u8 = 0x10;
const BREG6: u8 = 0x76;
const BREG7: u8 = 0x77;
const DEREF: u8 = 0x06;
const PLUS_UCONST: u8 = 0x23;

/// An `.eh_frame` that is written.
#[derive(Clone, Default)]
struct Written(Vec<u8>);

impl Written {
    fn new(augmentation: &str, instructions: &[u8]) -> Self {
        let mut written = Self::default();
        written.common(augmentation, instructions);
        written
    }

    fn entry(&mut self, body: &[u8]) {
        let size = body.len().next_multiple_of(4);
        self.0.extend_from_slice(&u32::try_from(size).unwrap().to_le_bytes());
        self.0.extend_from_slice(body);
        self.0.resize(self.0.len() + size - body.len(), 0);
    }

    /// Instructions in common, at the begin of the section: with the alignments -8 and 1, and addresses of 4 bytes that
    /// count from where they stand.
    fn common(&mut self, augmentation: &str, instructions: &[u8]) {
        let mut body = vec![0, 0, 0, 0, 1];
        body.extend_from_slice(augmentation.as_bytes());
        body.extend_from_slice(&[0, 1, 0x78, 16, 1, 0x1b]);
        body.extend_from_slice(instructions);
        self.entry(&body);
    }

    fn function(mut self, start: u64, size: u32, instructions: &[u8]) -> Self {
        let at = self.0.len() + 4;
        let mut body = u32::try_from(at).unwrap().to_le_bytes().to_vec();
        body.extend_from_slice(&(start.wrapping_sub(FRAMES_AT + at as u64 + 4) as u32).to_le_bytes());
        body.extend_from_slice(&size.to_le_bytes());
        body.push(0);
        body.extend_from_slice(instructions);
        self.entry(&body);
        self
    }

    fn table(&self) -> Table {
        let segment = Segment { address: CODE, file_offset: 0, size: 0xf_0000 };
        let frames = Frames { address: FRAMES_AT, bytes: &self.0 };
        cfi::table(frames, 0, &[segment]).expect("within limits")
    }

    fn rules(&self) -> Vec<(u64, Rule)> {
        self.table().rows.iter().map(|row| (u64::from(row.address), Rule::decode(row.rule))).collect()
    }
}

fn rule(kind: u32, offset: u32, saved: u32) -> Rule {
    Rule { kind, offset, saved }
}

/// The rules of a function of 100 bytes, addresses from its begin.
fn check_with(augmentation: &str, instructions: &[u8], expected: &[(u64, Rule)]) {
    let written = Written::new(augmentation, ON_ENTRY).function(CODE, 100, instructions);
    let mut rules: Vec<_> = written.rules().into_iter().map(|(at, rule)| (at - CODE, rule)).collect();
    // What follows is unknown, which needs no row if it was before.
    rules.pop_if(|(at, rule)| *at == 100 && *rule == Rule::UNKNOWN);
    assert_eq!(rules, expected, "{instructions:x?}");
}

fn check(instructions: &[u8], expected: &[(u64, Rule)]) {
    check_with("zR", instructions, expected);
}

#[test]
fn the_stack_pointer_is_followed_through_pushes() {
    check(&[], &[(0, rule(RSP, 1, 0))]);
    let pushes = [ADVANCE | 1, DEF_CFA_OFFSET, 16, OFFSET | 6, 2, ADVANCE | 9, DEF_CFA_OFFSET, 0x80, 0x02];
    check(&pushes, &[(0, rule(RSP, 1, 0)), (1, rule(RSP, 2, 2)), (10, rule(RSP, 32, 2))]);
    // Of other registers, nothing is said.
    check(&[ADVANCE | 1, OFFSET | 3, 2, ADVANCE | 1, SAME_VALUE, 12], &[(0, rule(RSP, 1, 0))]);
}

#[test]
fn a_frame_pointer_is_set_and_given_back() {
    let instructions = [
        &[ADVANCE | 1, DEF_CFA_OFFSET, 16, OFFSET | 6, 2, ADVANCE | 3, DEF_CFA_REGISTER, 6][..],
        &[ADVANCE | 40, REMEMBER_STATE, DEF_CFA, 7, 8, RESTORE | 6, ADVANCE | 1, RESTORE_STATE],
    ];
    let expected = [
        (0, rule(RSP, 1, 0)),
        (1, rule(RSP, 2, 2)),
        (4, Rule::FRAME_POINTER),
        (44, rule(RSP, 1, 0)),
        (45, Rule::FRAME_POINTER),
    ];
    check(&instructions.concat(), &expected);
}

#[test]
fn a_function_without_a_caller_is_the_outermost() {
    check(&[UNDEFINED, 16], &[(0, rule(OUTERMOST, 0, 0))]);
    check(&[UNDEFINED, 16, DEF_CFA, 0, 8], &[(0, rule(OUTERMOST, 0, 0))]);
    check(&[UNDEFINED, 6], &[(0, rule(RSP, 1, 0))]);
}

#[test]
fn the_frame_of_a_signal_is_known_by_all_it_says() {
    const CFA: &[u8] = &[DEF_CFA_EXPRESSION, 4, BREG7, 0xa0, 0x01, DEREF];
    const SAVED: &[u8] = &[
        EXPRESSION, 16, 3, BREG7, 0xa8, 0x01, EXPRESSION, 7, 3, BREG7, 0xa0, 0x01, EXPRESSION, 6, 3, BREG7,
        0xf8, 0x00,
    ];
    let whole = [CFA, SAVED].concat();
    check_with("zRS", &whole, &[(0, rule(SIGNAL, 0, 0))]);
    check_with("zR", &whole, &[(0, Rule::UNKNOWN)]);
    check_with("zRS", CFA, &[(0, Rule::UNKNOWN)]);
    check_with("zRS", &[], &[(0, Rule::UNKNOWN)]);
}

#[test]
fn a_procedure_linkage_table_is_known() {
    let plt =
        |literal| [DEF_CFA_EXPRESSION, 11, BREG7, 8, 0x80, 0, 0x3f, 0x1a, literal, 0x2a, 0x33, 0x24, 0x22];
    check(&plt(0x3b), &[(0, rule(PLT, 11, 0))]);
    check(&plt(0x3a), &[(0, rule(PLT, 10, 0))]);
    check(&plt(0x40), &[(0, Rule::UNKNOWN)]);
}

#[test]
fn aligned_stacks_are_known() {
    // gcc's: `rbp` points to where the caller's is, and the CFA is kept below it.
    let gcc = [EXPRESSION, 6, 2, BREG6, 0, DEF_CFA_EXPRESSION, 3, BREG6, 0x78, DEREF];
    check(&gcc, &[(0, rule(AT_RBP, 1, SAVED_AT_RBP))]);
    // OpenSSL's: `rsp` before the first push is kept above it.
    let openssl = [DEF_CFA_EXPRESSION, 6, BREG7, 0xc8, 0x00, DEREF, PLUS_UCONST, 8, OFFSET | 6, 3];
    check(&openssl, &[(0, rule(AT_RSP, 9, 3))]);
    let above = [DEF_CFA_EXPRESSION, 3, BREG6, 8, DEREF];
    check(&above, &[(0, Rule::UNKNOWN)]);
    let further = [DEF_CFA_EXPRESSION, 6, BREG7, 0xc8, 0x00, DEREF, PLUS_UCONST, 64];
    check(&further, &[(0, Rule::UNKNOWN)]);
}

#[test]
fn what_no_rule_says_is_unknown() {
    let unknown: [&[u8]; 12] = [
        // The CFA is elsewhere: at another register, no multiple of 8 away, too far, an expression that does not end.
        &[DEF_CFA, 0, 8],
        &[DEF_CFA_OFFSET, 9],
        &[DEF_CFA_OFFSET, 0x80, 0x80, 0x80, 0x01],
        &[DEF_CFA_EXPRESSION, 2, BREG7, 0x80],
        // The return address is elsewhere.
        &[OFFSET | 16, 2],
        &[REGISTER, 16, 0],
        &[SAME_VALUE, 16],
        // `rbp` is elsewhere: in a register, at no multiple of 8, above the CFA, too far below it.
        &[REGISTER, 6, 0],
        &[EXPRESSION, 6, 2, BREG7, 8],
        &[0x11, 6, 0x7e],
        &[OFFSET | 6, 0xff, 0x07],
        // The stack pointer is not the CFA after the return.
        &[OFFSET | 7, 2],
    ];
    for instructions in unknown {
        check(instructions, &[(0, Rule::UNKNOWN)]);
    }
    assert_eq!(rule(RSP, 0x20_0000 / 8, 0).offset, MAX_OFFSET);
    check(&[DEF_CFA_OFFSET, 0xf8, 0xff, 0x7f], &[(0, rule(RSP, MAX_OFFSET - 1, 0))]);
    check(&[OFFSET | 6, 0xfe, 0x07], &[(0, rule(RSP, 1, SAVED_AT_RBP - 1))]);
}

#[test]
fn what_is_wrong_leaves_the_rest_of_the_function_unknown() {
    let wrong: [&[u8]; 4] = [&[RESTORE_STATE], &[0x3f], &[0x2d], &[REMEMBER_STATE; 65]];
    for instructions in wrong {
        let instructions = [&[ADVANCE | 1, DEF_CFA_OFFSET, 16, ADVANCE | 3], instructions].concat();
        let written =
            Written::new("zR", ON_ENTRY).function(CODE, 100, &instructions).function(CODE + 100, 50, &[]);
        let expected = [
            (CODE, rule(RSP, 1, 0)),
            (CODE + 1, rule(RSP, 2, 0)),
            (CODE + 4, Rule::UNKNOWN),
            (CODE + 100, rule(RSP, 1, 0)),
            (CODE + 150, Rule::UNKNOWN),
        ];
        assert_eq!(written.rules(), expected, "{instructions:x?}");
        assert_eq!(written.table().skipped, Skipped { malformed: 1, ..Skipped::default() });
    }
}

#[test]
fn what_is_said_of_addresses_beyond_the_function_is_for_nobody() {
    check(
        &[ADVANCE | 63, DEF_CFA_OFFSET, 16, ADVANCE | 37, DEF_CFA_OFFSET, 24],
        &[(0, rule(RSP, 1, 0)), (63, rule(RSP, 2, 0))],
    );
}

#[test]
fn padding_is_not_worth_a_row() {
    let gap = |bytes: u64| {
        let written = Written::new("zR", ON_ENTRY).function(CODE, 32, &[]);
        written.function(CODE + 32 + bytes, 32, &[ADVANCE | 1, DEF_CFA_OFFSET, 16]).rules()
    };
    let end = |bytes| {
        [
            (CODE + 32 + bytes, rule(RSP, 1, 0)),
            (CODE + 33 + bytes, rule(RSP, 2, 0)),
            (CODE + 64 + bytes, Rule::UNKNOWN),
        ]
    };
    // The same rule goes on: one row for both.
    assert_eq!(gap(0), [&[(CODE, rule(RSP, 1, 0))], &end(0)[1..]].concat());
    assert_eq!(gap(15), [&[(CODE, rule(RSP, 1, 0))], &end(15)[1..]].concat());
    assert_eq!(gap(16), [&[(CODE, rule(RSP, 1, 0)), (CODE + 32, Rule::UNKNOWN)][..], &end(16)].concat());
}

#[test]
fn a_megabyte_without_a_description_is_believed_to_have_frame_pointers() {
    let after = |gap: u64| {
        let written = Written::new("zR", ON_ENTRY).function(CODE, 32, &[]).function(CODE + 32 + gap, 32, &[]);
        let segment = Segment { address: CODE, file_offset: 0, size: 4 << 20 };
        let table = cfi::table(Frames { address: FRAMES_AT, bytes: &written.0 }, 0, &[segment]);
        look_up(&table.expect("within limits"), CODE + 32)
    };
    assert_eq!(after(1 << 20), Rule::FRAME_POINTER);
    assert_eq!(after((1 << 20) - 1), Rule::UNKNOWN);
}

#[test]
fn of_functions_that_overlap_the_later_one_has_it() {
    let written = Written::new("zR", ON_ENTRY)
        .function(CODE + 50, 50, &[DEF_CFA_OFFSET, 16])
        .function(CODE, 200, &[ADVANCE | 60, DEF_CFA_OFFSET, 24])
        .function(CODE + 50, 20, &[DEF_CFA_OFFSET, 32]);
    let expected = [(CODE, rule(RSP, 1, 0)), (CODE + 50, rule(RSP, 4, 0)), (CODE + 70, Rule::UNKNOWN)];
    assert_eq!(written.rules(), expected);
}

#[test]
fn what_is_left_out_is_counted() {
    let dropped = Written::new("zR", ON_ENTRY).function(0, 10, &[]).function(CODE, 0, &[]);
    assert_eq!(
        dropped.table(),
        Table { rows: Vec::new(), skipped: Skipped { outside: 1, ..Skipped::default() } }
    );

    let mut unread = Written::new("zR", ON_ENTRY).function(CODE, 10, &[]);
    unread.0.extend_from_slice(&[0xff, 0xff, 0, 0, 1]);
    assert_eq!(unread.table().rows.len(), 2);
    assert_eq!(unread.table().skipped, Skipped { cut_off: true, ..Skipped::default() });

    let mut stray = Written::new("zR", ON_ENTRY).function(CODE, 10, &[]);
    stray.entry(&[4, 0, 0, 0]);
    assert_eq!(stray.table().skipped, Skipped { malformed: 1, ..Skipped::default() });

    let frames = Written::new("zR", ON_ENTRY).function(CODE, 10, &[]);
    let frames = Frames { address: FRAMES_AT + (1 << 32), bytes: &frames.0 };
    let segment = Segment { address: CODE + (1 << 32), file_offset: 0, size: 100 };
    let table = cfi::table(frames, 0, &[segment]).expect("within limits");
    assert_eq!(table, Table { rows: Vec::new(), skipped: Skipped { far: 1, ..Skipped::default() } });
    let table = cfi::table(frames, 1 << 32, &[segment]).expect("within limits");
    assert_eq!(table.rows[0], Row { address: CODE as u32, rule: rule(RSP, 1, 0).encode() });
}

#[test]
fn there_is_a_limit_to_rows() {
    let mut instructions = Vec::new();
    for _ in 0..=cfi::MAX_ROWS / 2 {
        instructions.extend_from_slice(&[ADVANCE | 1, DEF_CFA_OFFSET, 16, ADVANCE | 1, DEF_CFA_OFFSET, 24]);
    }
    let written = Written::new("zR", ON_ENTRY).function(CODE, u32::MAX, &instructions);
    let segment = Segment { address: CODE, file_offset: 0, size: 1 };
    let table = cfi::table(Frames { address: FRAMES_AT, bytes: &written.0 }, 0, &[segment]);
    assert_eq!(table, Err(TableError::TooMany { what: "rows", limit: cfi::MAX_ROWS }));
}

/// The C library of this process, an ELF file with everything.
static LIBC: LazyLock<(String, Vec<u8>)> = LazyLock::new(|| {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let mut paths = maps.lines().filter_map(|line| line.split_whitespace().nth(5));
    let path = paths.find(|path| path.contains("/libc.so") || path.contains("/libc-")).unwrap();
    (path.to_owned(), fs::read(path).unwrap())
});

/// The vDSO of this process.
static VDSO: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let line = maps.lines().find(|line| line.ends_with("[vdso]")).unwrap();
    let (from, to) = line.split_once(' ').and_then(|(range, _)| range.split_once('-')).unwrap();
    let [from, to] = [from, to].map(|address| u64::from_str_radix(address, 16).unwrap());
    let mut image = vec![0; usize::try_from(to - from).unwrap()];
    File::open("/proc/self/mem").unwrap().read_exact_at(&mut image, from).unwrap();
    image
});

/// What holds at an address, as the sampling programs look it up.
fn look_up(table: &Table, address: u64) -> Rule {
    let after = table.rows.partition_point(|row| u64::from(row.address) <= address);
    after.checked_sub(1).map_or(Rule::UNKNOWN, |index| Rule::decode(table.rows[index].rule))
}

fn assert_sound(table: &Table) {
    assert!(table.rows.is_sorted_by(|a, b| a.address < b.address && a.rule != b.rule));
}

#[test]
fn rules_of_the_c_library_are_those_that_readelf_prints() {
    let (path, file) = &*LIBC;
    let module = Module::parse(file).expect("a library");
    let table = module.table().expect("within limits");
    assert_sound(&table);
    assert_eq!(table.skipped, Skipped::default());

    let mut compared = BTreeMap::<u32, u32>::new();
    for row in printed(path) {
        let Some(expected) = row.rule() else { continue };
        for address in [row.from, row.to - 1] {
            let found = look_up(&table, address - module.lowest);
            assert_eq!(found, expected, "at {address:#x}, printed as {row:?}");
        }
        *compared.entry(expected.kind).or_default() += 1;
    }
    assert!(compared[&RSP] > 5000 && compared[&RBP] > 50 && compared[&OUTERMOST] > 0, "{compared:?}");
}

/// A line of `readelf --debug-dump=frames-interp`.
#[derive(Debug)]
struct Printed {
    from: u64,
    to: u64,
    cfa: String,
    rbp: String,
    return_address: String,
}

impl Printed {
    /// `None` for expressions, of which nothing but that is printed.
    fn rule(&self) -> Option<Rule> {
        let number = |text: &str| text.parse::<u32>().unwrap();
        if self.return_address == "u" {
            return Some(rule(OUTERMOST, 0, 0));
        }
        if self.cfa == "exp" || self.rbp == "exp" {
            return None;
        }
        if self.return_address != "c-8" {
            return Some(Rule::UNKNOWN);
        }
        let (kind, offset) = match self.cfa.split_once('+').unwrap() {
            ("rsp", offset) => (RSP, number(offset)),
            ("rbp", offset) => (RBP, number(offset)),
            _ => return Some(Rule::UNKNOWN),
        };
        let saved = match self.rbp.strip_prefix("c-") {
            Some(below) => number(below),
            None => {
                assert!(["u", "s"].contains(&self.rbp.as_str()), "{self:?}");
                0
            }
        };
        Some(rule(kind, offset / 8, saved / 8))
    }
}

fn printed(path: &str) -> Vec<Printed> {
    let output = Command::new("readelf")
        .args(["--wide", "--debug-dump=frames-interp,no-follow-links", path])
        .env("LC_ALL", "C")
        .output()
        .expect("readelf of binutils");
    let output = String::from_utf8(output.stdout).unwrap();
    let mut rows: Vec<Printed> = Vec::new();
    // Of a function: its end, and the columns of its lines.
    let mut end = None;
    let mut columns: Vec<&str> = Vec::new();
    for line in output.lines() {
        // A register that is kept in another has that one's name in parentheses behind it.
        let words: Vec<_> = line.split_whitespace().filter(|word| !word.starts_with('(')).collect();
        let hexadecimal = |text| u64::from_str_radix(text, 16).unwrap();
        if let Some((_, range)) = line.split_once(" pc=") {
            end = Some(hexadecimal(range.split_once("..").unwrap().1.trim()));
        } else if words.is_empty() || line.contains(" CIE ") {
            end = None;
        } else if words.first() == Some(&"LOC") {
            columns = words;
        } else if let (Some(end), [from, cfa, ..]) = (end, &words[..]) {
            let from = hexadecimal(from);
            let column = |name| columns.iter().position(|column| *column == name).map(|at| words[at]);
            match rows.last_mut() {
                Some(last) if last.to == end => last.to = from,
                _ => {}
            }
            rows.push(Printed {
                from,
                to: end,
                cfa: (*cfa).to_owned(),
                rbp: column("rbp").unwrap_or("u").to_owned(),
                return_address: column("ra").unwrap_or("").to_owned(),
            });
        }
    }
    rows.retain(|row| row.from < row.to);
    rows
}

#[test]
fn the_c_library_has_what_compilers_do_not_make() {
    let module = Module::parse(&LIBC.1).expect("a library");
    assert!(module.has_frames());
    assert_eq!(module.lowest, 0);
    assert!(module.build_id.len() >= 32 && module.build_id.bytes().all(|byte| byte.is_ascii_hexdigit()));
    let table = module.table().expect("within limits");
    let of_kind = |kind| table.rows.iter().filter(|row| Rule::decode(row.rule).kind == kind).count();
    assert_eq!(of_kind(SIGNAL), 1);
    assert_eq!(of_kind(PLT), 1);
    assert!(of_kind(OUTERMOST) > 0);
}

#[test]
fn a_file_without_section_headers_says_the_same() {
    let mut stripped = LIBC.1.clone();
    // `e_shoff`, and `e_shnum` with `e_shstrndx`.
    stripped[40..48].fill(0);
    stripped[60..64].fill(0);
    let of_stripped = Module::parse(&stripped).expect("a library");
    let whole = Module::parse(&LIBC.1).expect("a library");
    assert!(of_stripped.frames.is_some_and(|frames| frames.bytes.len() > whole.frames.unwrap().bytes.len()));
    assert_eq!(of_stripped.table().expect("within limits"), whole.table().expect("within limits"));
    assert_eq!((of_stripped.segments, of_stripped.build_id), (whole.segments, whole.build_id));
}

#[test]
fn the_image_of_the_vdso_has_rules() {
    let module = Module::parse(&VDSO).expect("an image");
    assert!(module.has_frames() && !module.build_id.is_empty());
    let table = module.table().expect("within limits");
    assert_sound(&table);
    assert_eq!(table.skipped, Skipped::default());
    assert!(table.rows.iter().any(|row| row.rule == rule(RSP, 1, 0).encode()));
}

#[test]
fn addresses_of_this_code_have_rules() {
    let file = fs::read("/proc/self/exe").unwrap();
    let module = Module::parse(&file).expect("a program");
    let table = module.table().expect("within limits");
    assert_sound(&table);
    assert_eq!(table.skipped.malformed, 0);
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let lowest = u64::from_str_radix(maps.split('-').next().unwrap(), 16).unwrap();
    let address = addresses_of_this_code_have_rules as fn() as usize as u64 - lowest;
    assert_eq!(look_up(&table, address), rule(RSP, 1, 0));
    assert!(
        module
            .segments
            .iter()
            .any(|segment| (module.lowest + address).wrapping_sub(segment.address) < segment.size)
    );
}

#[test]
fn what_is_no_program_says_why() {
    let check = |bytes: &[u8], expected: &str| {
        let error = Module::parse(bytes).expect_err("no program").to_string();
        assert!(error.contains(expected), "{error}");
    };
    let changed = |at: usize, to: &[u8]| {
        let mut file = VDSO.clone();
        file[at..at + to.len()].copy_from_slice(to);
        file
    };
    check(b"", "no ELF");
    check(b"#!/bin/sh", "no ELF");
    check(&VDSO[..5], "no ELF");
    check(&VDSO[..40], "header");
    check(&changed(4, &[1]), "class 1");
    check(&changed(5, &[2]), "byte order 2");
    check(&changed(18, &183u16.to_le_bytes()), "machine 183");
    check(&changed(16, &1u16.to_le_bytes()), "type 1");
    check(&changed(32, &u64::MAX.to_le_bytes()), "program headers");
    check(&changed(32, &0u64.to_le_bytes()), "no segment");
    check(&changed(56, &300u16.to_le_bytes()), "program headers");
}

/// Any bytes are allowed: nothing panics, and what comes out is in order.
fn survives(file: &[u8]) {
    if let Ok(Ok(table)) = Module::parse(file).map(|module| module.table()) {
        assert_sound(&table);
    }
}

proptest! {
    #[test]
    fn damaged_images_never_panic(damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20)) {
        let mut file = VDSO.clone();
        for (at, byte) in damage {
            file[at.index(VDSO.len())] = byte;
        }
        survives(&file);
    }

    #[test]
    fn damaged_headers_never_panic(
        damage in prop::collection::vec((0..0x400usize, any::<u8>()), 1..4),
        end in any::<prop::sample::Index>(),
    ) {
        let mut file = VDSO.clone();
        for (at, byte) in damage {
            file[at] = byte;
        }
        survives(&file);
        survives(&file[..end.index(file.len())]);
    }

    #[test]
    fn any_instructions_never_panic(
        initial in prop::collection::vec(any::<u8>(), 0..20),
        functions in prop::collection::vec(
            (CODE..CODE + 300, 0..300u32, prop::collection::vec(any::<u8>(), 0..40)), 1..8),
    ) {
        let mut written = Written::new("zR", &[ON_ENTRY, &initial].concat());
        for (start, size, instructions) in &functions {
            written = written.function(*start, *size, instructions);
        }
        assert_sound(&written.table());
    }

    #[test]
    fn any_section_never_panics(
        functions in prop::collection::vec((CODE..CODE + 300, 0..300u32), 1..8),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut written = Written::new("zPLR", ON_ENTRY);
        written.common("zR", ON_ENTRY);
        for (start, size) in &functions {
            written = written.function(*start, *size, &[ADVANCE | 1, DEF_CFA_OFFSET, 16, OFFSET | 6, 2]);
        }
        let size = written.0.len();
        for (at, byte) in damage {
            written.0[at.index(size)] = byte;
        }
        assert_sound(&written.table());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_damaged_library_never_panics(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..50),
        end in any::<prop::sample::Index>(),
    ) {
        let (_, whole) = &*LIBC;
        let mut file = whole.clone();
        let frames = Module::parse(whole).expect("a library").frames.expect("described").bytes;
        let begin = frames.as_ptr().addr() - whole.as_ptr().addr();
        for (at, byte) in damage {
            file[begin + at.index(frames.len())] = byte;
        }
        survives(&file);
        survives(&file[..end.index(file.len())]);
    }
}
