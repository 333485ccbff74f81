//! Names of addresses in the kernel. Loaded when somebody asks for them; elsewhere the kernel has to print all that it has.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_snprintf;
use collector_ebpf::names::{NAME_BYTES, NAMES};

use crate::NAMED;

/// For the function that an address is in, and where in it.
#[unsafe(no_mangle)]
static FORMAT: [u8; 4] = *b"%pS\0";

/// Names what user space has asked for.
///
/// The section is not its kind, as for [`crate::tasks`]' `tracked_processes`.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
extern "C" fn name_addresses(_context: *mut c_void) -> i32 {
    for index in 0..NAMES as u32 {
        if name_address(index) == 0 {
            break;
        }
    }
    0
}

/// Names one. 0 at the end of the list. Global to the verifier, see [`crate::requests`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn name_address(index: u32) -> u32 {
    let Some(named) = NAMED.get_ptr_mut(index) else { return 0 };
    // SAFETY: a pointer into the array, which nobody else uses while the program runs.
    let mut arguments = unsafe { [(*named).address] };
    if arguments[0] == 0 {
        return 0;
    }
    // SAFETY: the text is as long as it is said to be, the format is read-only and ends in a zero, and it takes one number.
    unsafe {
        let text = (&raw mut (*named).text).cast();
        let size = size_of_val(&arguments) as u32;
        bpf_snprintf(text, NAME_BYTES as u32, (&raw const FORMAT).cast(), arguments.as_mut_ptr(), size);
    }
    1
}
