//! Where sampled blocks were asked for, and which of them are still in use. Of fixed size: an allocator cannot ask itself for
//! memory. What was never needed of it is never resident.

/// Stacks that are told apart, one of which stands for all that there was no room for.
const MAX_STACKS: usize = 2048;
/// Frames of all of them.
const MAX_FRAMES_KEPT: usize = 64 << 10;
/// A power of two.
const HEADS: usize = 2048;
/// Places for blocks in use; a power of two. At a sample every 512 KiB they are 1.5 GiB of heap.
const MAX_BLOCKS: usize = 4096;
/// More would make looking for one slow.
const MOST_BLOCKS: usize = MAX_BLOCKS / 4 * 3;

/// Parts of a block that estimates are counted in, so that what is added and taken off again comes to nothing.
pub(super) const PARTS: u64 = 256;

/// A stack of calls, and what was asked for there.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stack {
    hash: u64,
    first_frame: u32,
    pub(super) frames: u16,
    pub(super) truncated: bool,
    /// The next one with the same head; 0 if there is none.
    next: u16,
    pub(super) allocated: Sum,
    pub(super) freed: Sum,
}

/// Estimates of blocks, in [`PARTS`], and of their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sum {
    pub(super) parts: u64,
    pub(super) bytes: u64,
}

impl Sum {
    fn add(&mut self, other: Self) {
        self.parts = self.parts.wrapping_add(other.parts);
        self.bytes = self.bytes.wrapping_add(other.bytes);
    }
}

#[derive(Clone, Copy, Debug)]
struct Block {
    /// 0 if there is none here.
    address: usize,
    stack: u16,
}

const NO_BLOCK: Block = Block { address: 0, stack: 0 };

const NO_STACK: Stack = Stack {
    hash: 0,
    first_frame: 0,
    frames: 0,
    truncated: false,
    next: 0,
    allocated: Sum { parts: 0, bytes: 0 },
    freed: Sum { parts: 0, bytes: 0 },
};

/// All zero when it is new, so that the program's file does not have it.
pub(super) struct Tables {
    /// The first one is of those that there was no room for.
    stacks: [Stack; MAX_STACKS],
    /// Stacks but for the first.
    stack_count: usize,
    heads: [u16; HEADS],
    frames: [usize; MAX_FRAMES_KEPT],
    frame_count: usize,
    blocks: [Block; MAX_BLOCKS],
    block_count: usize,
    /// Blocks that there was no place for: counted as freed when they were allocated.
    unfollowed: u64,
}

impl Tables {
    pub(super) const fn new() -> Self {
        Self {
            stacks: [NO_STACK; MAX_STACKS],
            stack_count: 0,
            heads: [0; HEADS],
            frames: [0; MAX_FRAMES_KEPT],
            frame_count: 0,
            blocks: [NO_BLOCK; MAX_BLOCKS],
            block_count: 0,
            unfollowed: 0,
        }
    }

    /// A block was allocated. False if there is no place to follow it.
    pub(super) fn add(&mut self, address: usize, frames: &[usize], truncated: bool, sum: Sum) -> bool {
        let number = self.number(frames, truncated);
        let stack = &mut self.stacks[usize::from(number)];
        stack.allocated.add(sum);
        if self.block_count == MOST_BLOCKS {
            stack.freed.add(sum);
            self.unfollowed += 1;
            return false;
        }
        let mut at = place(address);
        while self.blocks[at].address != 0 {
            at = (at + 1) % MAX_BLOCKS;
        }
        self.blocks[at] = Block { address, stack: number };
        self.block_count += 1;
        true
    }

    /// A block is freed. False if it is none that was sampled.
    pub(super) fn remove(&mut self, address: usize, sum: Sum) -> bool {
        let mut at = place(address);
        while self.blocks[at].address != address {
            if self.blocks[at].address == 0 {
                return false;
            }
            at = (at + 1) % MAX_BLOCKS;
        }
        self.stacks[usize::from(self.blocks[at].stack)].freed.add(sum);
        self.block_count -= 1;
        // Those behind it that were to be here, or before, move up: a gap ends a search.
        let mut gap = at;
        loop {
            at = (at + 1) % MAX_BLOCKS;
            let block = self.blocks[at];
            if block.address == 0 {
                break;
            }
            let from_place = at.wrapping_sub(place(block.address)) % MAX_BLOCKS;
            if from_place >= at.wrapping_sub(gap) % MAX_BLOCKS {
                self.blocks[gap] = block;
                gap = at;
            }
        }
        self.blocks[gap] = NO_BLOCK;
        true
    }

    /// Stacks and frames that there are.
    pub(super) fn lengths(&self) -> (usize, usize) {
        (self.stack_count + 1, self.frame_count)
    }

    /// The number of a stack; 0 if there is no room for it.
    fn number(&mut self, frames: &[usize], truncated: bool) -> u16 {
        let hash = frames.iter().fold(u64::from(truncated), |hash, frame| mixed(hash ^ *frame as u64));
        let head = (hash >> 32) as usize % HEADS;
        let mut number = self.heads[head];
        while number != 0 {
            let stack = &self.stacks[usize::from(number)];
            if stack.hash == hash && stack.truncated == truncated && self.frames_of(stack) == frames {
                return number;
            }
            number = stack.next;
        }
        let end = self.frame_count + frames.len();
        if self.stack_count + 1 == MAX_STACKS || end > MAX_FRAMES_KEPT {
            return 0;
        }
        self.frames[self.frame_count..end].copy_from_slice(frames);
        self.stack_count += 1;
        self.stacks[self.stack_count] = Stack {
            hash,
            first_frame: self.frame_count as u32,
            frames: frames.len() as u16,
            truncated,
            next: self.heads[head],
            ..NO_STACK
        };
        self.frame_count = end;
        self.heads[head] = self.stack_count as u16;
        self.heads[head]
    }

    fn frames_of(&self, stack: &Stack) -> &[usize] {
        let first = stack.first_frame as usize;
        &self.frames[first..first + usize::from(stack.frames)]
    }
}

/// What was in the tables at a moment. Stacks keep their numbers, so two can be compared.
#[derive(Debug)]
pub(super) struct Copied {
    stacks: Vec<Stack>,
    frames: Vec<usize>,
    pub(super) unfollowed: u64,
}

impl Copied {
    /// With room for so many stacks and frames of them.
    pub(super) fn with_room((stacks, frames): (usize, usize)) -> Self {
        Self { stacks: Vec::with_capacity(stacks), frames: Vec::with_capacity(frames), unfollowed: 0 }
    }

    /// Copies, without asking for memory: whoever holds the tables must not. False if there is no room.
    pub(super) fn copy(&mut self, tables: &Tables) -> bool {
        let (stacks, frames) = tables.lengths();
        if self.stacks.capacity() < stacks || self.frames.capacity() < frames {
            return false;
        }
        self.stacks.clear();
        self.frames.clear();
        self.stacks.extend_from_slice(&tables.stacks[..stacks]);
        self.frames.extend_from_slice(&tables.frames[..frames]);
        self.unfollowed = tables.unfollowed;
        true
    }

    /// Each stack with its frames.
    pub(super) fn stacks(&self) -> impl Iterator<Item = (&Stack, &[usize])> {
        self.stacks.iter().map(|stack| {
            let first = stack.first_frame as usize;
            (stack, self.frames.get(first..first + usize::from(stack.frames)).unwrap_or_default())
        })
    }
}

/// Where a block is looked for first.
fn place(address: usize) -> usize {
    mixed(address as u64) as usize % MAX_BLOCKS
}

/// Whose bits all depend on all bits of the number.
pub(super) fn mixed(number: u64) -> u64 {
    let product = u128::from(number) * 0x9e37_79b9_7f4a_7c15_u128;
    (product >> 64) as u64 ^ product as u64
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    const ONE: Sum = Sum { parts: PARTS, bytes: 100 };

    /// They are too large for the stack of a test.
    fn tables() -> Box<Tables> {
        Box::new(const { Tables::new() })
    }

    fn copied(tables: &Tables) -> Copied {
        let mut copied = Copied::with_room(tables.lengths());
        assert!(copied.copy(tables));
        copied
    }

    #[test]
    fn what_is_allocated_at_one_stack_is_added_up_and_what_is_freed_taken_off() {
        let mut tables = tables();
        assert!(tables.add(16, &[1, 2], false, ONE) && tables.add(32, &[1, 2], false, ONE));
        assert!(tables.add(48, &[1, 2], true, ONE) && tables.add(64, &[1], false, ONE));
        assert!(tables.remove(32, ONE));
        assert!(!tables.remove(32, ONE) && !tables.remove(80, ONE));
        let copied = copied(&tables);
        let found: Vec<_> = copied
            .stacks()
            .skip(1)
            .map(|(stack, frames)| (frames, stack.truncated, stack.allocated.bytes, stack.freed.bytes))
            .collect();
        assert_eq!(found, [(&[1, 2][..], false, 200, 100), (&[1, 2], true, 100, 0), (&[1], false, 100, 0)]);
    }

    #[test]
    fn what_there_is_no_room_for_is_counted_all_the_same() {
        let mut tables = tables();
        for stack in 1..=MAX_STACKS + 1 {
            assert!(tables.add(16 * stack, &[stack], false, ONE));
        }
        let (first, frames) = copied(&tables).stacks().next().map(|(s, f)| (*s, f.to_vec())).unwrap();
        assert_eq!((first.allocated.parts, frames.len()), (2 * PARTS, 0));
        assert!(tables.remove(16 * (MAX_STACKS + 1), ONE));
        let mut more = (MAX_STACKS + 2..).take(MOST_BLOCKS - MAX_STACKS).map(|block| 16 * block);
        assert!(more.all(|block| tables.add(block, &[1], false, ONE)));
        assert!(!tables.add(8, &[1], false, ONE) && !tables.remove(8, ONE));
        let copied = copied(&tables);
        let of_one = copied.stacks().nth(1).unwrap().0;
        assert_eq!((of_one.freed.bytes, copied.unfollowed), (ONE.bytes, 1));
        // Frames have a limit, too.
        let mut tables = self::tables();
        let frames: Vec<usize> = (0..100).collect();
        for stack in 0..700 {
            tables.add(16 + 16 * stack, &[&[stack][..], &frames].concat(), false, ONE);
        }
        assert_eq!(tables.stack_count, MAX_FRAMES_KEPT / 101);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        /// Of few places, so that many blocks are not where they are looked for first.
        #[test]
        fn blocks_are_found_as_long_as_they_are_there(steps in prop::collection::vec((any::<bool>(), 1..400usize), 0..800)) {
            let mut tables = tables();
            let mut known = HashMap::new();
            // Addresses that come one after the other in the table, or at the same place.
            let address = |number: usize| {
                (1..).map(|n| 16 * n).filter(|address| place(*address) < 8 || place(*address) > MAX_BLOCKS - 8).nth(number % 40).unwrap()
            };
            for (add, number) in steps {
                let block = address(number);
                if add && !known.contains_key(&block) {
                    known.insert(block, ());
                    prop_assert!(tables.add(block, &[7], false, ONE));
                } else if !add {
                    prop_assert_eq!(tables.remove(block, ONE), known.remove(&block).is_some());
                }
                prop_assert_eq!(tables.block_count, known.len());
            }
            for block in known.into_keys() {
                prop_assert!(tables.remove(block, ONE));
            }
            prop_assert!(tables.blocks.iter().all(|block| block.address == 0));
            let of_all = copied(&tables).stacks().last().map(|(stack, _)| *stack).unwrap();
            prop_assert_eq!(of_all.allocated, of_all.freed);
        }
    }
}
