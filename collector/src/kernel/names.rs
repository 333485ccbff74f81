//! Names of addresses in the kernel, asked of the kernel: it takes a microsecond for each, where all that it has is printed in
//! tens of milliseconds ([`crate::procfs::kallsyms`]).

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use aya::maps::MapData;
use collector_ebpf::names::{NAME_BYTES, NAMES, Named};

use super::shared::Shared;
use super::sys;
use crate::procfs::kallsyms::KernelSymbol;

/// Asks the kernel.
pub struct Names {
    program: OwnedFd,
    named: Shared<Named>,
}

impl std::fmt::Debug for Names {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Names").finish_non_exhaustive()
    }
}

impl Names {
    pub(super) fn new(program: OwnedFd, named: MapData) -> io::Result<Self> {
        Ok(Self { program, named: Shared::map(named, NAMES)? })
    }

    /// What is at these addresses, as far as the kernel knows it.
    pub fn look_up(&mut self, addresses: &[u64]) -> io::Result<Vec<(u64, KernelSymbol)>> {
        let mut found = Vec::new();
        for some in addresses.chunks(NAMES) {
            for (index, address) in some.iter().copied().chain([0]).take(NAMES).enumerate() {
                self.named.set(index, Named { address, text: [0; NAME_BYTES] });
            }
            sys::program_run(self.program.as_fd())?;
            let named = (0..some.len()).filter_map(|index| self.named.get(index));
            found
                .extend(named.filter_map(|named| Some((named.address, symbol(&named.text, named.address)?))));
        }
        Ok(found)
    }
}

/// The symbol of what was printed for an address; `None` if it has none, or a name for which there was no room.
fn symbol(text: &[u8], address: u64) -> Option<KernelSymbol> {
    let text = text.split(|byte| *byte == 0).next()?;
    let text = std::str::from_utf8(text).ok()?;
    let (function, module) = match text.split_once(" [") {
        Some((function, module)) => (function, module.strip_suffix(']')?),
        None => (text, ""),
    };
    let (name, place) = function.rsplit_once("+0x")?;
    let (offset, size) = place.split_once("/0x")?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    let start = address.checked_sub(number(offset)?)?;
    let end = start.checked_add(number(size)?)?;
    (!name.is_empty()).then(|| KernelSymbol { name: name.into(), module: module.into(), start, end })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_symbol_is_what_the_kernel_prints() {
        let printed = |text: &str| symbol(text.as_bytes(), 0x1120);
        let expected = |name: &str, module: &str, start, end| {
            Some(KernelSymbol { name: name.into(), module: module.into(), start, end })
        };
        assert_eq!(printed("do_poll.isra.0+0x20/0x300\0\0"), expected("do_poll.isra.0", "", 0x1100, 0x1400));
        assert_eq!(
            printed("nf_hook+0x0/0x10 [nf_tables]\0"),
            expected("nf_hook", "nf_tables", 0x1120, 0x1130)
        );
        for text in
            ["0xffffffff81000000\0", "", "\0", "+0x1/0x2", "cut_o+0x20/", "cut [nf_tab", "f+0x9999/0x1"]
        {
            assert_eq!(printed(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in proptest::collection::vec(any::<u8>(), 0..130), address in any::<u64>()) {
            if let Some(symbol) = symbol(&text, address) {
                prop_assert!(symbol.start <= address);
            }
        }
    }
}
