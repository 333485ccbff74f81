//! `/proc`: parsers apart from readers, the fallback source, and the facts about programs that only it tells.
//!
//! The extern crate `procfs` reads what is not hot (ourselves); written `::procfs`, because this module has its name.

mod connector;
pub mod facts;
pub mod own;
pub mod parse;
pub mod root;
mod scan;
pub mod source;
mod tracked;

pub use facts::ProgramReader;
pub use root::ProcfsError;
pub use source::{Config, ProcfsSource};
