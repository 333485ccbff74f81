//! `/proc`: parsers apart from readers, the fallback source, and the facts about programs, control groups
//! and sockets that only files and netlink tell.
//!
//! The extern crate `procfs` reads what is not hot (ourselves); written `::procfs`, because this module has its name.

pub mod cgroup;
mod connector;
pub(crate) mod doing;
pub mod facts;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod fuzz;
pub mod kallsyms;
mod netlink;
pub mod own;
pub mod parse;
pub mod root;
mod scan;
pub mod sockets;
pub mod source;
mod tracked;

pub use cgroup::Cgroups;
pub use facts::ProgramReader;
pub use root::ProcfsError;
pub use sockets::Sockets;
pub use source::{Config, ProcfsSource};
