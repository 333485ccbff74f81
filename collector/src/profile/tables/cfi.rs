//! Rules of `.eh_frame`: DWARF's program of each function (DWARF 5, 6.4; the differences of `.eh_frame` in the Linux
//! Standard Base, 10.6), run for what a rule can say and no more.
//!
//! gimli reads entries and instructions; its own table of rows follows all registers of which we want two. Functions are
//! put into order first and run afterwards, so that rows come out ascending and are held once.

use collector_ebpf::unwind::{self, MAX_SAVED, Row, Rule, SAVED_AT_RBP};
use gimli::{
    BaseAddresses, CallFrameInstruction, CieOrFde, CommonInformationEntry, EhFrame, EhFrameOffset, Encoding,
    EndianSlice, Format, FrameDescriptionEntry, LittleEndian, Operation, Register, UnwindExpression,
    UnwindSection as _,
};

use super::{Segment, Skipped, Table, TableError, within};

/// Bytes of `.eh_frame`: what bounds the time that is spent on a file, to some 0.6 s for the most hostile. Browsers have
/// 20 MB.
pub(super) const MAX_BYTES: usize = 64 << 20;
/// Functions of a module, 16 bytes each while its table is made. Browsers have some 600 thousand, node 80 thousand.
const MAX_FUNCTIONS: usize = 2 << 20;
/// Entries that functions have in common, some 200 bytes each. Linkers merge them to a handful.
const MAX_COMMON: usize = 16 << 10;
/// Rows of a module: 32 MB, of the memory of kernel and collector alike. The largest that we met, a
/// compiler, has a quarter.
pub(super) const MAX_ROWS: usize = 4 << 20;
/// States that are remembered within a function. Compilers have one.
const MAX_REMEMBERED: usize = 64;
/// Less than this between two functions is what fills up to the alignment of the next one, which nobody executes.
const MIN_GAP: u32 = 16;
/// From so many bytes between two functions on, they are code that another compiler made than that of the rest, to which
/// the rule for code applies that tells nothing of itself. V8 puts its built-in functions, 1.6 MB, into the middle of its
/// program, each with a frame pointer, and each stack of JavaScript leads through them. Below are tables
/// that assembly keeps beside its code, 150 KB in OpenSSL.
const MIN_BUILT_IN: u32 = 1 << 20;

const RBP: Register = Register(6);
const RSP: Register = Register(7);
const RETURN_ADDRESS: Register = Register(16);

/// Distances on the stack are counted in these.
const UNIT: i64 = 8;

type Reader<'a> = EndianSlice<'a, LittleEndian>;

/// The section, and where it is loaded.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frames<'a> {
    pub(super) address: u64,
    pub(super) bytes: &'a [u8],
}

/// Where the code of an entry is, counted from the module's lowest address, and where the entry is.
#[derive(Clone, Copy, Debug)]
struct Function {
    start: u32,
    /// At most the end of the addresses that a row can have.
    end: u32,
    entry: usize,
}

/// What functions have in common.
struct Common<'a> {
    entry: CommonInformationEntry<Reader<'a>>,
    /// `None` where it makes no sense: its functions are unknown.
    initial: Option<State>,
}

/// What is known at an instruction of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    cfa: Cfa,
    /// Where the caller's registers are.
    rbp: Saved,
    rsp: Saved,
    return_address: Saved,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cfa {
    /// At a distance in bytes from a register.
    At(Register, i64),
    /// One of the expressions that there is a kind of rule for.
    Expression { kind: u32, offset: u32 },
    /// Anything else.
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Saved {
    /// Nothing was said: of `rbp`, that it is where it was; of `rsp`, that it is the CFA.
    Unsaid,
    /// There is no caller's.
    Undefined,
    /// At a distance in bytes from the CFA.
    AtCfa(i64),
    /// At a distance in bytes from a register.
    At(Register, i64),
    Other,
}

/// An entry does not say what it should.
struct Malformed;

impl From<gimli::Error> for Malformed {
    fn from(_: gimli::Error) -> Self {
        Self
    }
}

/// Rules of the code that the section describes.
pub(super) fn table(frames: Frames<'_>, lowest: u64, segments: &[Segment]) -> Result<Table, TableError> {
    within("bytes of .eh_frame", frames.bytes.len(), MAX_BYTES)?;
    let section = EhFrame::new(frames.bytes, LittleEndian);
    let bases = BaseAddresses::default().set_eh_frame(frames.address);
    let mut skipped = Skipped::default();
    let (common, functions) = entries(&section, &bases, lowest, segments, &mut skipped)?;

    let mut rows = Rows::default();
    let mut remembered = Vec::new();
    for (index, function) in functions.iter().enumerate() {
        let next = functions.get(index + 1).map(|next| next.start);
        // Of functions that overlap, the one that begins later has what both claim.
        let end = next.map_or(function.end, |next| function.end.min(next));
        if function.start == end {
            continue;
        }
        let run = Run { section: &section, bases: &bases, lowest, end, remembered: &mut remembered };
        if run.function(&common, function, &mut rows).is_err() {
            skipped.malformed += 1;
        }
        match next.map(|next| next - end) {
            Some(..MIN_GAP) => {}
            Some(MIN_BUILT_IN..) => rows.push(end, Rule::FRAME_POINTER),
            _ => rows.push(end, Rule::UNKNOWN),
        }
        within("rows", rows.0.len(), MAX_ROWS)?;
    }
    let mut rows = rows.0;
    rows.shrink_to_fit();
    Ok(Table { rows, skipped })
}

/// What the section holds, functions in the order of their code.
fn entries<'a>(
    section: &EhFrame<Reader<'a>>,
    bases: &BaseAddresses,
    lowest: u64,
    segments: &[Segment],
    skipped: &mut Skipped,
) -> Result<(Vec<Common<'a>>, Vec<Function>), TableError> {
    let mut common: Vec<Common<'a>> = Vec::new();
    let mut functions = Vec::new();
    let mut entries = section.entries(bases);
    loop {
        match entries.next() {
            Ok(Some(CieOrFde::Cie(entry))) => {
                common.push(Common::new(section, bases, entry));
                within("common entries of .eh_frame", common.len(), MAX_COMMON)?;
            }
            Ok(Some(CieOrFde::Fde(entry))) => {
                // What it has in common stands before it, and is read once: time is bounded by the size of the section.
                let Ok(entry) = entry.parse(|_, _, offset| Ok(find(&common, offset)?.entry.clone())) else {
                    skipped.malformed += 1;
                    continue;
                };
                let (start, size) = (entry.initial_address(), entry.len());
                if size == 0 {
                    continue;
                }
                if !segments.iter().any(|segment| start.wrapping_sub(segment.address) < segment.size) {
                    skipped.outside += 1;
                    continue;
                }
                let Some(start) = start.checked_sub(lowest).and_then(|start| u32::try_from(start).ok())
                else {
                    skipped.far += 1;
                    continue;
                };
                let end =
                    u32::try_from(size).ok().and_then(|size| start.checked_add(size)).unwrap_or(u32::MAX);
                functions.push(Function { start, end, entry: entry.offset() });
                within("functions in .eh_frame", functions.len(), MAX_FUNCTIONS)?;
            }
            Ok(None) => break,
            Err(_) => {
                skipped.cut_off = true;
                break;
            }
        }
    }
    // Of those that begin at the same address, the last one is the one that begins later.
    functions.sort_by_key(|function| function.start);
    Ok((common, functions))
}

/// The common entry at an offset. They were read in ascending order.
fn find<'c, 'a>(
    common: &'c [Common<'a>],
    EhFrameOffset(offset): EhFrameOffset,
) -> gimli::Result<&'c Common<'a>> {
    let index = common.binary_search_by_key(&offset, |common| common.entry.offset());
    index.map(|index| &common[index]).map_err(|_| gimli::Error::NotCieId(offset as u64))
}

impl<'a> Common<'a> {
    fn new(
        section: &EhFrame<Reader<'a>>,
        bases: &BaseAddresses,
        entry: CommonInformationEntry<Reader<'a>>,
    ) -> Self {
        let mut instructions = entry.instructions(section, bases);
        let mut run = || -> Result<State, Malformed> {
            let mut state = State::NOTHING;
            while let Some(instruction) = instructions.next()? {
                state.apply(section, &entry, instruction, None)?;
            }
            Ok(state)
        };
        // Another register of return addresses than the machine's is that of another machine.
        let initial = run().ok().filter(|_| entry.return_address_register() == RETURN_ADDRESS);
        Self { initial, entry }
    }
}

/// Running the instructions of one function.
struct Run<'r, 'a> {
    section: &'r EhFrame<Reader<'a>>,
    bases: &'r BaseAddresses,
    lowest: u64,
    /// Rows are below this.
    end: u32,
    /// Kept from one function to the next for its memory.
    remembered: &'r mut Vec<State>,
}

impl<'a> Run<'_, 'a> {
    /// Appends the function's rows. From what is wrong on, it is unknown.
    fn function(self, common: &[Common<'a>], function: &Function, rows: &mut Rows) -> Result<(), Malformed> {
        let mut location = function.start;
        let read = self.section.fde_from_offset(self.bases, EhFrameOffset(function.entry), |_, _, at| {
            Ok(find(common, at)?.entry.clone())
        });
        let ran = read.map_err(Malformed::from).and_then(|entry| {
            let common = find(common, EhFrameOffset(entry.cie().offset()))?;
            self.instructions(common, &entry, &mut location, rows)
        });
        if ran.is_err() {
            rows.push(location, Rule::UNKNOWN);
        }
        ran
    }

    fn instructions(
        self,
        common: &Common<'a>,
        entry: &FrameDescriptionEntry<Reader<'a>>,
        location: &mut u32,
        rows: &mut Rows,
    ) -> Result<(), Malformed> {
        let initial = common.initial.ok_or(Malformed)?;
        let signal = common.entry.is_signal_trampoline();
        let mut state = initial;
        self.remembered.clear();
        let mut instructions = entry.instructions(self.section, self.bases);
        while let Some(instruction) = instructions.next()? {
            let next = match instruction {
                CallFrameInstruction::AdvanceLoc { delta } => u64::from(delta)
                    .saturating_mul(common.entry.code_alignment_factor())
                    .saturating_add(u64::from(*location)),
                CallFrameInstruction::SetLoc { address } => address.wrapping_sub(self.lowest),
                CallFrameInstruction::RememberState => {
                    if self.remembered.len() == MAX_REMEMBERED {
                        return Err(Malformed);
                    }
                    self.remembered.push(state);
                    continue;
                }
                CallFrameInstruction::RestoreState => {
                    state = self.remembered.pop().ok_or(Malformed)?;
                    continue;
                }
                other => {
                    state.apply(self.section, &common.entry, other, Some(&initial))?;
                    continue;
                }
            };
            if next < u64::from(*location) {
                return Err(Malformed);
            }
            rows.push(*location, state.rule(signal));
            match u32::try_from(next) {
                Ok(next) if next < self.end => *location = next,
                // What is said of addresses beyond the function is for nobody.
                _ => return Ok(()),
            }
        }
        rows.push(*location, state.rule(signal));
        Ok(())
    }
}

impl State {
    const NOTHING: Self =
        Self { cfa: Cfa::Other, rbp: Saved::Unsaid, rsp: Saved::Unsaid, return_address: Saved::Unsaid };

    /// What an instruction changes. Without an initial state, it is of those that make that.
    fn apply(
        &mut self,
        section: &EhFrame<Reader<'_>>,
        common: &CommonInformationEntry<Reader<'_>>,
        instruction: CallFrameInstruction<usize>,
        initial: Option<&Self>,
    ) -> Result<(), Malformed> {
        let factor = common.data_alignment_factor();
        let factored = |offset: i64| offset.checked_mul(factor).ok_or(Malformed);
        let unsigned = |offset: u64| i64::try_from(offset).map_err(|_| Malformed);
        match instruction {
            CallFrameInstruction::DefCfa { register, offset } => {
                self.cfa = Cfa::At(register, unsigned(offset)?);
            }
            CallFrameInstruction::DefCfaSf { register, factored_offset } => {
                self.cfa = Cfa::At(register, factored(factored_offset)?);
            }
            CallFrameInstruction::DefCfaRegister { register } => match &mut self.cfa {
                Cfa::At(of, _) => *of = register,
                _ => return Err(Malformed),
            },
            CallFrameInstruction::DefCfaOffset { offset: new } => match &mut self.cfa {
                Cfa::At(_, offset) => *offset = unsigned(new)?,
                _ => return Err(Malformed),
            },
            CallFrameInstruction::DefCfaOffsetSf { factored_offset } => match &mut self.cfa {
                Cfa::At(_, offset) => *offset = factored(factored_offset)?,
                _ => return Err(Malformed),
            },
            CallFrameInstruction::DefCfaExpression { expression } => {
                self.cfa = Cfa::of_expression(section, expression);
            }
            CallFrameInstruction::Undefined { register } => self.set(register, Saved::Undefined),
            CallFrameInstruction::SameValue { register } => {
                // Of `rsp`, it would be that of this frame.
                let same = if register == RBP { Saved::Unsaid } else { Saved::Other };
                self.set(register, same);
            }
            CallFrameInstruction::Offset { register, factored_offset } => {
                self.set(register, Saved::AtCfa(factored(unsigned(factored_offset)?)?));
            }
            CallFrameInstruction::OffsetExtendedSf { register, factored_offset } => {
                self.set(register, Saved::AtCfa(factored(factored_offset)?));
            }
            CallFrameInstruction::Expression { register, expression } => {
                self.set(register, Saved::of_expression(section, expression));
            }
            CallFrameInstruction::Register { dest_register: register, .. }
            | CallFrameInstruction::ValOffset { register, .. }
            | CallFrameInstruction::ValOffsetSf { register, .. }
            | CallFrameInstruction::ValExpression { register, .. } => self.set(register, Saved::Other),
            CallFrameInstruction::Restore { register } => {
                let initial = initial.ok_or(Malformed)?;
                match register {
                    RBP => self.rbp = initial.rbp,
                    RSP => self.rsp = initial.rsp,
                    RETURN_ADDRESS => self.return_address = initial.return_address,
                    _ => {}
                }
            }
            CallFrameInstruction::ArgsSize { .. } | CallFrameInstruction::Nop => {}
            // Where they are of use, they were seen to; `NegateRaState` is of another machine.
            CallFrameInstruction::SetLoc { .. }
            | CallFrameInstruction::AdvanceLoc { .. }
            | CallFrameInstruction::RememberState
            | CallFrameInstruction::RestoreState
            | CallFrameInstruction::NegateRaState => return Err(Malformed),
        }
        Ok(())
    }

    fn set(&mut self, register: Register, saved: Saved) {
        match register {
            RBP => self.rbp = saved,
            RSP => self.rsp = saved,
            RETURN_ADDRESS => self.return_address = saved,
            _ => {}
        }
    }

    /// The rule that says the same; unknown if there is none.
    fn rule(&self, signal: bool) -> Rule {
        if self.return_address == Saved::Undefined {
            return Rule { kind: unwind::OUTERMOST, offset: 0, saved: 0 };
        }
        let rule = if signal { self.of_signal() } else { self.of_call() };
        rule.unwrap_or(Rule::UNKNOWN)
    }

    /// What interrupted this code was in other code, and all its registers are in memory.
    fn of_signal(&self) -> Option<Rule> {
        let at = |offset: u64| Saved::At(RSP, offset as i64);
        let expected = Self {
            cfa: Cfa::Expression { kind: unwind::SIGNAL, offset: 0 },
            rbp: at(unwind::SIGNAL_RBP),
            rsp: at(unwind::SIGNAL_RSP),
            return_address: at(unwind::SIGNAL_RIP),
        };
        (*self == expected).then_some(Rule { kind: unwind::SIGNAL, offset: 0, saved: 0 })
    }

    fn of_call(&self) -> Option<Rule> {
        if self.return_address != Saved::AtCfa(-UNIT) || self.rsp != Saved::Unsaid {
            return None;
        }
        let (kind, offset) = match self.cfa {
            Cfa::At(RSP, offset) => (unwind::RSP, units(offset)?),
            Cfa::At(RBP, offset) => (unwind::RBP, units(offset)?),
            Cfa::Expression { kind, offset } if kind != unwind::SIGNAL => (kind, offset),
            _ => return None,
        };
        let saved = match self.rbp {
            Saved::Unsaid | Saved::Undefined => 0,
            Saved::AtCfa(offset) => {
                units(offset.checked_neg()?).filter(|saved| (1..MAX_SAVED).contains(saved))?
            }
            Saved::At(RBP, 0) => SAVED_AT_RBP,
            _ => return None,
        };
        Some(Rule { kind, offset, saved })
    }
}

impl Cfa {
    /// The address that an expression computes, if it is one of those that compilers, linkers and libraries have.
    fn of_expression(section: &EhFrame<Reader<'_>>, expression: UnwindExpression<usize>) -> Self {
        let known = |kind, offset| Self::Expression { kind, offset };
        let cfa = match operations(section, expression).as_deref() {
            Some([Operation::RegisterOffset { register: RBP, offset, .. }, Operation::Deref { .. }]) => {
                offset.checked_neg().and_then(units).map(|below| known(unwind::AT_RBP, below))
            }
            Some([Operation::RegisterOffset { register: RSP, offset, .. }, Operation::Deref { .. }])
                if *offset == unwind::SIGNAL_RSP as i64 =>
            {
                Some(known(unwind::SIGNAL, 0))
            }
            Some(
                [
                    Operation::RegisterOffset { register: RSP, offset, .. },
                    Operation::Deref { .. },
                    Operation::PlusConstant { value: 8 },
                ],
            ) => units(*offset).map(|above| known(unwind::AT_RSP, above)),
            // What linkers write for `.plt`, whose entries are pushes of 8 bytes at the end of 16.
            Some(
                [
                    Operation::RegisterOffset { register: RSP, offset: 8, .. },
                    Operation::RegisterOffset { register: RETURN_ADDRESS, offset: 0, .. },
                    Operation::UnsignedConstant { value: 15 },
                    Operation::And,
                    Operation::UnsignedConstant { value: pushed },
                    Operation::Ge,
                    Operation::UnsignedConstant { value: 3 },
                    Operation::Shl,
                    Operation::Plus,
                ],
            ) if *pushed < 16 => Some(known(unwind::PLT, *pushed as u32)),
            _ => None,
        };
        cfa.unwrap_or(Self::Other)
    }
}

impl Saved {
    /// The address of what is saved, that an expression computes: at a distance from a register, or unknown.
    fn of_expression(section: &EhFrame<Reader<'_>>, expression: UnwindExpression<usize>) -> Self {
        match operations(section, expression).as_deref() {
            Some([Operation::RegisterOffset { register, offset, .. }]) => Self::At(*register, *offset),
            _ => Self::Other,
        }
    }
}

/// The operations of an expression, unless they are too many for one that is known.
fn operations<'a>(
    section: &EhFrame<Reader<'a>>,
    expression: UnwindExpression<usize>,
) -> Option<Vec<Operation<Reader<'a>>>> {
    const MAX: usize = 9;
    let encoding = Encoding { address_size: 8, format: Format::Dwarf32, version: 4 };
    let mut reader = expression.get(section).ok()?.operations(encoding);
    let mut operations = Vec::with_capacity(MAX);
    while let Some(operation) = reader.next().ok()? {
        if operations.len() == MAX {
            return None;
        }
        operations.push(operation);
    }
    Some(operations)
}

/// Whole units, none below zero.
fn units(bytes: i64) -> Option<u32> {
    if bytes % UNIT != 0 { None } else { u32::try_from(bytes / UNIT).ok() }
}

/// Rows that are appended in the order of their addresses.
#[derive(Default)]
struct Rows(Vec<Row>);

impl Rows {
    /// What holds from an address on, also where something else was said of the same one.
    fn push(&mut self, address: u32, rule: Rule) {
        let rule = rule.encode();
        if self.0.last().is_some_and(|last| last.address == address) {
            self.0.pop();
        }
        // One more than allowed tells that there are too many.
        if self.0.last().is_none_or(|last| last.rule != rule) && self.0.len() <= MAX_ROWS {
            self.0.push(Row { address, rule });
        }
    }
}
