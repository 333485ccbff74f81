//! What a program has asked for memory for.

use super::Profile;
use crate::heap::sampled::Amount;

/// Which of its values a profile of a heap is about where it can be about one only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// Bytes in use.
    InUse,
    /// Bytes that were asked for.
    Allocated,
}

/// A profile of a heap.
#[derive(Clone, Debug)]
pub struct Heap {
    /// Of [`super::Kind::Heap`]. Its samples have what is shown, or nothing where that is less than nothing.
    pub profile: Profile,
    /// In the order of the profile's samples, one each.
    pub values: Vec<Values>,
    /// What the profile is about.
    pub shown: Shown,
    /// Bytes in use as the C library counts them, which has all of them and knows of no place.
    pub malloc_in_use: u64,
}

/// What was asked for at one stack, by estimation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Values {
    /// All of it.
    pub allocated: Amount,
    /// Of that, what was not given back. In a profile of some time: by how much that is more at its end.
    pub in_use: Amount,
}

impl Values {
    /// What is shown of it.
    pub fn shown(&self, shown: Shown) -> Amount {
        match shown {
            Shown::InUse => self.in_use,
            Shown::Allocated => self.allocated,
        }
    }
}
